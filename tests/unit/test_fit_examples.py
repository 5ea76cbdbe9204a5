"""What the examples' comments say of memory is what the plan says."""

import re
from pathlib import Path

import pytest
import yaml
from tests.unit.fit_models import llama

from lora_trainer.contract.config import TrainConfig
from lora_trainer.contract.fit.adapter import plan_adapter
from lora_trainer.contract.fit.devices import KNOWN
from lora_trainer.contract.fit.families import shape_of
from lora_trainer.contract.fit.planning import plan_of
from lora_trainer.contract.manifest import RunOptions, train_config
from lora_trainer.contract.run_plan import RunPlan

EXAMPLES = Path(__file__).parents[2] / "examples"
SHAPE = shape_of(llama())
"""Of Llama-3.1-8B, which differs from Llama-3-8B in its positions alone."""


def read(name: str) -> tuple[str, TrainConfig]:
    """The comments as one line, and the run."""
    text = (EXAMPLES / name).read_text(encoding="utf-8")
    comments = " ".join(line.removeprefix("#") for line in text.splitlines() if line.startswith("#"))
    return " ".join(comments.split()), train_config(yaml.safe_load(text), RunOptions(uid="u", strict=True))


def plan(config: TrainConfig, gpu: str | None = None) -> RunPlan:
    """The plan of a run with that model."""
    device = next((known for known in KNOWN if known.name == gpu), None)
    return plan_of(config, SHAPE, plan_adapter(config.lora, SHAPE), gpu=device)


@pytest.mark.parametrize(("name", "settled"), [("t4.yaml", "NF4"), ("24gb.yaml", "None")])
def test_an_example_for_a_card_has_its_plan(name: str, settled: str) -> None:
    """Word by word, for the device that its own fields tell."""
    comments, config = read(name)
    found = plan(config)
    assert found.device_bytes is not None
    assert (found.fits, found.quantization.value) == (True, settled)
    assert f"{found.reason}." in comments


def test_the_example_for_any_gpu_has_what_is_settled_on_each() -> None:
    """All GPUs that are known, in a table."""
    comments, config = read("auto.yaml")
    assert plan(config).device is None
    for gpu in KNOWN:
        found = plan(config, gpu.name)
        manner = "recomputed" if found.activation_checkpointing else "kept"
        way = f"{found.quantization.value}, {manner}, {found.micro_batch_tokens:,} tokens"
        assert f"{gpu.name} {way}: {found.peak_bytes / 2**30:.1f} GiB" in comments, gpu.name
    assert len(re.findall(r" GiB(?= )", comments)) == len(KNOWN)
