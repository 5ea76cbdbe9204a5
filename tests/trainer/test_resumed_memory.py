"""A run that goes on holds its state once: on the device, and not in main memory, too."""

import gc
import shutil
import weakref
from pathlib import Path
from typing import Any

import pytest
from tests.trainer import tiny
from tests.trainer.conftest import make_config
from tests.trainer.runs import prepared

from lora_trainer.distributed.reports import Reporter
from lora_trainer.errors import TerminatedError
from lora_trainer.result.export import write_result
from lora_trainer.storage.hub import Hub
from lora_trainer.storage.manifest import read_manifest
from lora_trainer.storage.volumes import Volumes
from lora_trainer.train.loop import Training
from lora_trainer.train.run import RunContext, run_training
from lora_trainer.train.state import State, TrainerState, read_state

TRAINING = {"maxSteps": 4, "effectiveBatchSize": 8, "learningRate": "0.01"}


@pytest.mark.parametrize("init", ["Default", "PiSSA"])
def test_the_state_is_let_go_of_before_the_training(
    tmp_path: Path, tiny_folder: Path, monkeypatch: pytest.MonkeyPatch, init: str
) -> None:
    """Of what was read from the checkpoint, only what the optimizer took over as it is may live on."""
    claims, adapter = tmp_path / "claims", tmp_path / "adapter"
    tiny.write_jsonl(claims / "data/train.jsonl", tiny.chats(20))
    shutil.copytree(tiny_folder, claims / "models/tiny")
    adapter.mkdir()
    (tmp_path / "run").mkdir()
    config = make_config(training=TRAINING, lora={"init": init, "rank": 4}, checkpoint={"volumeClaimName": "c"})
    volumes = Volumes(claims=claims)
    data = prepared(config, volumes, tmp_path / "prepared")

    def attempt() -> None:
        run_context = RunContext(folder=tmp_path / "run")
        run_training(
            config,
            data,
            volumes,
            Hub(),
            folder=adapter,
            reporter=Reporter(None),
            run_context=run_context,
            write_result=write_result,
        )

    take, run = Training._take, Training.run
    read_tensors: list[weakref.ref[Any]] = []
    alive: list[int] = []

    def stopped(training: Training, number: int, rows: Any) -> None:
        take(training, number, rows)
        training.stop.requested = number == 2

    def watched_read(folder: Path) -> State:
        state = read_state(folder)
        starts = [tensor for start in state.starts.values() for tensor in (start.lora_a, start.lora_b)]
        read_tensors.extend(weakref.ref(tensor) for tensor in (*state.adapter.values(), *starts))
        return state

    def watched_run(training: Training) -> TrainerState:
        gc.collect()
        alive.append(sum(tensor() is not None for tensor in read_tensors))
        return run(training)

    with monkeypatch.context() as patch:
        patch.setattr(Training, "_take", stopped)
        with pytest.raises(TerminatedError):
            attempt()
    monkeypatch.setattr("lora_trainer.train.resume.read_state", watched_read)
    monkeypatch.setattr(Training, "run", watched_run)
    attempt()
    assert read_tensors
    assert alive == [0]
    assert read_manifest(adapter).measured.resumed_step == 2
