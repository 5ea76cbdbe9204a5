"""Each row of docs/migrate.md that leads from an option to a field is one that `lora convert` follows."""

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from lora_client.errors import ClientError
from lora_client.foreign.convert import convert
from lora_trainer.spec.manifest import RunOptions, train_config

PAGE = Path(__file__).resolve().parents[3] / "docs/migrate.md"
SECTIONS = re.split(r"^## ", PAGE.read_text(encoding="utf-8"), flags=re.MULTILINE)[1:]
BASE: dict[str, dict[str, Any]] = {
    "PEFT": {"peft_type": "LORA", "base_model_name_or_path": "a/b", "dataset_name": "c/d"},
    "TRL": {"model_name_or_path": "a/b", "dataset_name": "c/d", "use_peft": True, "eval_strategy": "steps"},
    "Axolotl": {"base_model": "a/b", "datasets": [{"path": "c/d"}], "adapter": "lora", "val_set_size": 0.1},
    "LLaMA-Factory": {"model_name_or_path": "a/b", "dataset": "c/d", "finetuning_type": "lora", "val_size": 0.1},
}
VALUES: dict[str, Any] = {
    **{
        name: value
        for names, value in (
            ("target_modules lora_target_modules modules_to_save additional_target exclude_modules", ["q_proj"]),
            ("target_parameters lora_target_parameters lora_modules_to_save lora_target", ["q_proj"]),
            ("layers_to_transform peft_layers_to_transform", [1, 2]),
            ("rank_pattern alpha_pattern", {"q_proj": 8}),
            ("init_lora_weights peft_init_lora_weights", "pissa"),
            ("chat_template template", "chatml"),
            ("lr_scheduler lr_scheduler_type", "cosine"),
            ("optim optimizer", "adamw_8bit"),
            ("lora_dropout warmup_ratio val_set_size val_size learning_rate", 0.1),
            ("max_length sequence_len cutoff_len", 512),
        )
        for name in names.split()
    },
    "model_name_or_path": "a/b",
    "base_model": "a/b",
    "model_revision": "v1",
    "dataset_name": "c/d",
    "dataset_train_split": "small",
    "dataset_text_field": "review",
    "dataset": "c/d",
    "eval_dataset": "e/f",
    "test_datasets": [{"path": "e/f"}],
    "report_to": "wandb",
    "wandb_project": "x",
    "mlflow_experiment_name": "x",
    "quantization_bit": 4,
    "max_steps": 10,
    "eval_steps": 10,
    "save_steps": 200,
    "save_total_limit": 3,
}
WITH: dict[str, dict[str, Any]] = {"warmup_steps": {"max_steps": 100}, "early_stopping_patience": {"eval_steps": 10}}
OTHERWISE = {
    # Options that no value of theirs turns into the field: what it says of them instead.
    "bias": "not trained",
    "layer_replication": "not offered",
    "loftq_config": "not offered",
    "eva_config": "not offered",
    "corda_config": "not offered",
    "chat_template_path": "copy the file into a ConfigMap, dataset.chatTemplate: configmap://name/key",
    "load_best_model_at_end": "earlyStoppingPatience takes the best",
    "output_dir": "output.uri says where",
    "hub_model_id": "output.uri: hf://acme/tone publishes there",
    "resume_from_checkpoint": "resumes automatically",
    "lora_model_dir": "resumeFrom continues",
    "adapter_name_or_path": "resumeFrom continues",
    "deepspeed": "resources.gpus and nodes",
    "fsdp_config": "resources.gpus and nodes",
    "flash_attention": "fast paths",
    "finetuning_type": "lora is what is trained",
}
REFUSED = ("rl", "reward_model", "pretraining_dataset", "stage")
"""Of another objective."""
ROWS = [
    (tool, option)
    for tool, _, section in (text.partition("\n") for text in SECTIONS)
    for row in section.partition("|---|---|---|\n")[2].splitlines()
    if row.startswith("|")
    for option in re.findall(r"`(\w+)`", row.split(" | ")[0])
]


@pytest.mark.parametrize(("tool", "option"), ROWS)
def test_an_option_of_the_tables_becomes_its_field(tool: str, option: str) -> None:
    """Or is named with the field that takes its place; what comes of it, the definition takes."""
    value = "acme/tone" if option == "hub_model_id" else VALUES.get(option, 1)
    alone = {"finetuning_type": "full", "type": "chat_template", "path": "c/d", "split": "small"}
    given = {**BASE[tool], **WITH.get(option, {}), option: alone.get(option, value)}
    if tool == "Axolotl" and option in ("type", "split"):
        given["datasets"] = [{"path": "c/d", option: given.pop(option)}]
        option = "datasets"
    if option in REFUSED:
        with pytest.raises(ClientError, match=f"{option} is .*: only supervised fine-tuning can be converted"):
            convert(yaml.safe_dump(given), name="tone")
        return
    found = convert(yaml.safe_dump(given), name="tone")
    train_config(found.manifest, RunOptions(uid="u", strict=True))
    mapped = {name.partition("[")[0] for names, _ in found.mapped for name in names.split(", ")}
    left = {name.partition("[")[0]: why for name, _, why in found.left}
    if option in OTHERWISE:
        assert OTHERWISE[option] in left[option]
    else:
        assert option in mapped, left.get(option)


def test_what_a_held_out_data_set_has_besides_its_address_is_named() -> None:
    """But for the splits that are taken anyhow."""
    entries = "[{path: e/f, split: test, type: alpaca}, {path: g/h}]"
    found = convert(f"base_model: a/b\ndatasets: [{{path: c/d}}]\nadapter: lora\ntest_datasets: {entries}", name="tone")
    assert {name for name, _, _ in found.left if name.startswith("test")} == {
        "test_datasets[0].type",
        "test_datasets[1]",
    }


@pytest.mark.parametrize(
    ("given", "fields"),
    [
        ("save_steps: 200\nsave_total_limit: 3", {"checkpoint": {"intervalSteps": 200, "keep": 3}}),
        ("save_steps: 200\nsave_strategy: epoch", {"checkpoint": None}),
        ("save_total_limit: 1000", {"checkpoint": {"keep": 100}}),
        ("save_total_limit: 0", {"checkpoint": None}),
        (
            "chat_template: chatml",
            {"dataset": {"uri": "hf://c/d", "validationFraction": "0", "chatTemplate": "ChatML"}},
        ),
        ("chat_template: tokenizer_default", {"dataset": {"uri": "hf://c/d", "validationFraction": "0"}}),
        (
            "val_set_size: 0.1\ntest_datasets: [{path: e/f}]",
            {"dataset": {"uri": "hf://c/d", "validationUri": "hf://e/f"}},
        ),
    ],
)
def test_what_is_saved_and_held_out_is_the_same(given: str, fields: dict[str, Any]) -> None:
    """Within what a field takes; another way to count is named."""
    found = convert(f"base_model: a/b\ndatasets: [{{path: c/d}}]\nadapter: lora\n{given}", name="tone")
    train_config(found.manifest, RunOptions(uid="u", strict=True))
    assert {field: found.manifest["spec"].get(field) for field in fields} == fields
