"""What the examples' comments say of memory is what the plan says."""

import re
from pathlib import Path

import pytest
import yaml
from tests.unit.fit_models import LLAMA_2_13B, llama

from lora_trainer.contract.config import TrainConfig
from lora_trainer.contract.fit.adapter import plan_adapter
from lora_trainer.contract.fit.devices import KNOWN
from lora_trainer.contract.fit.families import shape_of
from lora_trainer.contract.fit.planning import plan_of
from lora_trainer.contract.fit.shape import Shape
from lora_trainer.contract.manifest import RunOptions, train_config
from lora_trainer.contract.run_plan import RunPlan

EXAMPLES = Path(__file__).parents[2] / "examples"
SHAPE = shape_of(llama())
"""Of Llama-3.1-8B, which differs from Llama-3-8B in its positions alone."""
OTHERS = {
    "13b-24gb.yaml": shape_of(LLAMA_2_13B),
    "70b.yaml": shape_of(
        llama(hidden_size=8192, intermediate_size=28672, num_hidden_layers=80, num_attention_heads=64)
    ),
}


def read(name: str) -> tuple[str, TrainConfig]:
    """The comments as one line, and the run."""
    text = (EXAMPLES / name).read_text(encoding="utf-8")
    comments = " ".join(line.removeprefix("#") for line in text.splitlines() if line.startswith("#"))
    return " ".join(comments.split()), train_config(yaml.safe_load(text), RunOptions(uid="u", strict=True))


def plan(config: TrainConfig, gpu: str | None = None, shape: Shape = SHAPE) -> RunPlan:
    """The plan of a run with that model."""
    device = next((known for known in KNOWN if known.name == gpu), None)
    return plan_of(config, shape, plan_adapter(config.lora, shape), gpu=device)


@pytest.mark.parametrize(
    ("name", "settled"), [("t4.yaml", "NF4"), ("24gb.yaml", "None"), ("13b-24gb.yaml", "NF4"), ("70b.yaml", "None")]
)
def test_an_example_for_a_card_has_its_plan(name: str, settled: str) -> None:
    """Word by word, for the device that its own fields tell."""
    comments, config = read(name)
    found = plan(config, shape=OTHERS.get(name, SHAPE))
    assert found.device_bytes is not None
    assert (found.fits, found.quantization.value) == (True, settled)
    assert f"{found.reason}." in comments


def test_the_example_for_any_gpu_has_what_is_settled_on_each() -> None:
    """All GPUs that are known, in a table."""
    comments, config = read("auto.yaml")
    assert plan(config).device is None
    for gpu in KNOWN:
        found = plan(config, gpu.name)
        manner = {"None": "kept", "Selective": "MLPs recomputed", "Full": "recomputed"}[found.manner.value]
        way = f"{found.quantization.value}, {manner}, {found.micro_batch_tokens:,} tokens"
        assert f"{gpu.name} {way}: {found.peak_bytes / 2**30:.1f} GiB" in comments, gpu.name
    assert len(re.findall(r" GiB(?= )", comments)) == len(KNOWN)


def test_every_example_of_a_run_can_be_planned() -> None:
    """As strictly as kubectl applies it, and for the model that most of them have."""
    runs = [
        (path.name, document)
        for path in sorted(EXAMPLES.glob("*.yaml"))
        for document in yaml.safe_load_all(path.read_text(encoding="utf-8"))
        if document and document["kind"] == "LoRAFineTune"
    ]
    assert len(runs) > 15
    for name, document in runs:
        config = train_config(document, RunOptions(uid="u", strict=True))
        assert name == "every-field.yaml" or plan(config).claim_bytes > 0


def test_the_pages_say_of_a_claim_what_a_plan_says() -> None:
    """The size of a checkpoint and of all that a run of the README's kind takes; fit.md has what the command prints."""
    found = plan(read("private-data.yaml")[1])
    sizes = (f"{found.checkpoint_bytes / 2**20:.0f} MiB", f"{found.claim_bytes / 2**30:.1f} GiB")
    text = (EXAMPLES.parent / "docs" / "install.md").read_text(encoding="utf-8")
    assert all(size in text for size in sizes)


@pytest.mark.parametrize(
    ("page", "shape", "said"),
    [
        ("examples/70b.yaml", OTHERS["70b.yaml"], "{} GB of disk for the model"),
        ("docs/install.md", SHAPE, "(8B: {} GB)"),
    ],
)
def test_the_disk_of_a_node_without_a_cache_is_the_weights(page: str, shape: Shape, said: str) -> None:
    """In 16 bits, as the Hub has them."""
    assert said.format(round(2 * shape.parameters / 1e9)) in (EXAMPLES.parent / page).read_text(encoding="utf-8")


CLAIM = re.compile(r"name: adapters\}?\n(?:.*\n){0,5}?.*storage: ([0-9A-Za-z]+)")


def test_the_claim_for_adapters_has_one_size_wherever_it_is_made() -> None:
    """Ten runs of an 8B model, while they train."""
    root = EXAMPLES.parent
    notes = "helm/lora-finetune-operator/templates/NOTES.txt"
    files = ("examples/quickstart-inputs.yaml", "examples/team.yaml", "docs/install.md", "docs/quickstart.md", notes)
    sizes = {file: CLAIM.findall((root / file).read_text(encoding="utf-8")) for file in files}
    assert sizes == {file: ["20Gi"] for file in files}
    assert plan(read("private-data.yaml")[1]).claim_bytes * 10 < 20 * 2**30
