"""The step whose memory is measured on a GPU: all that the fit model counts is there at its peak."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from benchmarks import memory
from benchmarks.acceptance.bench import Bench
from benchmarks.acceptance.shapes import LLAMA_3_8B
from benchmarks.memory_estimate import estimate
from benchmarks.memory_simulation import Step

from lora_trainer.model.device import Device
from lora_trainer.spec.config import LoraConfig
from lora_trainer.train import step
from lora_trainer.train.loss import token_losses

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


@pytest.mark.parametrize(
    ("capability", "dtype", "packs"),
    [((7, 5), torch.float16, False), ((8, 6), torch.bfloat16, True), ((9, 0), torch.float32, False)],
    ids=["T4", "A10", "fp32"],
)
def test_a_step_is_estimated_with_the_kernel_that_the_gpu_has(
    cpu: Device, monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int], dtype: torch.dtype, packs: bool
) -> None:
    """Without one for packs, keys and values of each head are kept: a T4 that is sound would fail in the part `fit`."""
    asked: list[bool] = []

    def look(config: Any, how: Step) -> Any:
        asked.append(how.packs)
        return estimate(config, how)

    def no_room(*_: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(memory, "estimate", look)
    monkeypatch.setattr(memory, "_adapted", no_room)
    gpu = replace(cpu, capability=capability, dtype=dtype)
    assert memory.measured(LLAMA_3_8B, Step(rows=(1024,)), gpu) is None
    assert asked == [packs]
