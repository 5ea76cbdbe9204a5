"""Attempts of whole runs: what they go on from, what they refuse, and who may write."""

import hashlib
import json
import logging
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from tests.trainer import tiny
from tests.trainer.conftest import make_config
from tests.trainer.runs import Workplace
from tests.trainer.stages import Attempt, Place, finish

from lora_trainer import ask
from lora_trainer.artifact.manifest import read_manifest
from lora_trainer.contract.advice.codes import Code
from lora_trainer.contract.config import LossOn
from lora_trainer.contract.exit_codes import ExitCode
from lora_trainer.contract.names import run_suffix
from lora_trainer.contract.reasons import Reason
from lora_trainer.data.tokenizer import load_encoder
from lora_trainer.errors import CheckpointError, ConfigError, VerificationError
from lora_trainer.places.base import open_folder
from lora_trainer.places.hub import Hub
from lora_trainer.places.run_folders import FOLDER
from lora_trainer.places.volumes import Volumes
from lora_trainer.result.export_checkpoint import export_checkpoint
from lora_trainer.result.inputs import base_and_rows
from lora_trainer.training.evaluate import Evaluation
from lora_trainer.training.kept_limit import with_kept_limit
from lora_trainer.training.resume import Saved

TRAINING = {"maxSteps": 6, "effectiveBatchSize": 4, "learningRate": "0.01"}


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


@pytest.fixture
def done(workplace: Workplace) -> Place:
    """A run that ended its training, with the states after steps 4 and 6."""
    place = place_of(workplace)
    assert finish(place).process.exitcode == 0
    assert place.checkpoint_steps() == [4, 6]
    return place


def weights(place: Place) -> bytes:
    """Of the result."""
    return (place.staged / "adapter_model.safetensors").read_bytes()


def damage(place: Place, step: int) -> None:
    """Cut a file of a checkpoint."""
    path = place.workspace / f"step-{step:08d}/optimizer.pt"
    path.write_bytes(path.read_bytes()[:-7])


def refused(attempt: Attempt, code: ExitCode, reason: Reason, *sentences: str) -> None:
    """Check how an attempt ended."""
    failure = attempt.failure()
    assert (attempt.process.exitcode, failure["reason"]) == (int(code), reason.value), failure
    for sentence in sentences:
        assert sentence in failure["message"]


@pytest.mark.parametrize(
    ("own", "goes_on", "sentence"),
    [
        (True, True, "going on after step 4, which an earlier attempt saved"),
        (False, True, "going on after step 4 of the run tiny, optimizer included"),
        (False, False, "starting at step 0 from the weights that the run tiny had after step 4"),
    ],
)
def test_the_log_says_where_a_run_goes_on(
    caplog: pytest.LogCaptureFixture, *, own: bool, goes_on: bool, sentence: str
) -> None:
    """Its own state, another run's, or the weights of that alone."""
    record: Any = SimpleNamespace(config=SimpleNamespace(run=SimpleNamespace(name="tiny")))
    checkpoint: Any = SimpleNamespace(step=4)
    with caplog.at_level(logging.INFO):
        Saved(checkpoint=checkpoint, record=record, own=own).log_start(goes_on=goes_on)
    assert [line.getMessage() for line in caplog.records] == [sentence]


@pytest.mark.fault("C10.falls-back", "C10.checkpoints")
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


def of_an_earlier_release(place: Place, *names: str) -> None:
    """Take fields out of the identities in a run's checkpoints, as if a release had written them that had none."""
    for folder in place.workspace.glob("step-*"):
        record = json.loads((folder / "run.json").read_text(encoding="utf-8"))
        for name in names:
            del record["identity"][name]
        (folder / "run.json").write_text(json.dumps(record), encoding="utf-8")
        manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
        (entry,) = (entry for entry in manifest["files"] if entry["path"] == "run.json")
        content = (folder / "run.json").read_bytes()
        entry.update(size_bytes=len(content), sha256=hashlib.sha256(content).hexdigest())
        (folder / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")


def test_a_run_that_an_earlier_release_began_goes_on(done: Place) -> None:
    """Its checkpoints lack what today's decide by; the result is the same where rows are encoded as before."""
    first, before = weights(done), read_manifest(done.staged).measured.eval_loss_before
    damage(done, 6)
    of_an_earlier_release(done, "dataset (encoding)", "dataset.chatTemplate (content)")
    attempt = finish(done)
    assert (attempt.process.exitcode, attempt.resumed_step()) == (0, 4)
    assert weights(done) == first
    again = read_manifest(done.staged).measured
    assert again.eval_loss_before == pytest.approx(before, abs=1e-6)


def test_a_run_that_began_without_a_limit_of_held_out_rows_goes_on_without_one(workplace: Workplace) -> None:
    """Of 2,200 rows 2,090 are held out as when it began, though a new run would hold out 2,000."""
    tiny.write_jsonl(workplace.claims / "data/train.jsonl", ({"text": f"{i}"} for i in range(2200)))
    place = place_of(workplace, dataset={"validationFraction": "0.95"})
    new = place.config.read_text(encoding="utf-8")
    document = json.loads(new)
    assert document["dataset"].pop("max_validation_rows") == 2000
    place.config.write_text(json.dumps(document), encoding="utf-8")
    assert finish(place).process.exitcode == 0
    rows, first = (place.staged / "held_out_rows.json").read_bytes(), weights(place)
    damage(place, 6)
    of_an_earlier_release(place, "dataset (encoding)", "dataset.chatTemplate (content)")

    place.config.write_text(new, encoding="utf-8")
    attempt = finish(place)
    assert (attempt.process.exitcode, attempt.resumed_step()) == (0, 4), attempt.lines()[-1]
    assert (place.staged / "held_out_rows.json").read_bytes() == rows
    assert weights(place) == first
    manifest = read_manifest(place.staged)
    assert (manifest.dataset.validation_samples, manifest.dataset.train_samples) == (2090, 110)
    assert manifest.config.dataset.max_validation_rows is None

    document["dataset"]["max_validation_rows"] = 1999
    place.config.write_text(json.dumps(document), encoding="utf-8")
    refused(finish(place), ExitCode.CHECKPOINT_INVALID, Reason.RESUME_MISMATCH, "has dataset.maxValidationRows absent")


@pytest.mark.parametrize(
    ("began", "given", "kept"),
    [
        (None, 2000, None),
        (2000, None, 2000),
        (2000, 2000, 2000),
        (500, 2000, 2000),
        (None, 500, 500),
        ("damaged", 2000, 2000),
    ],
)
def test_what_nobody_named_stays_as_the_run_began(
    tmp_path: Path, began: Any, given: int | None, kept: int | None
) -> None:
    """What somebody named, then or now, is compared like all other fields."""
    config = make_config()
    config = replace(config, dataset=replace(config.dataset, max_validation_rows=given))
    assert with_kept_limit(config, None) == config
    assert with_kept_limit(config, tmp_path) == config
    for step, text in ((4, json.dumps({"config": {"dataset": {"max_validation_rows": began}}})), (6, "{")):
        (tmp_path / f"step-{step:08d}").mkdir()
        (tmp_path / f"step-{step:08d}/run.json").write_text("[]" if began == "damaged" else text, encoding="utf-8")
    found = with_kept_limit(config, tmp_path)
    assert found.dataset.max_validation_rows == kept
    assert replace(found, dataset=config.dataset) == config


def test_the_base_is_evaluated_again_where_the_rows_are_encoded_otherwise(caplog: pytest.LogCaptureFixture) -> None:
    """Losses before and after the training are of the same tokens."""
    before = Evaluation(sums=(1.0,), tokens=(2,))
    record: Any = SimpleNamespace(identity={}, before=before)
    checkpoint: Any = SimpleNamespace(step=4)
    saved = Saved(checkpoint=checkpoint, record=record, own=True)
    assert saved.before({"dataset (encoding)": "1"}) is before
    assert not caplog.messages
    assert saved.before({"dataset (encoding)": "2"}) is None
    assert "the base model is evaluated on them again" in caplog.text


def test_a_chosen_template_lies_beside_the_adapter_and_may_not_change_during_a_run(workplace: Workplace) -> None:
    """Neither between attempts nor before the verification; questions are asked with the one beside the adapter."""
    template = workplace.claims / "templates/chat.jinja"
    template.parent.mkdir()
    template.write_text(tiny.CHATML.replace("{% if add", "{{ note }}{% if add"), encoding="utf-8")
    chosen = {"chatTemplate": "configmap://templates/chat.jinja", "templateArguments": {"note": "0"}}
    place = place_of(workplace, dataset=chosen)
    assert finish(place).process.exitcode == 0
    assert (place.staged / "chat_template.jinja").read_bytes() == template.read_bytes()
    manifest = read_manifest(place.staged)
    assert "chat_template.jinja" in {entry.path for entry in manifest.files}
    assert "which is not the base model's own" in (place.staged / "README.md").read_text(encoding="utf-8")
    encoder = load_encoder(open_folder(workplace.claims / "models/tiny"), LossOn.COMPLETION, 64)
    asked = encoder.tokenizer.decode(ask._prompt(encoder, place.staged, "Hi"))
    assert asked == "<|im_start|>user\nHi<|im_end|>\n0<|im_start|>assistant\n"
    # A ConfigMap is mounted elsewhere than a claim; here both are the same folder.
    volumes = Volumes(claims=workplace.claims, config_maps=workplace.claims)
    base_and_rows(manifest, volumes, Hub())
    template.write_text(tiny.CHATML, encoding="utf-8")
    with pytest.raises(VerificationError, match=r"dataset\.chatTemplate is configmap://.* has changed since the run"):
        base_and_rows(manifest, volumes, Hub())
    refused(finish(place), ExitCode.CHECKPOINT_INVALID, Reason.RESUME_MISMATCH, "has dataset.chatTemplate (content)")


@pytest.mark.fault("C12.sentence")
def test_a_changed_configuration_or_data_set_is_refused(workplace: Workplace, done: Place) -> None:
    """78 with the field and both values, before the model is loaded; the states stay."""
    changed = place_of(workplace, training={"learningRate": "0.5"})
    sentence = "the checkpoint step-00000006 of tiny has training.learningRate 0.01, this run has 0.5"
    refused(finish(changed), ExitCode.CHECKPOINT_INVALID, Reason.RESUME_MISMATCH, sentence)
    again = place_of(workplace)
    tiny.write_jsonl(workplace.claims / "data/train.jsonl", tiny.chats(41))
    refused(finish(again), ExitCode.CHECKPOINT_INVALID, Reason.RESUME_MISMATCH, "has dataset (content)")
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
    assert Code.HELD_OUT_ROWS_LEARNED_BEFORE not in [one.code for one in read_manifest(other.staged).advice]


def held_out(place: Place) -> set[int]:
    """The rows that a run held out, from 1."""
    (file,) = json.loads((place.staged / "held_out_rows.json").read_text(encoding="utf-8"))["files"]
    return set(file["numbers"])


def test_held_out_rows_that_a_run_before_was_trained_on_are_told(workplace: Workplace, done: Place) -> None:
    """Of another draw; after an interruption, too, and in a third run, whose rows the second did not train on."""
    second = place_of(workplace, "second", "uid-2", resume_from="tiny", training={"seed": 7})
    assert finish(second).process.exitcode == 0
    shared = held_out(second) - held_out(done)
    assert shared

    def told(place: Place) -> str | None:
        advice = {one.code: one.values for one in read_manifest(place.staged).advice}
        return advice.get(Code.HELD_OUT_ROWS_LEARNED_BEFORE, {}).get("share")

    share = f"about {len(shared) / len(held_out(second)):.1%}"
    assert told(second) == share
    shutil.rmtree(second.staged)
    shutil.rmtree(second.workspace / "step-00000006")
    attempt = finish(second)
    assert (attempt.process.exitcode, attempt.resumed_step()) == (0, 4)
    assert told(second) == share

    third = place_of(workplace, "third", "uid-3", resume_from="second", training={"seed": 7, "effectiveBatchSize": 8})
    assert finish(third).process.exitcode == 0
    assert held_out(third) == held_out(second)
    assert told(third) == share


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
    verified = export_checkpoint(done.workspace / "step-00000004", earlier, volumes, Hub())
    assert read_manifest(earlier).measured.steps == 4
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


@pytest.mark.fault("C9.checkpoint")
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


def until(condition: Callable[[], bool], what: str) -> None:
    """Wait for a condition."""
    deadline = time.monotonic() + 120
    while not condition():
        assert time.monotonic() < deadline, f"not within two minutes: {what}"


def states(workplace: Workplace) -> list[str]:
    """Names of the checkpoints on the claim."""
    return workplace.checkpoints()


def stage_of(process: "subprocess.Popen[str]") -> int:
    """The process id of the stage that a trainer runs."""
    (child,) = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text(encoding="ascii").split()
    return int(child)


@pytest.mark.fault("B20.lock")
def test_of_two_trainers_one_waits_and_takes_over_when_the_other_is_killed(workplace: Workplace) -> None:
    """A pod that was force-deleted and its successor: never two at work, and what the first one saved counts."""
    config = workplace.config_file(training={**TRAINING, "maxSteps": 40}, checkpoint={"intervalSteps": 1})
    first = workplace.start("--config", config, "--metrics-port", "0")
    try:
        until(lambda: bool(states(workplace)), "a state")
        # Its training stands still from here on; it holds the lock all the same.
        os.kill(stage_of(first), signal.SIGSTOP)
        second = workplace.start("--config", config, "--metrics-port", "0")
        try:
            assert second.stderr is not None
            assert any("is in use by attempt 1" in line for line in second.stderr)
            assert first.poll() is None
            first.kill()
            _, log = second.communicate(timeout=240)
        finally:
            second.kill()
            second.communicate()
    finally:
        first.kill()
        first.communicate()
    assert second.returncode == 0, log
    summary = workplace.summary()
    assert summary.results is not None
    assert summary.results.resumed_step is not None
    assert summary.results.resumed_step >= 1
    assert summary.checkpoint is not None
    assert summary.checkpoint.uri == f"pvc://adapters/{FOLDER}/tiny-{run_suffix('uid-1')}/step-00000040"
    assert states(workplace) == ["step-00000040"], "after success the newest state alone is kept"
    assert workplace.adapters() == ["out"]


@pytest.mark.fault("B10.checkpoint")
def test_a_training_that_stands_still_is_ended_with_75_and_its_state_kept(workplace: Workplace) -> None:
    """A process that is stopped gives no sign of life, as one in a hanging driver."""
    config = workplace.config_file(training={**TRAINING, "maxSteps": 10_000}, checkpoint={"intervalSteps": 1})
    document = json.loads(config.read_text(encoding="utf-8"))
    config.write_text(json.dumps({**document, "stall_timeout_s": 3}), encoding="utf-8")
    process = workplace.start("--config", config, "--metrics-port", "0")
    try:
        until(lambda: bool(states(workplace)), "a state")
        os.kill(stage_of(process), signal.SIGSTOP)
        process.communicate(timeout=60)
    finally:
        process.kill()
        process.communicate()
    assert (process.returncode, workplace.summary().reason) == (int(ExitCode.TRANSIENT), Reason.STALLED)
    assert "gave no sign of life for" in workplace.summary().message
    assert states(workplace)
    assert workplace.adapters() == []
