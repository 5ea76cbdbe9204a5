"""Optimizer steps as the trainer takes them, on a row, to be measured."""

import time
from collections.abc import Callable

import torch
from benchmarks.acceptance.models import one_row

from lora_trainer.distributed.collectives import Ranks
from lora_trainer.model.device import Device
from lora_trainer.model.loading import Adapted, set_input_casts
from lora_trainer.train.batches import MicroBatchLimit
from lora_trainer.train.objective import SFT
from lora_trainer.train.step import run_step


def stepper(
    adapted: Adapted, tokens: int, device: Device, *, packs: bool, micro_batches: int = 1
) -> Callable[[], None]:
    """An optimizer step over as many micro-batches of one row, which waits for the device no more than the trainer's
    own. From the second micro-batch on there are gradients beside what a forward pass keeps."""
    row = one_row(tokens, int(adapted.model.config.vocab_size))
    limit = MicroBatchLimit(tokens=tokens, longest=tokens, packed=packs)
    scaler = torch.amp.GradScaler(device.torch_device.type, enabled=device.dtype is torch.float16)
    parameters = [parameter for parameter in adapted.model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(parameters, fused=True)
    set_input_casts(adapted.model, on=device.dtype is torch.float32)

    def step() -> None:
        share = run_step(
            adapted,
            [row] * micro_batches,
            objective=SFT,
            weights={"loss": micro_batches * row.targets},
            limit=limit,
            device=device,
            scaler=scaler,
            ranks=Ranks(),
        )
        scaler.unscale_(optimizer)
        norm = torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        torch.stack([share, norm.double()]).tolist()
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad(set_to_none=True)

    return step


def timed(step: Callable[[], None], device: Device, *, warm: int, count: int, most_s: float) -> float:
    """Seconds of one of `count` steps, after `warm` others. On a slow GPU, of no more than about `most_s` hold: other
    checks are to come."""
    expected = min(_seconds(step, device, 1) for _ in range(warm))
    return _seconds(step, device, max(1, min(count, int(most_s / expected))))


def _seconds(step: Callable[[], None], device: Device, count: int) -> float:
    _wait(device)
    started = time.perf_counter()
    for _ in range(count):
        step()
    _wait(device)
    return (time.perf_counter() - started) / count


def _wait(device: Device) -> None:
    if device.torch_device.type == "cuda":
        torch.cuda.synchronize(device.torch_device)
