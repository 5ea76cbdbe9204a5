"""Single options of other tools come to what they mean there, or are named with the reason."""

import json
from typing import Any

import pytest

from lora_client.foreign.convert import convert

NOT_GIVEN = "not given"


def test_a_run_without_a_gpu_has_a_batch() -> None:
    """As the tools count it on a CPU."""
    spec = convert("trl sft --model_name_or_path a/b --use_peft", name="x", gpus=0).manifest["spec"]
    assert (spec["resources"]["gpus"], spec["training"]["effectiveBatchSize"]) == (0, 8)


BATCH = "--per_device_train_batch_size 4 --gradient_accumulation_steps 4"


@pytest.mark.parametrize(
    ("begin", "gpus", "want", "source"),
    [
        ("torchrun --nproc_per_node 8 sft.py", None, (8, 1, 128), "nproc_per_node"),
        ("torchrun --nproc-per-node=8 sft.py", None, (8, 1, 128), "nproc_per_node"),
        ("torchrun --nnodes 2 --nproc_per_node 4 sft.py", None, (4, 2, 128), "nproc_per_node, nnodes"),
        ("torchrun --nnodes 1:2 --nproc_per_node 4 sft.py", None, (4, 1, 64), "nproc_per_node"),
        ("accelerate launch --num_processes 8 sft.py", None, (8, 1, 128), "num_processes"),
        (
            "accelerate launch --num_processes 8 --num_machines 2 sft.py",
            None,
            (4, 2, 128),
            "num_processes, num_machines",
        ),
        ("deepspeed --num_gpus 2 sft.py", None, (2, 1, 32), "num_gpus"),
        ("torchrun --nproc_per_node 8 sft.py", 2, (2, 1, 32), "--gpus"),
        ("torchrun --nproc_per_node gpu sft.py", 4, (4, 1, 64), "--gpus"),
    ],
)
def test_a_launcher_says_on_how_many_gpus(
    begin: str, gpus: int | None, want: tuple[int, int, int], source: str
) -> None:
    """Each GPU computes a batch of its own, and spec.resources.gpus are those of a node; --gpus decides."""
    found = convert(f"{begin} --model_name_or_path a/b --use_peft {BATCH}", name="x", gpus=gpus)
    spec = found.manifest["spec"]
    got = spec["resources"]["gpus"], spec["resources"].get("nodes", 1), spec["training"]["effectiveBatchSize"]
    assert got == want
    assert (source, "resources.gpus") in found.mapped
    assert not [entry for entry in found.to_fill if "one GPU" in entry]


@pytest.mark.parametrize("begin", ["trl sft", "torchrun --nproc_per_node gpu sft.py", "torchrun --nproc_per_node 0 x"])
def test_a_batch_that_counts_one_gpu_is_to_be_filled_in(begin: str) -> None:
    """Files of Axolotl and LLaMA-Factory rarely say on how many they ran; no tool has one as its default."""
    for text in (f"{begin} --model_name_or_path a/b --use_peft", AXOLOTL, FACTORY):
        found = convert(text, name="x")
        assert [entry for entry in found.to_fill if entry.startswith("training.effectiveBatchSize: it counts one GPU")]
        assert found.manifest["spec"]["resources"] == {"gpus": 1}
        assert not [option for option, field in found.mapped if field == "resources.gpus"]


@pytest.mark.parametrize(
    "file",
    ["data/train.jsonl", "train.jsonl", "data/train.json", "data/t.CSV", "data/t.parquet", "data/t.jsonl.gz"],
)
def test_a_file_of_rows_is_no_data_set_on_the_hub(file: str) -> None:
    """Its place has to be filled in, and the report has the model alone."""
    entries = (
        (f"{AXOLOTL}datasets: [{{path: {file}, type: alpaca}}]\n", "datasets[0].path", "base_model"),
        (f"{TRL} --dataset_name {file}", "dataset_name", "model_name_or_path"),
        (f"{FACTORY}dataset: {file}\n", "dataset", "model_name_or_path"),
    )
    for text, option, base in entries:
        found = convert(text, name="x")
        assert found.manifest["spec"]["dataset"]["uri"] == "hf://organisation/data-set"
        (wanted,) = [entry for entry in found.to_fill if entry.startswith("dataset.uri")]
        assert wanted.startswith(f"dataset.uri: {option} is the file {file}: copy it to a claim, pvc://")
        assert (base, "model.uri") in found.mapped
        assert "dataset.uri" not in [field for _, field in found.mapped]
    (asked,) = [
        entry for entry in convert(f"{TRL} --dataset_name /data/rows", name="x").to_fill if "/data/rows" in entry
    ]
    assert "write hf://, s3://" in asked


TRL = "trl sft --model_name_or_path a/b --use_peft --lora_target_modules all-linear --assistant_only_loss false "
AXOLOTL = "base_model: a/b\nadapter: lora\n"
FACTORY = "model_name_or_path: a/b\nfinetuning_type: lora\n"


@pytest.mark.parametrize(
    ("text", "field", "value"),
    [
        (f"{TRL} --optim adamw_8bit", "optimizer", "AdamW8bit"),
        (f"{TRL} --optim paged_adamw_8bit", "optimizer", "PagedAdamW8bit"),
        (f"{TRL} --warmup_steps 20 --warmup_ratio 0.5 --max_steps 100", "warmupRatio", "0.2"),
        (f"{TRL} --warmup_steps 0 --warmup_ratio 0.5", "warmupRatio", "0.5"),
        (f"{TRL} --assistant_only_loss true --completion_only_loss false", "lossOn", "Completion"),
        (f"{TRL} --assistant_only_loss false --completion_only_loss true", "lossOn", "Completion"),
        (f"{TRL} --assistant_only_loss false", "lossOn", "All"),
        (f"{AXOLOTL}micro_batch_size: 2\nbatch_size: 8\n", "effectiveBatchSize", 8),
        (f"{FACTORY}packing: true\nneat_packing: false\n", "packing", "Enabled"),
        (f"{FACTORY}max_grad_norm: 0\n", "maxGradNorm", "1000"),
        (f"{FACTORY}disable_gradient_checkpointing: true\n", "activationCheckpointing", "None"),
    ],
)
def test_an_option_comes_to_what_it_means(text: str, field: str, value: str) -> None:
    """Where two decide, that of the tool which wins."""
    assert convert(text, name="x").manifest["spec"]["training"][field] == value


PEFT = "python train.py --model_name_or_path a/b --r 8 --target_modules q_proj --lora_dropout 0 "


@pytest.mark.parametrize(
    ("text", "field", "value"),
    [
        (f"{PEFT} --exclude_modules lm_head", "excludeModules", ["lm_head"]),
        (f"{PEFT} --exclude_modules lm_head mlp.down_proj", "excludeModules", ["lm_head", "mlp.down_proj"]),
        (f"{PEFT} --layers_to_transform 7", "layerIndices", [7]),
        (f"{PEFT} --layers_to_transform 0 1 2", "layerIndices", [0, 1, 2]),
        (f"{PEFT} --layers_to_transform 0,1", "layerIndices", [0, 1]),
        (f"""{PEFT} --rank_pattern '{{"q_proj": 32}}'""", "rankPattern", {"q_proj": 32}),
        (f"""{PEFT} --alpha_pattern '{{"attn.q_proj": 64.0}}'""", "alphaPattern", {"attn.q_proj": 64}),
        (f"{PEFT} --target_parameters experts.gate_up_proj", "targetParameters", ["experts.gate_up_proj"]),
        (f"{TRL} --lora_target_parameters experts.a experts.b", "targetParameters", ["experts.a", "experts.b"]),
        (f"{AXOLOTL}peft_layers_to_transform: [0, 3]\n", "layerIndices", [0, 3]),
        (f"{AXOLOTL}lora_target_parameters: [experts.down_proj]\n", "targetParameters", ["experts.down_proj"]),
    ],
)
def test_what_a_field_of_the_adapter_takes_is_taken_over(text: str, field: str, value: object) -> None:
    """Lists, numbers and maps in the shape that the field has, and without a word of what is left."""
    found = convert(text, name="x")
    assert found.manifest["spec"]["lora"][field] == value
    option = next(option for option, path in found.mapped if path == f"lora.{field}")
    assert option not in {name for name, _, _ in found.left}


@pytest.mark.parametrize(
    ("text", "left", "kept"),
    [
        (f"{PEFT} --layers_to_transform -1", ("layers_to_transform", "-1"), {}),
        (f"{PEFT} --layers_to_transform last", ("layers_to_transform", "last"), {}),
        (
            f"""{PEFT} --rank_pattern '{{"^model.layers.0.*": 4, "v_proj": 2}}'""",
            ("rank_pattern[^model.layers.0.*]", "4"),
            {"rankPattern": {"v_proj": 2}},
        ),
        (f"""{PEFT} --alpha_pattern '{{"q_proj": 1.5}}'""", ("alpha_pattern[q_proj]", "1.5"), {}),
    ],
)
def test_a_pattern_that_a_field_cannot_take_is_named(text: str, left: tuple[str, str], kept: dict[str, Any]) -> None:
    """Alone, where the rest of a map can be taken over."""
    found = convert(text, name="x")
    assert left in [entry[:2] for entry in found.left]
    fields = ("excludeModules", "layerIndices", "rankPattern", "alphaPattern", "targetParameters")
    assert {key: value for key, value in found.manifest["spec"]["lora"].items() if key in fields} == kept


ADAPTER_CONFIG = {
    "alpha_pattern": {},
    "base_model_name_or_path": "acme/base",
    "bias": "none",
    "eva_config": None,
    "exclude_modules": None,
    "fan_in_fan_out": False,
    "inference_mode": True,
    "init_lora_weights": True,
    "layer_replication": None,
    "layers_pattern": None,
    "layers_to_transform": [1],
    "loftq_config": {},
    "lora_alpha": 16,
    "lora_bias": False,
    "lora_dropout": 0.0,
    "megatron_core": "megatron.core",
    "modules_to_save": None,
    "peft_type": "LORA",
    "peft_version": "0.18.0",
    "qalora_group_size": 16,
    "r": 8,
    "rank_pattern": {"v_proj": 4},
    "revision": "abc",
    "target_modules": ["q_proj", "v_proj"],
    "target_parameters": ["experts.down_proj"],
    "task_type": "CAUSAL_LM",
    "use_dora": False,
    "use_qalora": False,
    "use_rslora": False,
}


def test_an_adapter_brings_its_base_and_its_shape() -> None:
    """PEFT's adapter_config.json, of which nothing is unknown."""
    found = convert(json.dumps(ADAPTER_CONFIG), name="x")
    assert found.manifest["spec"]["model"] == {"uri": "hf://acme/base@abc"}
    assert found.manifest["spec"]["lora"] == {
        "rank": 8,
        "alpha": 16,
        "dropout": "0",
        "targetModules": ["q_proj", "v_proj"],
        "layerIndices": [1],
        "rankPattern": {"v_proj": 4},
        "targetParameters": ["experts.down_proj"],
    }
    assert ("base_model_name_or_path, revision", "model.uri") in found.mapped
    assert not [name for name, _, why in found.left if why.startswith("this release knows no such option")]
    assert not [entry for entry in found.to_fill if entry.startswith("model.uri")]


def test_an_adapter_of_no_linear_module_is_said_to_have_some_here() -> None:
    """An empty list is what PEFT asks for beside parameters, and no value of the field."""
    found = convert(json.dumps({**ADAPTER_CONFIG, "target_modules": []}), name="x")
    assert "targetModules" not in found.manifest["spec"]["lora"]
    assert ("target_modules", "[]") in [entry[:2] for entry in found.left]


@pytest.mark.parametrize(
    ("text", "want"),
    [
        (f"{AXOLOTL}mlflow_experiment_name: tones\n", {"kind": "MLflow", "project": "tones"}),
        (f"{AXOLOTL}use_mlflow: true\nmlflow_tracking_uri: http://mlflow:5000\n", {"kind": "MLflow"}),
        (f"{AXOLOTL}wandb_project: p\nmlflow_experiment_name: tones\n", {"kind": "WandB", "project": "p"}),
        (f"{AXOLOTL}use_mlflow: false\n", None),
    ],
)
def test_the_curves_go_to_the_tracker_of_axolotl(text: str, want: dict[str, str] | None) -> None:
    """To one of them: where there are two, the other is named."""
    found = convert(text, name="x")
    assert found.manifest["spec"].get("tracking") == want
    assert ("mlflow_experiment_name" in {name for name, _, _ in found.left}) is ("wandb_project" in text)
    assert not [name for name, _, why in found.left if why.startswith("this release knows no such option")]


@pytest.mark.parametrize(
    ("text", "option", "value", "why"),
    [
        (f"{AXOLOTL}datasets: [{{path: c/d, type: alpacas}}]\n", "datasets[0].type", "alpacas", "columns decide"),
        (f"{TRL} --warmup_steps 20 --warmup_ratio 0.5", "warmup_ratio", "0.5", "warmup_steps decides"),
        (f"{AXOLOTL}val_set_size: 200\n", "val_set_size", "200", "a number of rows"),
        (f"{FACTORY}val_size: 1\n", "val_size", "1", "a number of rows"),
        (f"{FACTORY}eval_steps: 20\n", "eval_steps", "20", "no rows are held out"),
        (f"{TRL} --eval_steps 20", "eval_steps", "20", "no rows are held out"),
        (f"torchrun --nproc_per_node gpu {TRL}", "nproc_per_node", '["gpu", "trl", "sft"]', "--gpus"),
        *((AXOLOTL, option, NOT_GIVEN, "no default") for option in ("lora_r", "lora_alpha", "learning_rate")),
        (AXOLOTL, "lora_target_modules", NOT_GIVEN, "no default"),
        ("base_model: a/b\n", "adapter", NOT_GIVEN, "full fine-tuning"),
        ("trl sft --model_name_or_path a/b", "use_peft", NOT_GIVEN, "full fine-tuning"),
        ("trl sft --model_name_or_path a/b --use_peft false", "use_peft", "false", "full fine-tuning"),
        ("trl sft --model_name_or_path a/b --use_peft", "lora_target_modules", NOT_GIVEN, "PEFT's default for Llama"),
        ("trl sft --model_name_or_path a/b --use_peft", "assistant_only_loss", NOT_GIVEN, "whole conversations"),
    ],
)
def test_what_cannot_be_taken_over_is_named(text: str, option: str, value: str, why: str) -> None:
    """Rather than taken for what is spelled alike, or dropped."""
    assert [shown for name, shown, reason in convert(text, name="x").left if name == option and why in reason] == [
        value
    ]


@pytest.mark.parametrize(
    ("text", "want"),
    [
        ("trl sft --model_name_or_path a/b --use_peft", (16, 32, "0.05", ["QueryValue"])),
        ("python train.py --model_name_or_path a/b --target_modules q_proj", (8, 8, "0", ["q_proj"])),
        (
            "python train.py --model_name_or_path a/b --use_peft_lora True",
            (64, 16, "0.1", ["q_proj", "k_proj", "v_proj", "o_proj", "down_proj", "up_proj", "gate_proj"]),
        ),
    ],
)
def test_a_silent_script_has_the_defaults_of_what_it_uses(text: str, want: tuple[object, ...]) -> None:
    """TRL's ModelConfig, PEFT's LoraConfig or PEFT's example, each with its own."""
    lora = convert(text, name="x").manifest["spec"]["lora"]
    layers = lora.get("targetModules") or [lora["layers"]]
    assert (lora["rank"], lora["alpha"], lora["dropout"], layers) == want


@pytest.mark.parametrize(
    ("text", "want"),
    [
        (
            f"{TRL} --packing --per_device_train_batch_size 2",
            "PEFT and TRL counts packs, 2 a step, of up to 1024",
        ),
        (
            f"{AXOLOTL}sample_packing: true\nsequence_len: 4096\n",
            "Axolotl counts packs, 1 a step, of up to 4096",
        ),
        (f"{FACTORY}neat_packing: true\n", "LLaMA-Factory counts packs, 8 a step, of up to 2048"),
    ],
)
def test_a_batch_of_packs_is_to_be_filled_in(text: str, want: str) -> None:
    """Here a batch counts rows, packed or not; how many a pack holds is known from the data alone."""
    assert [entry for entry in convert(text, name="x").to_fill if want in entry]


def test_peft_has_no_say_in_full_fine_tuning() -> None:
    """What adapts all layers comes closest to it."""
    assert "layers" not in convert("trl sft --model_name_or_path a/b", name="x").manifest["spec"]["lora"]


def test_an_adapter_is_not_called_full_fine_tuning() -> None:
    """Neither by TRL's switch nor by PEFT's own configuration."""
    for text in (TRL, AXOLOTL, FACTORY, "python train.py --model_name_or_path a/b --r 8 --target_modules q_proj"):
        assert not [why for _, _, why in convert(text, name="x").left if "full fine-tuning" in why], text


def test_a_command_that_holds_json_is_a_command() -> None:
    """To YAML it is an object with one long key."""
    found = convert(f"""{TRL} --gradient_checkpointing_kwargs '{{"use_reentrant": false}}'""", name="x")
    assert found.manifest["spec"]["model"] == {"uri": "hf://a/b"}
    assert ("gradient_checkpointing_kwargs", '{"use_reentrant": false}') in [entry[:2] for entry in found.left]
