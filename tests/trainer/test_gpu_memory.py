"""The step whose memory is measured on a GPU: all that the fit model counts is there at its peak."""

from typing import Any

import pytest
import torch
from benchmarks import memory
from benchmarks.acceptance.bench import Bench
from benchmarks.memory_simulation import Step

from lora_trainer.contract.config import LoraConfig
from lora_trainer.model.device import Device
from lora_trainer.training import step
from lora_trainer.training.loss import token_losses

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")


@pytest.mark.parametrize("packs", [True, False], ids=["packed", "padded"])
def test_gradients_are_there_at_the_peak(cpu: Device, monkeypatch: pytest.MonkeyPatch, packs: bool) -> None:
    """As in a training, whose steps have several micro-batches: the first has no gradients yet, and four bytes for each
    trained value would be missing."""
    adapted, seen = memory._adapted, list[tuple[int, int]]()

    def look(model: torch.nn.Module, *given: Any) -> torch.Tensor:
        trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        seen.append((len(trained), sum(parameter.grad is not None for parameter in trained)))
        return token_losses(model, *given)

    monkeypatch.setattr(step, "token_losses", look)
    monkeypatch.setattr(memory, "_adapted", lambda *given: (adapted(*given)[0], packs))
    shape = {**Bench(device=cpu, tiny=True).sizes, "model_type": "llama", "attention_bias": False}
    how = Step(rows=(32,), lora=LoraConfig(rank=4, alpha=8), fp32=True, packs=packs)
    assert memory.measured(shape, how, cpu) is not None
    trained = seen[0][0]
    assert seen == 3 * [(trained, 0), (trained, trained)]
