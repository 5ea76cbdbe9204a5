"""SIGTERM in the middle of a training, its state in files, and another one that goes on as if nothing had been."""

import json
import os
import signal
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from benchmarks.acceptance.bench import Bench
from benchmarks.acceptance.findings import Check, Outcome, judged, not_run
from benchmarks.acceptance.models import Recipe, Taken, adapter_for, prepared, random_base

from lora_trainer.errors import TerminatedError
from lora_trainer.spec import codec
from lora_trainer.spec.config import Optimizer
from lora_trainer.storage.base import Base
from lora_trainer.train.callbacks import Step
from lora_trainer.train.loop import Training
from lora_trainer.train.state import State, TrainerState, copy_of
from lora_trainer.train.stopping import Stop

_STOP_AFTER = 3
_CLOSE = {torch.float32: 1e-4, torch.bfloat16: 2e-2, torch.float16: 5e-3}
"""Most relative difference of losses, on a device that gives others each time."""


class _Killed(Taken):
    """Sends its own process SIGTERM after a step."""

    def stepped(self, step: Step) -> None:
        """Keep it."""
        super().stepped(step)
        if step.number == _STOP_AFTER:
            os.kill(os.getpid(), signal.SIGTERM)


def checks(bench: Bench) -> Iterator[Check]:
    """With dropout, whose random numbers must be the same again, and with every optimizer that the device has."""
    for optimizer in Optimizer:
        yield Check(name=f"SIGTERM and resume, {optimizer.value}", run=partial(_resumes, bench, optimizer))


def _resumes(bench: Bench, optimizer: Optimizer) -> Outcome:
    if optimizer is Optimizer.PAGED_ADAMW_8BIT and not bench.on_gpu:
        return not_run("a CPU has nothing to page")
    recipe = Recipe(lora=adapter_for(optimizer, dropout=0.1))
    recipe = replace(recipe, training=replace(recipe.training, max_steps=6, optimizer=optimizer))
    with tempfile.TemporaryDirectory() as folder:
        base = random_base(Path(folder), "llama", bench.sizes, bench.device)
        once, twice = (_whole(base, recipe, bench) for _ in range(2))
        state = _stopped(base, recipe, bench)
        resumed = Taken()
        training = prepared(base, recipe, bench.device, bench, resumed)
        training.restore(state)
        training.run()
    repeatable = once == twice
    found = _end(training, resumed)
    same = found[0] == once[0] and found[1] == once[1][-len(found[1]) :]
    losses = once[1][-len(found[1]) :]
    apart = max(abs(one / other - 1) for one, other in zip(found[1], losses, strict=True))
    if repeatable:
        return judged(
            same,
            f"{'the same' if same else 'not the same'} bytes after {state.trainer_state.step} + 3 steps",
            apart=apart,
        )
    said = f"the device gives other bytes each time; losses {apart:.1e} apart"
    return judged(apart <= _CLOSE[bench.device.dtype], said, apart=apart)


def _end(training: Training, taken: Taken) -> tuple[bytes, list[float]]:
    """The adapter's bytes and the losses."""
    values = copy_of(training.parameters).values()
    return b"".join(value.numpy().tobytes() for value in values), taken.losses


def _whole(base: Base, recipe: Recipe, bench: Bench) -> tuple[bytes, list[float]]:
    taken = Taken()
    training = prepared(base, recipe, bench.device, bench, taken)
    training.run()
    return _end(training, taken)


def _stopped(base: Base, recipe: Recipe, bench: Bench) -> State:
    """The state of a training that SIGTERM ended, as it comes back from files."""
    stop = Stop()
    training = prepared(base, recipe, bench.device, bench, _Killed(), stop=stop)
    with _handled(stop):
        try:
            training.run()
        except (TerminatedError, SystemExit):
            return _through_files(training.state())
    raise RuntimeError("the training did not hear SIGTERM")


@contextmanager
def _handled(stop: Stop) -> Iterator[None]:
    before = signal.signal(signal.SIGTERM, stop.handle)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _through_files(state: State) -> State:
    with tempfile.TemporaryFile() as file:
        torch.save({"adapter": state.adapter, "optimizer": state.optimizer, "scaler": state.scaler}, file)
        file.seek(0)
        read = torch.load(file, map_location="cpu", weights_only=True)
    trainer_state = codec.decode(TrainerState, json.loads(json.dumps(codec.encode(state.trainer_state))))
    return replace(state, trainer_state=trainer_state, **read)
