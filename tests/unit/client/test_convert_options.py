"""Single options of other tools come to what they mean there, or are named with the reason."""

import pytest

from lora_client.foreign.convert import convert

NOT_GIVEN = "not given"


def test_a_run_without_a_gpu_has_a_batch() -> None:
    """As the tools count it on a CPU."""
    spec = convert("trl sft --model_name_or_path a/b --use_peft", name="x", gpus=0).manifest["spec"]
    assert (spec["resources"]["gpus"], spec["training"]["effectiveBatchSize"]) == (0, 8)


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


@pytest.mark.parametrize(
    ("text", "option", "value", "why"),
    [
        *((f"{TRL} --optim {optim}", "optim", optim, "no such value") for optim in ("paged_adamw", "adam", "lion")),
        *(
            (f"{TRL} --optim {optim}", "optim", optim, "no such value")
            for optim in ("paged_adamw_32bit", "ademamix_8bit", "adamw_torch_8bit")
        ),
        (f"{AXOLOTL}lr_scheduler: cosines\n", "lr_scheduler", "cosines", "no such value"),
        (f"{AXOLOTL}datasets: [{{path: c/d, type: alpacas}}]\n", "datasets[0].type", "alpacas", "columns decide"),
        (f"{TRL} --warmup_steps 20 --warmup_ratio 0.5", "warmup_steps", "20", "divide it by the number of steps"),
        (f"{TRL} --warmup_steps 20 --warmup_ratio 0.5", "warmup_ratio", "0.5", "warmup_steps decides"),
        (f"{AXOLOTL}val_set_size: 200\n", "val_set_size", "200", "a number of rows"),
        (f"{FACTORY}val_size: 1\n", "val_size", "1", "a number of rows"),
        (f"{FACTORY}eval_steps: 20\n", "eval_steps", "20", "no rows are held out"),
        (f"{TRL} --eval_steps 20", "eval_steps", "20", "no rows are held out"),
        (f"{TRL} --num_processes 4", "num_processes", "4", "--gpus"),
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
