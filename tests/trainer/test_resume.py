"""Attempts of whole runs: what they go on from, what they refuse, and who may write."""

import hashlib
import json
import logging
import os
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.trainer import tiny
from tests.trainer.forked import ForkedRuns
from tests.trainer.runs import PATIENCE_S, Workplace
from tests.trainer.stages import Attempt, Place, finish

from lora_trainer import ask
from lora_trainer.data.tokenizer import load_encoder
from lora_trainer.errors import CheckpointError, ConfigError, VerificationError
from lora_trainer.result.export_checkpoint import export_checkpoint
from lora_trainer.result.inputs import base_and_rows
from lora_trainer.spec.config import LossOn, Quantization
from lora_trainer.spec.exit_codes import ExitCode
from lora_trainer.spec.names import run_suffix
from lora_trainer.spec.reasons import Reason
from lora_trainer.storage.base import open_folder
from lora_trainer.storage.hub import Hub
from lora_trainer.storage.manifest import read_manifest
from lora_trainer.storage.run_folders import FOLDER
from lora_trainer.storage.volumes import Volumes

TRAINING = {"maxSteps": 6, "effectiveBatchSize": 4, "learningRate": "0.01"}
OTHER_ROWS = "other rows are held out than in the run"


def place_of(
    workplace: Workplace, name: str = "tiny", uid: str = "uid-1", resume_from: str | None = None, **sections: Any
) -> Place:
    """A run of six steps that keeps the state of every second one, in its folder on the claim."""
    sections = {"checkpoint": {"intervalSteps": 2}, **sections}
    config = workplace.config_file(uid, **{**sections, "training": {**TRAINING, **sections.get("training", {})}})
    document = json.loads(config.read_text(encoding="utf-8"))
    document["run"]["name"], document["resume_from"] = name, resume_from
    own = workplace.root / f"{name}.json"
    own.write_text(json.dumps(document), encoding="utf-8")
    workspace = workplace.claims / "adapters" / FOLDER / f"{name}-{run_suffix(uid)}"
    workspace.mkdir(parents=True, exist_ok=True)
    return Place(claims=workplace.claims, workspace=workspace, config=own)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, tiny_folder: Path) -> Workplace:
    """Claims on which a run ended its training, with the states after steps 4 and 6."""
    workplace = Workplace.make(tmp_path_factory.mktemp("trained"), tiny_folder)
    place = place_of(workplace)
    assert finish(place).process.exitcode == 0
    assert place.checkpoint_steps() == [4, 6]
    return workplace


@pytest.fixture
def done(workplace: Workplace, trained: Workplace) -> Place:
    """Such a run on the test's own claims."""
    shutil.copytree(trained.claims, workplace.claims, dirs_exist_ok=True)
    return place_of(workplace)


def weights(place: Place) -> bytes:
    """Of the result."""
    return (place.staged / "adapter_model.safetensors").read_bytes()


def damage(place: Place, step: int) -> None:
    """Cut a file of a checkpoint."""
    path = place.workspace / f"step-{step:08d}/optimizer.safetensors"
    path.write_bytes(path.read_bytes()[:-7])


def refused(attempt: Attempt, code: ExitCode, reason: Reason, *sentences: str) -> None:
    """Check how an attempt ended."""
    failure = attempt.failure()
    assert (attempt.process.exitcode, failure["reason"]) == (int(code), reason.value), failure
    for sentence in sentences:
        assert sentence in failure["message"]


def test_a_damaged_newest_state_falls_back_and_gives_the_same_adapter(done: Place) -> None:
    """What is between the two is trained again; where none is whole the run ends, with all that is there left alone."""
    first = weights(done)
    damage(done, 6)
    attempt = finish(done)
    assert (attempt.process.exitcode, attempt.resumed_step()) == (0, 4)
    assert weights(done) == first
    assert done.checkpoint_steps() == [4, 6]
    for step in (4, 6):
        damage(done, step)
    refused(finish(done), ExitCode.CHECKPOINT_INVALID, Reason.CHECKPOINT_INVALID, "none of the 2 checkpoints")
    assert done.checkpoint_steps() == [4, 6]


def rewrite(folder: Path, name: str, document: dict[str, Any]) -> None:
    """Change a file of a checkpoint, and what its manifest says of it."""
    (folder / name).write_text(json.dumps(document), encoding="utf-8")
    manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    (entry,) = (entry for entry in manifest["files"] if entry["path"] == name)
    content = (folder / name).read_bytes()
    entry.update(size_bytes=len(content), sha256=hashlib.sha256(content).hexdigest())
    (folder / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")


def test_a_chosen_template_lies_beside_the_adapter_and_may_not_change_during_a_run(workplace: Workplace) -> None:
    """Neither between attempts nor before the verification; questions are asked with the one beside the adapter."""
    template = workplace.claims / "templates/chat.jinja"
    template.parent.mkdir()
    template.write_text(tiny.CHATML.replace("{% if add", "{{ note }}{% if add"), encoding="utf-8")
    chosen = {"chatTemplate": "configmap://templates/chat.jinja", "templateArguments": {"note": "0"}}
    place = place_of(workplace, dataset=chosen)
    assert finish(place).process.exitcode == 0
    beside = (place.staged / "chat_template.jinja").read_text(encoding="utf-8")
    assert beside == "{% set note = note | default(0) %}" + template.read_text(encoding="utf-8")
    manifest = read_manifest(place.staged)
    assert "chat_template.jinja" in {entry.path for entry in manifest.files}
    assert "which is not the base model's own" in (place.staged / "README.md").read_text(encoding="utf-8")
    base = open_folder(workplace.claims / "models/tiny")
    encoder = load_encoder(base, LossOn.COMPLETION, 64, ask._chosen(place.staged))
    asked = encoder.tokenizer.decode(ask._prompt(encoder, place.staged, "Hi"))
    assert asked == "<|im_start|>user\nHi<|im_end|>\n0<|im_start|>assistant\n"
    # A ConfigMap is mounted elsewhere than a claim; here both are the same folder.
    volumes = Volumes(claims=workplace.claims, config_maps=workplace.claims)
    base_and_rows(manifest, volumes, Hub())
    template.write_text(tiny.CHATML, encoding="utf-8")
    with pytest.raises(VerificationError, match=r"dataset\.chatTemplate is configmap://.* has changed since the run"):
        base_and_rows(manifest, volumes, Hub())
    refused(finish(place), ExitCode.CHECKPOINT_INVALID, Reason.RESUME_MISMATCH, "has dataset.chatTemplate (content)")


def test_a_changed_configuration_or_data_set_is_refused(workplace: Workplace, done: Place) -> None:
    """78 with the field and both values, before the model is loaded; the states stay."""
    changed = place_of(workplace, training={"learningRate": "0.5"})
    sentence = "the checkpoint step-00000006 of tiny has training.learningRate 0.01, this run has 0.5"
    refused(finish(changed), ExitCode.CHECKPOINT_INVALID, Reason.RESUME_MISMATCH, sentence)
    again = place_of(workplace)
    tiny.write_jsonl(workplace.claims / "data/train.jsonl", tiny.chats(41))
    told = ("has dataset (content)", "this run has")
    refused(finish(again), ExitCode.CHECKPOINT_INVALID, Reason.RESUME_MISMATCH, *told)
    assert done.checkpoint_steps() == [4, 6]


def test_another_run_goes_on_at_the_step_of_the_one_that_it_names(workplace: Workplace, done: Place) -> None:
    """Its states are not touched; the new run has its own, and its own length and schedule."""
    longer = place_of(workplace, "longer", "uid-2", resume_from="tiny", training={"maxSteps": 8})
    attempt = finish(longer)
    assert (attempt.process.exitcode, attempt.resumed_step()) == (0, 6)
    assert longer.checkpoint_steps() == [6 + 2]
    assert done.checkpoint_steps() == [4, 6]
    assert read_manifest(longer.staged).measured.steps == 8

    same_length = place_of(workplace, "same", "uid-3", resume_from="tiny")
    sentence = "resumeFrom.name is tiny: its checkpoint is after step 6, and this run has 6 steps in all: raise"
    refused(finish(same_length), ExitCode.CHECKPOINT_INVALID, Reason.RESUME_MISMATCH, sentence)


def test_a_checkpoints_quantization_wins_over_what_auto_would_be_here(workplace: Workplace) -> None:
    """On a CPU, which would take the whole base: in the next attempt, which is the same training, and in another run
    that goes on from this one."""
    first = place_of(workplace, quantization="NF4", training={"maxSteps": 4})
    assert finish(first).process.exitcode == 0
    damage(first, 4)
    again = place_of(workplace, quantization="Auto", training={"maxSteps": 4})
    other = place_of(workplace, "other", "uid-2", resume_from="tiny", quantization="Auto")
    for place, step in ((again, 2), (other, 4)):
        attempt = finish(place)
        assert (attempt.process.exitcode, attempt.resumed_step()) == (0, step), attempt.lines()[-1]
        assert read_manifest(place.staged).config.quantization is Quantization.NF4


def test_another_run_goes_on_in_the_pass_where_a_run_by_epochs_ended(workplace: Workplace) -> None:
    """Its last step was short: the new run, which begins at the row after it, has one step more than its rows fill."""
    by_epochs = {"effectiveBatchSize": 5, "maxSteps": None}
    first = place_of(workplace, training={**by_epochs, "epochs": 1})
    assert finish(first).process.exitcode == 0
    assert read_manifest(first.staged).measured.steps == 7, "32 rows"
    second = place_of(workplace, "longer", "uid-2", resume_from="tiny", training={**by_epochs, "epochs": "1.0625"})
    attempt = finish(second)
    assert (attempt.process.exitcode, attempt.resumed_step()) == (0, 7)
    assert read_manifest(second.staged).measured.steps == 8


def test_another_run_starts_from_the_weights_where_the_rows_are_others(workplace: Workplace, done: Place) -> None:
    """At step 0, with the loss of the pristine base as the one before."""
    other = place_of(workplace, "other", "uid-2", resume_from="tiny", training={"effectiveBatchSize": 8})
    attempt = finish(other)
    assert (attempt.process.exitcode, attempt.resumed_step()) == (0, 0)
    before = read_manifest(done.staged).measured
    measured = read_manifest(other.staged).measured
    assert measured.eval_loss_before == pytest.approx(before.eval_loss_before)
    first = next(line["progress"]["loss"] for line in attempt.lines() if (line.get("progress") or {}).get("step") == 1)
    assert first < before.eval_loss_before - 0.2, "the training did not begin with the weights"
    assert OTHER_ROWS not in other.log.read_text(encoding="utf-8")


def test_other_held_out_rows_than_those_of_the_run_before_are_warned_of(workplace: Workplace, done: Place) -> None:
    """Of another draw, which that run was trained on; its weights count all the same."""
    other = place_of(workplace, "other", "uid-2", resume_from="tiny", training={"seed": 7, "maxSteps": 1})
    assert finish(other).process.exitcode == 0
    assert f"{OTHER_ROWS} tiny, which" in other.log.read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("sections", "reason", "sentence"),
    [
        ({"lora": {"rank": 8}}, Reason.RESUME_MISMATCH, "of tiny has lora.alpha 8, this run has 16: set it as in that"),
        ({"resume_from": "nobody"}, Reason.CHECKPOINT_INVALID, "holds no checkpoint of a run of that name"),
    ],
)
def test_another_run_that_cannot_go_on_is_refused(
    workplace: Workplace, done: Place, sections: dict[str, Any], reason: Reason, sentence: str
) -> None:
    """An adapter of another kind; a name without states."""
    other = place_of(workplace, "other", "uid-2", **{"resume_from": "tiny", **sections})
    refused(finish(other), ExitCode.CHECKPOINT_INVALID, reason, sentence)
    assert done.checkpoint_steps() == [4, 6]


def test_any_checkpoint_becomes_a_verified_adapter(done: Place, tmp_path: Path) -> None:
    """That of the last step is the run's own, byte for byte, its loss to what processors round otherwise in another
    process; one before it is another; nothing is overwritten."""
    volumes = Volumes(claims=done.claims, config_maps=done.claims)
    last, earlier = tmp_path / "last", tmp_path / "earlier"
    export_checkpoint(done.workspace / "step-00000006", last, volumes, Hub())
    assert (last / "adapter_model.safetensors").read_bytes() == weights(done)
    loss = read_manifest(done.staged).measured.eval_loss_after
    assert read_manifest(last).measured.eval_loss_after == pytest.approx(loss, abs=1e-6)
    trainer_state = json.loads((done.workspace / "step-00000004/state.json").read_text(encoding="utf-8"))
    rewrite(done.workspace / "step-00000004", "state.json", {**trainer_state, "stopped_early": True})
    verified = export_checkpoint(done.workspace / "step-00000004", earlier, volumes, Hub())
    measured = [read_manifest(folder).measured for folder in (earlier, last)]
    assert [(one.steps, one.stopped_early) for one in measured] == [(4, True), (6, False)]
    assert (earlier / "held_out_rows.json").read_bytes() == (done.staged / "held_out_rows.json").read_bytes()
    assert "held_out_rows.json" in {entry.path for entry in read_manifest(earlier).files}
    assert verified.loss > read_manifest(last).measured.eval_loss_after
    with pytest.raises(ConfigError, match="it exists already and is not overwritten"):
        export_checkpoint(done.workspace / "step-00000004", earlier, volumes, Hub())
    damage(done, 4)
    with pytest.raises(CheckpointError, match="step-00000004 is damaged"):
        export_checkpoint(done.workspace / "step-00000004", tmp_path / "none", volumes, Hub())
    assert sorted(path.name for path in tmp_path.iterdir() if path.name[:1] in ".eln") == ["earlier", "last"]


@pytest.fixture
def full_volume(workplace: Workplace) -> Iterator[Path]:
    """The claim for adapters as a volume of 2 MiB."""
    folder = workplace.claims / "adapters"
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", folder], check=True)
    yield folder
    subprocess.run(["umount", folder], check=True)


def test_a_volume_that_is_full_ends_the_training_with_74_and_the_next_attempt_goes_on(
    workplace: Workplace, full_volume: Path
) -> None:
    """The last whole state is intact; once there is room, nothing before it is trained again."""
    place = place_of(workplace, checkpoint={"intervalSteps": 2, "keep": 2})
    calm = place_of(workplace, "calm", "uid-9")
    assert finish(calm).process.exitcode == 0
    expected = weights(calm)
    size = sum(path.stat().st_size for path in (calm.workspace / "step-00000006").iterdir())
    shutil.rmtree(calm.workspace)
    room = int(1.8 * size) + 2**20  # for one state, the margin, and not for a second
    (full_volume / "others").write_bytes(bytes(shutil.disk_usage(full_volume).free - room))
    refused(finish(place), ExitCode.STORAGE, Reason.STORAGE_FULL, "does not fit: the checkpoint volume has")
    assert place.checkpoint_steps() == [2]
    (full_volume / "others").unlink()
    attempt = finish(place)
    assert (attempt.process.exitcode, attempt.resumed_step()) == (0, 2)
    assert weights(place) == expected


def test_too_little_room_ends_a_training_before_it_loads_weights(workplace: Workplace, full_volume: Path) -> None:
    """With what it takes; once there is room it trains, and what it has saved by then is not asked for again."""
    place = place_of(workplace)
    others = full_volume / "others"
    others.write_bytes(bytes(shutil.disk_usage(full_volume).free - 2**17))
    attempt = finish(place)
    said = "takes at least 0.0 GiB of PersistentVolumeClaim adapters, which has 0.0 GiB free"
    refused(attempt, ExitCode.STORAGE, Reason.STORAGE_FULL, said)
    others.unlink()
    assert finish(place).process.exitcode == 0
    damage(place, 6)
    size = sum(path.stat().st_size for path in (place.workspace / "step-00000004").iterdir())
    shutil.rmtree(place.staged)
    others.write_bytes(bytes(max(0, shutil.disk_usage(full_volume).free - int(1.5 * size) - 2**20)))
    partial = place.workspace / ".step-00000006.0123abcd"
    partial.mkdir()
    (partial / "optimizer.safetensors").write_bytes(bytes(size // 2 + 2**20))
    attempt = finish(place)
    assert (attempt.process.exitcode, attempt.resumed_step()) == (0, 4)


def until(condition: Callable[[], bool], what: str) -> None:
    """Wait for a condition."""
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline, f"not within {PATIENCE_S} s: {what}"
        time.sleep(0.02)


def states(workplace: Workplace) -> list[str]:
    """Names of the checkpoints on the claim."""
    return workplace.checkpoints()


def stage_of(process: "subprocess.Popen[str]") -> int:
    """The process id of the stage that a trainer runs."""
    (child,) = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text(encoding="ascii").split()
    return int(child)


@pytest.fixture
def forked(workplace: Workplace, capfd: pytest.CaptureFixture[str]) -> ForkedRuns:
    """Trainers in this process."""
    return ForkedRuns(workplace, capfd)


@pytest.fixture
def waiting() -> Iterator[threading.Event]:
    """Set once a trainer in this process waits for another one."""
    event, lock = threading.Event(), logging.getLogger("lora_trainer.storage.lock")

    def hear(record: logging.LogRecord) -> bool:
        if "is in use by process" in record.getMessage():
            event.set()
        return True

    lock.addFilter(hear)
    yield event
    lock.removeFilter(hear)


def test_of_two_trainers_one_waits_and_takes_over_when_the_other_is_killed(
    workplace: Workplace, forked: ForkedRuns, waiting: threading.Event
) -> None:
    """A pod that was force-deleted and its successor: never two at work, and what the first one saved counts."""
    config = workplace.config_file(training={**TRAINING, "maxSteps": 100}, checkpoint={"intervalSteps": 1})
    first = workplace.start("--config", config, "--metrics-port", "0")

    def kill() -> None:
        waiting.wait(PATIENCE_S)
        lived.append(first.poll() is None)
        first.kill()

    lived, killer = list[bool](), threading.Thread(target=kill)
    killer.start()
    try:
        until(lambda: bool(states(workplace)), "a state")
        # Its training stands still from here on; it holds the lock all the same.
        os.kill(stage_of(first), signal.SIGSTOP)
        second = forked.run("--config", config, "--metrics-port", "0")
        waited = waiting.is_set()
    finally:
        waiting.set()
        killer.join()
        first.communicate()
    assert (waited, lived) == (True, [True])
    assert second.status == 0, second.log
    assert second.summary.results is not None
    assert second.summary.results.resumed_step is not None
    assert second.summary.results.resumed_step >= 1
    assert second.summary.checkpoint is not None
    uri = f"pvc://adapters/{FOLDER}/tiny-{run_suffix('uid-1')}/step-00000100"
    assert second.summary.checkpoint.uri == uri
    assert states(workplace) == ["step-00000100"], "after success the newest state alone is kept"
    assert workplace.adapters() == ["out"]


def test_a_training_that_stands_still_is_ended_with_75_and_its_state_kept(
    workplace: Workplace, forked: ForkedRuns
) -> None:
    """A process that is stopped gives no sign of life, as one in a hanging driver."""
    config = workplace.config_file(training={**TRAINING, "maxSteps": 10_000}, checkpoint={"intervalSteps": 1})
    document = json.loads(config.read_text(encoding="utf-8"))
    config.write_text(json.dumps({**document, "stall_timeout_s": 30}), encoding="utf-8")

    kept = list[str]()

    def stop() -> None:
        until(lambda: bool(states(workplace)), "a state")
        forked.stages[-1].send_signal(signal.SIGSTOP)
        kept.append(states(workplace)[-1])

    stopper = threading.Thread(target=stop)
    stopper.start()
    done = forked.run("--config", config, "--metrics-port", "0")
    stopper.join()
    assert (done.status, done.summary.reason) == (int(ExitCode.TRANSIENT), Reason.STALLED)
    assert "reported no progress for" in done.summary.message
    assert states(workplace)[-1:] == kept
    assert workplace.adapters() == []
