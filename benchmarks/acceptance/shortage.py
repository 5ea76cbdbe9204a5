"""Out of memory in the middle of a step: micro-batches halve, and the losses stay what they were."""

import contextlib
import gc
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import torch
from benchmarks.acceptance.bench import Bench
from benchmarks.acceptance.findings import Check, Outcome, judged, not_run
from benchmarks.acceptance.models import Recipe, Taken, prepared, random_base

from lora_trainer.model.device import Device
from lora_trainer.train.loop import Training

_SAME = {torch.float32: 1e-4, torch.bfloat16: 2e-2, torch.float16: 5e-3}
"""Most relative difference of a step's loss: sums go in another order."""
Short = Callable[[Training], contextlib.AbstractContextManager[None]]


def checks(bench: Bench) -> Iterator[Check]:
    """An error that is injected, which any device can show, and a real one."""
    yield Check(name="halving, injected error", run=partial(_halves, bench, _injected))
    yield Check(name="halving, real error", run=partial(_really, bench))


def _really(bench: Bench) -> Outcome:
    """With all of the GPU's memory taken but what lies between what whole and halved micro-batches need."""
    if not bench.on_gpu:
        return not_run("a CPU has no memory of its own")
    with tempfile.TemporaryDirectory() as folder:
        base = random_base(Path(folder), "llama", bench.sizes, bench.device)
        needs = []
        for parts in (1, 2):
            training = prepared(base, _recipe(bench, parts), bench.device, bench, Taken())
            before = _used(bench.device)
            training.run()
            needs.append(bench.device.peak_memory_bytes() - before)
            del training
    return _halves(bench, partial(_ballast, bench.device, sum(needs) // 2))


def _used(device: Device) -> int:
    """Bytes of the device that are taken; a new measurement of their peak begins."""
    gc.collect()
    device.give_back()
    device.reset_peak_memory()
    return int(torch.cuda.memory_allocated(device.torch_device))


def _recipe(bench: Bench, parts: int) -> Recipe:
    tokens = 4 * max(bench.lengths)
    return Recipe(tokens=tokens // parts)


def _halves(bench: Bench, short: Short) -> Outcome:
    with tempfile.TemporaryDirectory() as folder:
        base = random_base(Path(folder), "llama", bench.sizes, bench.device)
        enough, lacking = Taken(), Taken()
        prepared(base, _recipe(bench, 1), bench.device, bench, enough).run()
        bench.device.give_back()
        training = prepared(base, _recipe(bench, 1), bench.device, bench, lacking)
        before = training.limit.tokens
        with short(training):
            training.run()
    apart = max(abs(one / other - 1) for one, other in zip(lacking.losses, enough.losses, strict=True))
    right = bool(lacking.limits) and apart <= _SAME[bench.device.dtype]
    said = f"{before} tokens to {lacking.limits or 'no fewer'}, losses of {len(lacking.losses)} steps {apart:.1e} apart"
    return judged(right, said, apart=apart, halvings=len(lacking.limits))


@contextlib.contextmanager
def _injected(training: Training) -> Iterator[None]:
    """What PyTorch raises, at the third micro-batch."""
    passes: list[int] = []

    def look(*_: object) -> None:
        passes.append(1)
        if len(passes) == 3:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB")

    handle = training.adapted.model.register_forward_pre_hook(look)
    try:
        yield
    finally:
        handle.remove()


@contextlib.contextmanager
def _ballast(device: Device, left: int, _training: Training) -> Iterator[None]:
    """The driver's memory taken but for `left` bytes."""
    # Models of before that go in the middle of a step would give it the memory that it is to lack.
    gc.collect()
    device.give_back()
    free, _ = torch.cuda.mem_get_info(device.torch_device)
    taken = torch.empty(max(0, free - left), dtype=torch.uint8, device=device.torch_device)
    try:
        yield
    finally:
        del taken
