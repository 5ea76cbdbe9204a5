"""What a field does not have is to be filled in; addresses and switches of other tools come to what they mean."""

import pytest
from tests.unit.client.test_convert_options import AXOLOTL, FACTORY, PEFT, TRL

from lora_client.foreign.convert import convert

OPTIMIZERS = ("paged_adamw", "adam", "lion", "paged_adamw_32bit", "ademamix_8bit", "adamw_torch_8bit")
NAMES = "a regular expression: list the names that it matches"
NO_COUNT = "which is not a whole number from 1 on"


@pytest.mark.parametrize(
    ("text", "want"),
    [
        *(
            (
                f"{TRL} --optim {name}",
                f"training.optimizer: optim is {name}, which is none of AdamW, AdamW8bit, PagedAdamW8bit",
            )
            for name in OPTIMIZERS
        ),
        (
            f"{AXOLOTL}lr_scheduler: rex\n",
            "training.schedule: lr_scheduler is rex, which is none of Constant, Cosine, Linear",
        ),
        (
            f"{PEFT} --init_lora_weights loftq",
            "lora.init: init_lora_weights is loftq, which is none of Default, Gaussian, OLoRA, PiSSA",
        ),
        (
            f"{TRL} --warmup_steps 20 --warmup_ratio 0.5",
            "training.warmupRatio: warmup_steps is 20, a number of steps: write its share of all steps",
        ),
        (f"{PEFT} --exclude_modules 'mlp.+'", f"lora.excludeModules: exclude_modules is mlp.+, {NAMES}"),
        (
            f"{PEFT} --target_parameters 'experts.[a-z]+'",
            f"lora.targetParameters: target_parameters is experts.[a-z]+, {NAMES}",
        ),
        (PEFT.replace("q_proj", ".+_proj"), f"lora.targetModules: target_modules is .+_proj, {NAMES}"),
        (f"{AXOLOTL}lora_r: many\n", "lora.rank: lora_r is many, which is not a whole number"),
        (f"{AXOLOTL}lora_r: .inf\n", "lora.rank: lora_r is Infinity, which is not a whole number"),
        (f"{AXOLOTL}lora_alpha: 16.5\n", "lora.alpha: lora_alpha is 16.5, which is not a whole number"),
        (f"{AXOLOTL}learning_rate: fast\n", "training.learningRate: learning_rate is fast, which is not a number"),
        (f"{AXOLOTL}micro_batch_size: 0\n", f"training.microBatchSize: micro_batch_size is 0, {NO_COUNT}"),
        (f"{AXOLOTL}micro_batch_size: many\n", f"training.microBatchSize: micro_batch_size is many, {NO_COUNT}"),
        (
            f"{AXOLOTL}gradient_accumulation_steps: 0\n",
            f"training.effectiveBatchSize: gradient_accumulation_steps is 0, {NO_COUNT}",
        ),
        (f"{AXOLOTL}val_set_size: some\n", "dataset.validationFraction: val_set_size is some, which is not a number"),
        (f"{TRL} --learning_rate $LR", "training.learningRate: learning_rate is $LR, a variable of the shell"),
        (f"{TRL} --lora_r ${{R:-8}}", "lora.rank: lora_r is ${R:-8}, a variable of the shell"),
        (f"{TRL} --max_steps $S", "training.maxSteps: max_steps is $S, a variable of the shell"),
        (f"{TRL} --max_length $L --packing", "training.maxSequenceLength: max_length is $L, a variable of the shell"),
        (f"{TRL} --packing $P", "training.packing: packing is $P, a variable of the shell"),
        (f"{TRL} --use_dora $D", "spec: use_dora is $D, a variable of the shell"),
        (
            f"torchrun --nnodes $N --nproc_per_node 8 {TRL}",
            "training.effectiveBatchSize: nnodes is $N, a variable of the shell",
        ),
        (
            "trl sft --use_peft --model_name_or_path $M",
            "model.uri: model_name_or_path is $M, a variable of the shell: write hf://, s3:// or pvc://claim/path",
        ),
        (
            f"{TRL} --max_length null",
            "training.maxSequenceLength: max_length is null, no limit: write the tokens of the longest row",
        ),
    ],
)
def test_a_value_that_a_field_does_not_have_is_to_be_filled_in(text: str, want: str) -> None:
    """Rather than replaced by a default among what does not matter."""
    found = convert(text, name="x")
    option = want.partition(": ")[2].partition(" is ")[0]
    assert [entry for entry in found.to_fill if f" {option} is " in entry] == [want]
    assert option not in {name for name, _, _ in found.left}
    assert option not in {name for names, _ in found.mapped for name in names.split(", ")} or option in SWITCHES


SWITCHES = ("packing",)
"""Taken for off as long as nothing is filled in."""


@pytest.mark.parametrize(
    ("text", "want"),
    [
        (f"{AXOLOTL}seed: -1\n", "training.seed: it is -1: must be"),
        (f"{AXOLOTL}max_grad_norm: 1e9\n", 'training.maxGradNorm: it is "1000000000", which is not'),
        (f"{AXOLOTL}lora_dropout: 1.0\n", 'lora.dropout: it is "1", which is not'),
        (
            f"{AXOLOTL}datasets: [{{path: c/d, split: 'train[:80%]'}}]\n",
            'dataset.split: it is "train[:80%]", which is not',
        ),
        (
            f"{FACTORY}pissa_init: true\nquantization_bit: 4\n",
            'lora.init: it is "PiSSA": does not go with quantization',
        ),
        (f"{AXOLOTL}datasets: [{{path: 'oci://r/d'}}]\n", 'dataset.uri: it is "oci://r/d", which '),
        (
            "base_model: https://huggingface.co/a/b\nadapter: lora\n",
            'model.uri: it is "https://huggingface.co/a/b", which has no supported',
        ),
    ],
)
def test_what_the_contract_refuses_is_to_be_filled_in(text: str, want: str) -> None:
    """Before a cluster says so."""
    assert [entry for entry in convert(text, name="x").to_fill if entry.startswith(want)]


@pytest.mark.parametrize(
    ("text", "want"),
    [
        ("base_model: s3://models/m\ndatasets: [{path: s3://bkt/x.jsonl}]\n", ("s3://models/m", "s3://bkt/x.jsonl")),
        ("base_model: hf://a/b\ndatasets: [{path: pvc://claim/rows}]\n", ("hf://a/b", "pvc://claim/rows")),
        (
            "base_model: hf://a/b\nrevision_of_model: v1\ndatasets: [{path: configmap://n/k}]\n",
            ("hf://a/b@v1", "configmap://n/k"),
        ),
    ],
)
def test_an_address_of_this_api_stays_as_it_is(text: str, want: tuple[str, str]) -> None:
    """Axolotl takes those of a bucket, too."""
    found = convert(f"{text}adapter: lora\n", name="x")
    assert (found.manifest["spec"]["model"]["uri"], found.manifest["spec"]["dataset"]["uri"]) == want
    assert not [entry for entry in found.to_fill if ".uri" in entry]


@pytest.mark.parametrize(
    ("text", "want"),
    [
        ("base_model: gpt2\ndatasets: [{path: c/d}]\n", "base_model is gpt2, which lacks its organisation on the Hub"),
        ("base_model: a/b\ndatasets: [{path: imdb}]\n", "path is imdb, which lacks its organisation on the Hub"),
        ("base_model: ./m\ndatasets: [{path: c/d}]\n", "base_model is ./m, which is not a name on the Hub"),
        ("base_model: [a/b, '^']\ndatasets: [{path: c/d}]\n", "base_model is ['a/b', '^'], which is not a name"),
    ],
)
def test_a_name_that_is_no_address_is_to_be_filled_in(text: str, want: str) -> None:
    """With what it lacks."""
    (entry,) = [entry for entry in convert(f"{text}adapter: lora\n", name="x").to_fill if ".uri" in entry]
    assert want in entry


@pytest.mark.parametrize(
    ("value", "want"),
    [
        *((value, "Full") for value in ("true", "offload", "offload_disk", "unsloth")),
        *((value, "None") for value in ("false", "no", "'none'", "0", "'off'")),
    ],
)
def test_every_form_of_recomputation_is_one(value: str, want: str) -> None:
    """Those that also move activations off the GPU are its strongest."""
    spec = convert(f"{AXOLOTL}gradient_checkpointing: {value}\n", name="x").manifest["spec"]
    assert spec["training"]["activationCheckpointing"] == want


@pytest.mark.parametrize(
    ("text", "option", "why"),
    [
        (
            f"{TRL} --eval_strategy steps --dataset_name c/d --dataset_test_split test_sft",
            "dataset_test_split",
            "held out",
        ),
        (f"{TRL} --dataset_test_split test", "dataset_test_split", "no rows are held out"),
        *((f"{text}hub_model_id: tone\n", "hub_model_id", "publishes there") for text in (AXOLOTL, FACTORY)),
        (f"{AXOLOTL}peft_use_dora: false\n", "peft_use_dora", "changes nothing"),
        (f"{FACTORY}use_rslora: perhaps\n", "use_rslora", "changes nothing"),
        (f"{TRL} --batch_size 64", "batch_size", "no such option"),
    ],
)
def test_an_option_that_comes_to_nothing_is_named(text: str, option: str, why: str) -> None:
    """With the reason."""
    assert [name for name, _, reason in convert(text, name="x").left if name == option and why in reason]


def test_qlora_stands_for_four_bits() -> None:
    """By itself, and is named for it."""
    found = convert("base_model: a/b\nadapter: qlora\n", name="x")
    assert found.manifest["spec"]["quantization"] == "NF4"
    assert [names for names, field in found.mapped if field == "quantization"] == ["adapter"]


def test_a_fast_decomposition_is_computed_exactly() -> None:
    """With however many iterations."""
    assert convert(f"{PEFT} --init_lora_weights pissa_niter_4", name="x").manifest["spec"]["lora"]["init"] == "PiSSA"
