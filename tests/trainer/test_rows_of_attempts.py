"""Encoded rows from one attempt of a run to the next, and from its preflight: who reads them, and when they go."""

import argparse
import errno
import logging
import os
import shutil
import signal
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tests.trainer import tiny
from tests.trainer.attempts import READ_AGAIN, make_encoder
from tests.trainer.conftest import make_config
from tests.trainer.runs import PATIENCE_S, Workplace
from tests.trainer.stages import Attempt, Place, finish, start
from tests.trainer.test_data import ids

from lora_trainer import stage
from lora_trainer.data import dataset as dataset_module
from lora_trainer.data import kept_rows, tokenizer
from lora_trainer.data.chosen_template import chosen_template
from lora_trainer.data.dataset import FILES, encode, read_or_encode
from lora_trainer.data.formats import Sample
from lora_trainer.data.kept_rows import UNUSED_S, KeptRows
from lora_trainer.data.survey import load_index
from lora_trainer.data.tokens import Encoded, Encoder
from lora_trainer.distributed.reports import Failure
from lora_trainer.errors import ConfigError, StorageError
from lora_trainer.host.child import StageFailedError, Stages
from lora_trainer.host.supervisor import Settings, Supervisor
from lora_trainer.plan.families import Positions
from lora_trainer.spec.config import TrainConfig
from lora_trainer.spec.exit_codes import ExitCode, reason_of
from lora_trainer.storage.base import Base
from lora_trainer.storage.cache_folders import cached_rows
from lora_trainer.storage.hub import Hub
from lora_trainer.storage.model_headers import read_headers
from lora_trainer.storage.run_folders import FOLDER, folder_of_run
from lora_trainer.storage.volumes import Volumes
from lora_trainer.train import inputs
from lora_trainer.train.checkpoint import Checkpoint, Checkpoints
from lora_trainer.train.objective import encoder_of
from lora_trainer.train.preflight import preflight
from lora_trainer.train.stopping import Stop

NAME = f"rows-{'ab' * 8}"
STEPS = 6


def place_of(workplace: Workplace, name: str) -> Place:
    """A run of some steps with a folder of its own."""
    workspace = workplace.root / name
    workspace.mkdir()
    config = workplace.config_file(
        training={"maxSteps": STEPS, "effectiveBatchSize": 4}, lora={"dropout": "0.1"}, checkpoint={"intervalSteps": 2}
    )
    return Place(claims=workplace.claims, workspace=workspace, config=config)


def stand_still() -> None:
    """Of a process of its own: once it has saved a checkpoint."""
    save = Checkpoints.save

    def saved(*arguments: Any) -> Checkpoint:
        save(*arguments)
        while True:
            signal.pause()

    Checkpoints.save = saved  # type: ignore[method-assign, assignment]


def reads(place: Place) -> int:
    """How many attempts said that they read rows."""
    return len(READ_AGAIN.findall(place.log.read_text(encoding="utf-8")))


def outcome(place: Place) -> bytes:
    """The weights of the result."""
    return (place.staged / "adapter_model.safetensors").read_bytes()


def dataset(attempt: Attempt) -> Any:
    """The counts that an attempt reported."""
    return next(line["dataset"] for line in attempt.lines() if line.get("dataset"))


def test_a_killed_run_goes_on_from_rows_and_state_and_gives_the_same_adapter(workplace: Workplace) -> None:
    """Byte for byte; so does one that finds a folder without rows."""
    calm = place_of(workplace, "calm")
    first = finish(calm)
    assert (first.process.exitcode, reads(calm)) == (0, 0)
    shown = [line.split(" INFO ")[1] for line in calm.log.read_text().splitlines() if "the first row, with" in line]
    for name, forget in (("killed", False), ("without", True)):
        place = place_of(workplace, name)
        attempt = start(place, stand_still)
        deadline = time.monotonic() + PATIENCE_S
        while not place.checkpoint_steps():
            assert attempt.process.is_alive(), attempt.lines()
            assert time.monotonic() < deadline, "no checkpoint was written"
            time.sleep(0.01)
        attempt.process.kill()
        attempt.process.join()
        assert attempt.last_step() < STEPS
        if forget:
            kept_rows.discard_rows(place.workspace)
        last = finish(place)
        assert (last.process.exitcode, reads(place)) == (0, 0 if forget else 1)
        assert last.resumed_step() > 0
        assert outcome(place) == outcome(calm)
        assert dataset(last) == dataset(first)
        assert [line for line in place.log.read_text().splitlines() if line.endswith(shown[0])]


def fill(config: TrainConfig, workplace: Workplace) -> bool:
    """What preflight does with the rows where there is a cache; whether they were encoded."""
    volumes, hub = Volumes(claims=workplace.claims), Hub()
    index = load_index(config, volumes, hub)
    base = read_headers(config.model.uri, volumes, hub).base
    encoder = encoder_of(config, base, chosen_template(config.dataset, volumes))
    return inputs.keep_encoded(index, base, encoder) is not None


@pytest.fixture
def prepared(workplace: Workplace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[TrainConfig, Path]:
    """A run whose inputs preflight has put into the cache, encoded; and the rows there."""
    monkeypatch.setenv("HF_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(inputs, "ENCODED_FROM_BYTES", 0)
    config = make_config()
    assert fill(config, workplace)
    (rows,) = cached_rows(os.environ).glob("rows-*")
    return config, rows


def test_rows_that_were_prepared_are_encoded_by_no_attempt(
    prepared: tuple[TrainConfig, Path], workplace: Workplace, tiny_base: Base, tmp_path: Path
) -> None:
    """Their key is the training's, and what it reads is what it would encode."""
    config, rows = prepared
    volumes = Volumes(claims=workplace.claims)
    index = load_index(config, volumes, Hub())
    encoder = make_encoder(tiny_base, max_length=config.training.max_sequence_length)
    expected = ids(encode(index, encoder, tmp_path / "fresh").training)
    encoder.encode_all = None  # type: ignore[method-assign, assignment]  # an encoding would call it
    kept = KeptRows(cache=rows.parent)
    assert ids(read_or_encode(index.sources, None, encoder, tmp_path / "tokens", kept).training) == expected


def test_an_attempt_that_finds_rows_looks_at_none_of_the_files(
    workplace: Workplace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It opens what an earlier one prepared, refusals included; bad rows show before there is anything."""
    config, volumes = make_config(), Volumes(claims=workplace.claims)
    kept = KeptRows(own=tmp_path)

    def prepare(name: str) -> bytes:
        inputs.prepare(config, volumes, Hub(), tmp_path / name, check=lambda base: None, kept=kept)
        return b"".join((tmp_path / name / file).read_bytes() for file in FILES)

    first = prepare("first")
    monkeypatch.setattr(inputs, "choose_rows", None)
    monkeypatch.setattr(dataset_module, "choose_rows", None)
    assert prepare("second") == first
    monkeypatch.setattr(tokenizer, "positions_in", lambda _: Positions(kind="llama", most=4))
    with pytest.raises(ConfigError, match="positions"):
        prepare("third")
    assert not (tmp_path / "third").exists()


def test_few_rows_are_not_worth_the_libraries(
    workplace: Workplace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They are encoded by the training within seconds."""
    monkeypatch.setenv("HF_HOME", str(tmp_path / "cache"))
    assert not fill(make_config(), workplace)
    assert not cached_rows(os.environ).exists()


def test_a_cache_that_cannot_take_rows_is_no_failure(
    workplace: Workplace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The training encodes."""
    monkeypatch.setenv("HF_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(inputs, "ENCODED_FROM_BYTES", 0)
    (tmp_path / "cache").write_text("no folder")
    assert not fill(make_config(), workplace)
    assert "the rows are not encoded in advance: " in caplog.text


def test_a_preflight_encodes_each_row_once_and_reads_no_weights(
    workplace: Workplace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What it counts is what the cache has, for a second run, too, which encodes none; without a cache it says the
    same. Only the training needs the digest of a model on a claim."""
    monkeypatch.setenv("HF_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(inputs, "ENCODED_FROM_BYTES", 0)
    monkeypatch.setattr("lora_trainer.storage.base._digest", None)
    encoded: list[str] = []
    encode_texts = Encoder.encode_texts

    def counted(encoder: Encoder, index: Sequence[Sample]) -> list[list[Encoded]]:
        encoded.extend(sample.where for sample in index)
        return encode_texts(encoder, index)

    monkeypatch.setattr(Encoder, "encode_texts", counted)
    config, volumes = make_config(), Volumes(claims=workplace.claims)
    rows = len(tiny.chats())
    found = []
    for fill_cache, expected in ((True, rows), (True, rows), (False, 2 * rows)):
        found.append(preflight(config, volumes, Hub(), fill=fill_cache).preflight)
        assert len(encoded) == expected
    assert len(set(encoded)) == rows
    assert found[0] == found[1] == found[2]
    assert len([*cached_rows(os.environ).glob("rows-*")]) == 1


def test_a_long_row_is_left_to_the_training(
    workplace: Workplace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """It takes more memory to encode than the pod has that prepares: the kernel would end the run with it."""
    monkeypatch.setenv("HF_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(inputs, "ENCODED_FROM_BYTES", 0)
    monkeypatch.setattr(inputs, "MOST_CHARACTERS", 9)
    assert not fill(make_config(), workplace)
    assert "not encoded in advance: KernelOutOfMemoryError: train.jsonl, line 1: a row of " in caplog.text
    assert not list(cached_rows(os.environ).glob("*.begun"))


def test_a_second_run_that_is_prepared_finds_the_rows(
    prepared: tuple[TrainConfig, Path], workplace: Workplace, caplog: pytest.LogCaptureFixture
) -> None:
    """Whatever its learning rate; another length is encoded, too."""
    caplog.set_level(logging.INFO)
    config, rows = prepared
    for change, count in (({"learning_rate": 0.5}, 1), ({"max_sequence_length": 99}, 2)):
        other = replace(config, training=replace(config.training, **change))
        fill(other, workplace)
        assert len(list(rows.parent.glob("rows-*"))) == count
    assert len([line for line in caplog.messages if READ_AGAIN.fullmatch(line)]) == 1
    assert not list(rows.parent.glob("*.begun"))


def test_rows_whose_encoding_was_killed_are_left_to_the_training(
    prepared: tuple[TrainConfig, Path], workplace: Workplace, caplog: pytest.LogCaptureFixture
) -> None:
    """The kernel ends the whole pod for the memory of one process: the next one fetches, and succeeds. A week later
    there may be more memory."""
    config, rows = prepared
    shutil.rmtree(rows)
    begun = rows.with_name(f".{rows.name}.begun")
    begun.touch()
    for age_s, encoded in ((0.0, False), (UNUSED_S + 60, True)):
        os.utime(begun, (time.time() - age_s,) * 2)
        assert fill(config, workplace) == encoded
        assert rows.is_dir() == encoded
        assert begun.exists() != encoded
    assert f"a process that did so was killed, most likely for memory; remove {begun.name}" in caplog.text


def test_an_encoding_shows_that_it_began(workplace: Workplace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before its first rows are done, which may be what takes the memory."""
    monkeypatch.setenv("HF_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(inputs, "ENCODED_FROM_BYTES", 0)
    signs: list[int] = []

    def look(*_: object, **__: object) -> None:
        signs.append(len([*cached_rows(os.environ).glob("*.begun")]))
        raise StorageError("and no more")

    monkeypatch.setattr("lora_trainer.train.inputs.datasets.read_or_encode", look)
    assert not fill(make_config(), workplace)
    assert signs == [1]
    assert not [*cached_rows(os.environ).glob("*.begun")]


def test_a_cache_whose_rows_are_anothers_is_no_failure(
    workplace: Workplace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Its folder is there, and nobody else may look into it."""

    def forbidden(*_: object, **__: object) -> bool:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    monkeypatch.setenv("HF_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(inputs, "ENCODED_FROM_BYTES", 0)
    monkeypatch.setattr(inputs, "held", forbidden)
    is_dir = Path.is_dir
    monkeypatch.setattr(Path, "is_dir", lambda path: forbidden() if path.name.startswith("rows-") else is_dir(path))
    assert not fill(make_config(), workplace)
    assert "the rows are not encoded in advance: PermissionError" in caplog.text


def test_the_first_node_writes_in_the_runs_folder_and_the_others_read_there(
    workplace: Workplace, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All read what was prepared."""
    monkeypatch.setenv("HF_HOME", str(workplace.root / "cache"))
    config, volumes = make_config(), Volumes(claims=workplace.claims)
    folder = volumes.claim_path(folder_of_run(config, "adapters"))
    options = argparse.Namespace(workspace=folder, ticket=None, stop=Stop())
    first = stage._rows(config, options, volumes)
    other = stage._rows(config, argparse.Namespace(workspace=None, ticket=None, stop=Stop()), volumes)
    cache = workplace.root / "cache/rows"
    assert (first.own, first.other, first.cache) == (folder, None, cache)
    assert (other.own, other.other, other.cache) == (None, folder, cache)
    elsewhere = make_config(output={"uri": "s3://bucket/out"})
    found = stage._rows(elsewhere, argparse.Namespace(workspace=None, ticket=None, stop=Stop()), volumes)
    assert (found.own, found.other, found.cache) == (None, None, cache)


@pytest.mark.parametrize(
    ("code", "tried_again", "step", "kept"),
    [
        (ExitCode.TERMINATED, True, False, True),
        (ExitCode.TERMINATED, False, False, False),
        (ExitCode.TERMINATED, False, True, True),
        (ExitCode.TRANSIENT, True, False, True),
        (ExitCode.CHECKPOINT_INVALID, True, True, False),
        (ExitCode.DATASET_INVALID, True, False, False),
    ],
    ids=["preempted", "Ctrl-C", "Ctrl-C with a step", "network", "final with a step", "final"],
)
def test_rows_stay_as_long_as_an_attempt_may_follow(
    workplace: Workplace, monkeypatch: pytest.MonkeyPatch, *, code: ExitCode, tried_again: bool, step: bool, kept: bool
) -> None:
    """Of a local run none does that has saved no step; a checkpoint stays whatever happens."""
    config, volumes = make_config(), Volumes(claims=workplace.claims)
    folder = volumes.claim_path(folder_of_run(config, "adapters"))

    def fail(_stages: Stages, _stage: str, *_: object, sharded: bool = False) -> None:
        (folder / NAME).mkdir()
        if step:
            (folder / "step-00000001").mkdir()
        raise StageFailedError(Failure(code=int(code), reason=reason_of(code), message="it failed"))

    monkeypatch.setattr(Stages, "run", fail)
    settings = Settings(volumes=volumes, port=None, work=workplace.root, tried_again=tried_again)
    assert Supervisor(config=config, settings=settings).run().code == code
    assert (folder / NAME).exists() == kept
    assert folder.exists() == (kept or step)
    assert (workplace.claims / "adapters" / FOLDER).exists() == (kept or step)


def test_rows_go_once_the_training_is_done(workplace: Workplace, monkeypatch: pytest.MonkeyPatch) -> None:
    """Merged model and publication get their space, and what is tried again after that trains nothing."""
    config, volumes = make_config(), Volumes(claims=workplace.claims)
    folder = volumes.claim_path(folder_of_run(config, "adapters"))
    for name in (NAME, "step-00000001", "staged"):
        (folder / name).mkdir(parents=True)
    verified: list[bool] = []

    def fail(*_: object) -> None:
        verified.append((folder / NAME).exists())
        raise StageFailedError(Failure(code=75, reason=reason_of(75), message="it failed"))

    monkeypatch.setattr("lora_trainer.host.supervisor.is_complete", lambda *_: True)
    monkeypatch.setattr(Supervisor, "_verify", fail)
    settings = Settings(volumes=volumes, port=None, work=workplace.root)
    assert Supervisor(config=config, settings=settings).run().code == ExitCode.TRANSIENT
    assert verified == [False]
    assert (folder / "step-00000001").exists()
