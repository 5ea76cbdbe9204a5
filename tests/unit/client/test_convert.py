"""Published configurations of TRL, Axolotl and LLaMA-Factory come to the same hyperparameters or say why not."""

import re
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import yaml

from lora_client.errors import ClientError
from lora_client.foreign.convert import convert, text_of
from lora_client.foreign.reading import read
from lora_trainer.spec.config import TrainConfig
from lora_trainer.spec.manifest import RunOptions, train_config

FOLDER = Path(__file__).parent / "configurations"
LORA = ("rank", "alpha", "dropout", "layers", "target_modules", "variant", "scaling", "init", "modules_to_save")
TRAINING = (
    "epochs",
    "max_steps",
    "learning_rate",
    "schedule",
    "warmup_ratio",
    "effective_batch_size",
    "micro_batch_size",
    "max_sequence_length",
    "packing",
    "loss_on",
    "optimizer",
    "weight_decay",
    "max_grad_norm",
    "precision",
    "activation_checkpointing",
    "seed",
    "eval_steps",
    "early_stopping_patience",
)
PLAIN: dict[str, Any] = {
    # What a run has where a configuration says nothing, and neither does its tool.
    "template": None,
    "interval_steps": None,
    "rank": 16,
    "alpha": 32,
    "dropout": 0.0,
    "layers": "AllLinear",
    "target_modules": (),
    "variant": "LoRA",
    "scaling": "Classic",
    "init": "Default",
    "modules_to_save": (),
    "epochs": 1.0,
    "max_steps": None,
    "learning_rate": 0.0002,
    "schedule": "Cosine",
    "warmup_ratio": 0.03,
    "effective_batch_size": 16,
    "micro_batch_size": None,
    "max_sequence_length": 2048,
    "packing": "Enabled",
    "loss_on": "Completion",
    "optimizer": "AdamW",
    "weight_decay": 0.0,
    "max_grad_norm": 1.0,
    "precision": "Auto",
    "activation_checkpointing": "Auto",
    "seed": 42,
    "eval_steps": None,
    "early_stopping_patience": None,
    "quantization": "None",
    "model": "hf://meta-llama/Meta-Llama-3-8B-Instruct",
    "dataset": "hf://organisation/data-set",
    "format": "Auto",
    "split": "train",
    "validation": 0.02,
    "tracker": "None",
}
LLAMA_FACTORY = {
    "template": "Llama3",
    "interval_steps": 500,
    "rank": 8,
    "alpha": 16,
    "epochs": 3.0,
    "learning_rate": 0.0001,
    "warmup_ratio": 0.1,
    "effective_batch_size": 8,
    "micro_batch_size": 1,
    "precision": "BF16",
    "validation": 0.0,
}
WANTED: dict[str, dict[str, Any]] = {
    "trl-sft-script.txt": {
        "model": "hf://Qwen/Qwen2-0.5B",
        "dataset": "hf://trl-lib/Capybara",
        "rank": 32,
        "alpha": 16,
        "dropout": 0.05,
        "layers": "QueryValue",
        "schedule": "Linear",
        "warmup_ratio": 0.0,
        "micro_batch_size": 2,
        "max_sequence_length": 1024,
        "eval_steps": 100,
    },
    "trl-qlora.txt": {
        # Nearly everything is the tool's default, the learning rate of full fine-tuning too.
        "model": "hf://meta-llama/Llama-2-7b-hf",
        "dataset": "hf://trl-lib/Capybara",
        "rank": 32,
        "alpha": 16,
        "dropout": 0.05,
        "layers": "QueryValue",
        "quantization": "NF4",
        "learning_rate": 0.00002,
        "schedule": "Linear",
        "warmup_ratio": 0.0,
        "epochs": 3.0,
        "micro_batch_size": 1,
        "max_sequence_length": 1024,
        "validation": 0.0,
    },
    "trl-config.yaml": {
        "model": "hf://Qwen/Qwen2.5-0.5B",
        "dataset": "hf://stanfordnlp/imdb",
        "dropout": 0.05,
        "epochs": 3.0,
        "learning_rate": 0.0001,
        "warmup_ratio": 0.0,
        "effective_batch_size": 8,
        "micro_batch_size": 8,
        "max_sequence_length": 1024,
        "validation": 0.0,
    },
    "peft-qlora-script.txt": {
        "model": "hf://mistralai/Mistral-7B-v0.1",
        "dataset": "hf://smangrul/ultrachat-10k-chatml",
        "rank": 8,
        "alpha": 16,
        "dropout": 0.1,
        "quantization": "NF4",
        "learning_rate": 0.0001,
        "weight_decay": 0.0001,
        "warmup_ratio": 0.0,
        "effective_batch_size": 64,
        "micro_batch_size": 8,
        "precision": "BF16",
        "activation_checkpointing": "Full",
        "seed": 100,
    },
    "axolotl-llama3-lora-8b.yaml": {
        "model": "hf://NousResearch/Meta-Llama-3-8B",
        "dataset": "hf://mhenrichsen/alpaca_2k_test",
        "format": "Instruction",
        "rank": 32,
        "alpha": 16,
        "dropout": 0.05,
        "modules_to_save": ("embed_tokens", "lm_head"),
        "quantization": "INT8",
        "epochs": 4.0,
        "effective_batch_size": 8,
        "micro_batch_size": 2,
        "max_sequence_length": 4096,
        "optimizer": "AdamW8bit",
        "activation_checkpointing": "Full",
        "warmup_ratio": 0.1,
        "validation": 0.05,
    },
    "axolotl-qlora.yaml": {
        "model": "hf://mistralai/Mistral-7B-v0.1",
        "dataset": "hf://mhenrichsen/alpaca_2k_test",
        "format": "Instruction",
        "rank": 32,
        "alpha": 16,
        "dropout": 0.05,
        "quantization": "NF4",
        "effective_batch_size": 8,
        "micro_batch_size": 2,
        "max_sequence_length": 8192,
        "optimizer": "AdamW8bit",
        "activation_checkpointing": "Full",
        "validation": 0.1,
    },
    "axolotl-chat-template.yaml": {
        "template": "Llama3",
        "dataset": "hf://fozziethebeat/alpaca_messages_2k_test",
        "model": "hf://NousResearch/Meta-Llama-3-8B-Instruct",
        "format": "Messages",
        "rank": 32,
        "alpha": 16,
        "dropout": 0.05,
        "quantization": "INT8",
        "epochs": 4.0,
        "effective_batch_size": 8,
        "micro_batch_size": 2,
        "max_sequence_length": 4096,
        "packing": "Disabled",
        "optimizer": "AdamW8bit",
        "activation_checkpointing": "Full",
        "validation": 0.05,
    },
    "axolotl-qlora-fsdp-70b.yaml": {
        "model": "hf://casperhansen/llama-3-70b-fp16",
        "dataset": "hf://tatsu-lab/alpaca",
        "format": "Instruction",
        "rank": 8,
        "alpha": 16,
        "dropout": 0.05,
        "quantization": "NF4",
        "epochs": 4.0,
        "learning_rate": 0.00001,
        "effective_batch_size": 4,
        "micro_batch_size": 1,
        "max_sequence_length": 512,
        "packing": "Disabled",
        "activation_checkpointing": "Full",
        "validation": 0.05,
    },
    "llama-factory-lora-sft.yaml": LLAMA_FACTORY,
    "llama-factory-qlora.yaml": {**LLAMA_FACTORY, "quantization": "NF4", "validation": 0.1, "eval_steps": 500},
    "llama-factory-pissa.yaml": {**LLAMA_FACTORY, "init": "PiSSA"},
    "llama-factory-loraplus.yaml": {**LLAMA_FACTORY, "validation": 0.1, "eval_steps": 500},
    "trl-options.txt": {
        "model": "hf://meta-llama/Llama-3.1-8B",
        "dataset": "hf://HuggingFaceH4/ultrachat_200k",
        "split": "train_sft",
        "dropout": 0.1,
        "quantization": "NF4",
        "warmup_ratio": 0.1,
        "epochs": None,
        "max_steps": 1000,
        "micro_batch_size": 4,
        "precision": "BF16",
        "activation_checkpointing": "Full",
        "optimizer": "PagedAdamW8bit",
        "validation": 0.0,
        "tracker": "WandB",
    },
    "axolotl-options.yaml": {
        "interval_steps": 40,
        "model": "hf://meta-llama/Llama-3.2-1B",
        "dataset": "hf://teknium/GPT4-LLM-Cleaned",
        "format": "Instruction",
        "layers": None,
        "target_modules": ("q_proj", "v_proj"),
        "variant": "DoRA",
        "scaling": "RankStabilized",
        "modules_to_save": ("embed_tokens", "lm_head"),
        "epochs": None,
        "max_steps": 200,
        "learning_rate": 0.0001,
        "schedule": "Linear",
        "warmup_ratio": 0.1,
        "effective_batch_size": 8,
        "micro_batch_size": 4,
        "optimizer": "PagedAdamW8bit",
        "precision": "FP16",
        "activation_checkpointing": "None",
        "eval_steps": 20,
        "early_stopping_patience": 3,
        "seed": 7,
        "validation": 0.04,
        "tracker": "WandB",
    },
    "llama-factory-options.yaml": {
        "template": "Llama3",
        "dataset": "hf://acme/support-chats",
        "alpha": 16,
        "dropout": 0.1,
        "layers": None,
        "target_modules": ("q_proj", "v_proj"),
        "scaling": "RankStabilized",
        "modules_to_save": ("embed_tokens", "lm_head"),
        "quantization": "INT8",
        "epochs": None,
        "max_steps": 300,
        "learning_rate": 0.00005,
        "schedule": "Constant",
        "warmup_ratio": 0.1,
        "micro_batch_size": 2,
        "max_sequence_length": 1024,
        "loss_on": "All",
        "precision": "FP16",
        "weight_decay": 0.01,
        "max_grad_norm": 0.3,
        "seed": 1,
        "validation": 0.0,
        "tracker": "TensorBoard",
    },
}
LEFT = {
    "trl-sft-script.txt": {
        "lora_target_modules",
        "eos_token",
        "eval_strategy",
        "output_dir",
        "push_to_hub",
        "use_peft",
    },
    "trl-config.yaml": {"use_peft"},
    "axolotl-llama3-lora-8b.yaml": {"flash_attention", "special_tokens", "evals_per_epoch", "tf32"},
    "axolotl-qlora.yaml": {"lora_target_modules", "eval_table_max_new_tokens"},
    "axolotl-chat-template.yaml": {"datasets[0].message_property_mappings"},
    "axolotl-qlora-fsdp-70b.yaml": {"fsdp", "fsdp_config", "gradient_checkpointing_kwargs"},
    "axolotl-options.yaml": {"datasets[1]", "adam_beta2", "adam_epsilon"},
    "llama-factory-lora-sft.yaml": {"max_samples", "trust_remote_code", "ddp_timeout"},
    "llama-factory-pissa.yaml": {"pissa_iter", "pissa_convert"},
    "llama-factory-loraplus.yaml": {"loraplus_lr_ratio"},
    "llama-factory-options.yaml": {"flash_attn", "packing"},
    "peft-qlora-script.txt": {"chat_template_format", "use_peft_lora", "splits", "use_nested_quant"},
}


def converted(name: str) -> TrainConfig:
    """The run of a configuration, with nothing that the definition does not take."""
    found = convert((FOLDER / name).read_text(encoding="utf-8"), name="tone")
    manifest = dict(yaml.safe_load(text_of(found)))
    return train_config(manifest, RunOptions(uid="u", strict=True))


def settings(config: TrainConfig) -> dict[str, Any]:
    """Its hyperparameters by the contract."""
    lora, training = asdict(config.lora), asdict(config.training)
    return {
        **{key: lora[key] for key in LORA},
        **{key: training[key] for key in TRAINING},
        "quantization": config.quantization,
        "model": config.model.uri,
        "dataset": config.dataset.uri,
        "format": config.dataset.format,
        "split": config.dataset.split,
        "validation": config.dataset.validation_fraction,
        "tracker": config.tracking.kind,
        "template": config.dataset.chat_template,
        "interval_steps": config.checkpoint.interval_steps,
    }


def test_there_are_four_published_ones_of_each_tool() -> None:
    """Each names the file of the tool's repository that it has its keys and values from; none is left untested."""
    assert {path.name for path in FOLDER.iterdir()} == WANTED.keys()
    heads = [path.read_text(encoding="utf-8").partition("\n")[0] for path in FOLDER.iterdir()]
    for tools in ("TRL|PEFT", "Axolotl", "LLaMA-Factory"):
        assert len([head for head in heads if re.match(rf"#+ ({tools}), \S+/\S+\.(ya?ml|md|py|sh)\b", head)]) == 4


@pytest.mark.parametrize("name", WANTED)
def test_a_configuration_comes_to_the_same_hyperparameters(name: str) -> None:
    """Those that it names, its tool's defaults where they are others, and ours for the rest."""
    assert settings(converted(name)) == {**PLAIN, **WANTED[name]}


@pytest.mark.parametrize("name", WANTED)
def test_every_option_is_mapped_or_named_with_a_reason(name: str) -> None:
    """Nothing is dropped in silence."""
    text = (FOLDER / name).read_text(encoding="utf-8")
    found = convert(text, name="tone")
    left = {option for option, _, _ in found.left}
    assert LEFT.get(name, set()) <= left
    assert all(why for _, _, why in found.left)
    unknown = {option for option, _, why in found.left if why.startswith("this release knows no such option")}
    assert not unknown, name
    mapped = {option for pair in found.mapped for option in pair[0].split(", ")}
    told = {word.partition("[")[0] for word in left | mapped} | {
        word for entry in found.to_fill for word in entry.split()
    }
    given = {option for option, value in read(text).options.items() if value is not None}
    assert given <= told, name


def test_several_gpus_multiply_the_batch() -> None:
    """As the tools count it."""
    config = convert("base_model: a/b\ndatasets: [{path: c/d}]\nmicro_batch_size: 2\nadapter: lora\n", name="x", gpus=4)
    assert config.manifest["spec"]["training"]["effectiveBatchSize"] == 8
    assert config.manifest["spec"]["resources"]["gpus"] == 4


@pytest.mark.parametrize(
    ("text", "want"),
    [
        ("", "holds no options"),
        ("[1, 2]", "holds no options"),
        ("just words", "holds no options"),
        ("model_name_or_path: a/b\nreport_to: 3\nfinetuning_type: lora\n", "a value of a wrong kind"),
        ("base_model: a/b\ndatasets: [3]\n", "a value of a wrong kind"),
        ("'unfinished", "holds no options"),
        (
            "base_model: &a0 a\n" + "".join(f"x{i}: &a{i} [{f'*a{i - 1}, ' * 9}]\n" for i in range(1, 12)),
            "The file cannot be read: the document has more than 3,145,728 characters with its aliases written out",
        ),
    ],
)
def test_a_file_that_is_none_is_refused_in_a_sentence(text: str, want: str) -> None:
    """Of whatever kind."""
    with pytest.raises(ClientError, match=want):
        convert(text, name="x")


def test_an_unknown_option_is_named() -> None:
    """A newer release of the tool may have it."""
    found = convert("base_model: a/b\nadapter: lora\nbrand_new: 3\n", name="x")
    assert ("brand_new", "3", "this release knows no such option of Axolotl") in found.left
    assert any("datasets[0].path is missing" in entry for entry in found.to_fill)
    assert text_of(found).startswith("# From a configuration of Axolotl, by lora convert.\n# Fill in dataset.uri")


EVIL = "x\n---\nkind: ClusterRoleBinding\n---\x85---\u2028#\x1b.jsonl"


@pytest.mark.parametrize(
    "text",
    [
        yaml.safe_dump({"base_model": "a/b", "adapter": "lora", "datasets": [{"path": EVIL}]}),
        yaml.safe_dump({"base_model": EVIL, "adapter": "lora", "datasets": [{"path": "c/d"}]}),
        yaml.safe_dump({"base_model": "a/b", "adapter": "lora", "brand_new": EVIL}),
        f"trl sft --model_name_or_path a/b --dataset_name c/d '--{EVIL}' 1",
        f"trl sft --model_name_or_path a/b --dataset_name '{EVIL}' --learning_rate '{EVIL}'",
    ],
)
def test_what_a_foreign_file_says_stays_in_its_comment(text: str) -> None:
    """However its lines end: kubectl would apply a document of its own."""
    found = convert(text, name="x")
    (document,) = yaml.safe_load_all(text_of(found))
    assert document == found.manifest
    notes = [*found.to_fill, *map(" ".join, found.left), *map(" ".join, found.mapped)]
    assert any("ClusterRoleBinding" in note for note in notes)
    assert all(len(note.splitlines()) == 1 and note.isprintable() for note in notes)
