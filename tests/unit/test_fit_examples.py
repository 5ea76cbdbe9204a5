"""The examples can be planned, and what is made for a card fits it."""

from pathlib import Path

import pytest
import yaml
from tests.unit.fit_models import LLAMA_2_13B, llama

from lora_trainer.plan.adapter import plan_adapter
from lora_trainer.plan.architecture import ModelArchitecture
from lora_trainer.plan.families import architecture_of
from lora_trainer.plan.planning import plan_of
from lora_trainer.spec.config import TrainConfig
from lora_trainer.spec.gpus import KNOWN
from lora_trainer.spec.manifest import RunOptions, train_config
from lora_trainer.spec.run_plan import RunPlan

EXAMPLES = Path(__file__).parents[2] / "examples"
SHAPE = architecture_of(llama())
"""Of Llama-3.1-8B, which differs from Llama-3-8B in its positions alone."""
OTHERS = {
    "13b-24gb.yaml": architecture_of(LLAMA_2_13B),
    "70b.yaml": architecture_of(
        llama(hidden_size=8192, intermediate_size=28672, num_hidden_layers=80, num_attention_heads=64)
    ),
}


def read(name: str) -> TrainConfig:
    """The run."""
    return train_config(yaml.safe_load((EXAMPLES / name).read_text(encoding="utf-8")), RunOptions(uid="u", strict=True))


def plan(config: TrainConfig, gpu: str | None = None, shape: ModelArchitecture = SHAPE) -> RunPlan:
    """The plan of a run with that model."""
    device = next((known for known in KNOWN if known.name == gpu), None)
    return plan_of(config, shape, plan_adapter(config.lora, shape), gpu=device)


@pytest.mark.parametrize(
    ("name", "settled"), [("t4.yaml", "NF4"), ("24gb.yaml", "None"), ("13b-24gb.yaml", "NF4"), ("70b.yaml", "None")]
)
def test_an_example_for_a_card_has_its_plan(name: str, settled: str) -> None:
    """For the device that its own fields tell."""
    config = read(name)
    found = plan(config, shape=OTHERS.get(name, SHAPE))
    assert found.device_bytes is not None
    assert (found.fits, found.quantization.value) == (True, settled)


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
