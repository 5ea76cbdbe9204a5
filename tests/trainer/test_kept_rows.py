"""Rows that an earlier attempt encoded: read again where they are whole and the very same, else encoded anew."""

import errno
import logging
import os
import re
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tests.trainer.attempts import READ_AGAIN, Attempts, make_encoder, samples_of
from tests.trainer.stages import CONTEXT
from tests.trainer.test_data import ids

from lora_trainer.data import kept_rows
from lora_trainer.data.dataset import read_or_encode, row_key
from lora_trainer.data.kept_rows import UNUSED_S, folder_name
from lora_trainer.data.survey import DatasetIndex
from lora_trainer.data.tokens import Encoder
from lora_trainer.errors import TransientError
from lora_trainer.storage import sealed
from lora_trainer.storage.base import Base
from lora_trainer.storage.sealed import MANIFEST
from lora_trainer.train.checkpoint import Checkpoints
from lora_trainer.train.stopping import Stop

KEY = "ab" * 32
NAME = folder_name(KEY, shared=False)


@pytest.fixture
def index(tmp_path: Path) -> DatasetIndex:
    """Forty chats, eight of them held out."""
    return samples_of(tmp_path)


@pytest.fixture
def unkept(tmp_path: Path, index: DatasetIndex, encoder: Encoder) -> Attempts:
    """Attempts of a run that has encoded nothing."""
    return Attempts(tmp_path, index, encoder)


@pytest.fixture
def attempts(unkept: Attempts) -> Attempts:
    """Attempts of a run that has encoded its rows once."""
    unkept.run()
    return unkept


def test_what_was_encoded_is_read_and_is_the_same(
    tmp_path: Path, index: DatasetIndex, encoder: Encoder, caplog: pytest.LogCaptureFixture
) -> None:
    """Tokens, what is learned, what is held out, and counts; nothing is encoded, and the log says so."""
    caplog.set_level(logging.INFO)
    attempts = Attempts(tmp_path, index, encoder)
    first = attempts.run()
    assert not any(READ_AGAIN.fullmatch(line) for line in caplog.messages)
    encoder.encode_all = None  # type: ignore[method-assign, assignment]  # an encoding would call it
    second = attempts.run()
    assert [bool(READ_AGAIN.fullmatch(line)) for line in caplog.messages][-1]
    assert ids(second.training) == ids(first.training)
    assert ids(second.evaluation) == ids(first.evaluation)
    assert second.training.truncated.tolist() == first.training.truncated.tolist()
    assert (second.stats, second.held_out, second.fingerprint) == (first.stats, True, first.fingerprint)


def damaged_tokens(kept: Path) -> None:
    """One bit is another."""
    tokens = kept / "training/tokens"
    content = bytearray(tokens.read_bytes())
    content[len(content) // 2] ^= 1
    tokens.write_bytes(content)


def cut_tokens(kept: Path) -> None:
    """As after a crash of the file server."""
    tokens = kept / "training/tokens"
    tokens.write_bytes(tokens.read_bytes()[:-4])


def other_counts(kept: Path) -> None:
    """What is reported of the rows belongs to them, too."""
    facts = kept / "data.json"
    facts.write_text(facts.read_text(encoding="utf-8").replace("32", "33"), encoding="utf-8")


def link(kept: Path) -> None:
    """To the very same content, but a link could lead anywhere."""
    shutil.move(kept / "training/tokens", kept.parent.parent / "elsewhere")
    (kept / "training/tokens").symlink_to(kept.parent.parent / "elsewhere")


def cut_manifest(kept: Path) -> None:
    """It is no JSON any more."""
    manifest = kept / MANIFEST
    manifest.write_text(manifest.read_text(encoding="utf-8")[:-9], encoding="utf-8")


def other_version(kept: Path) -> None:
    """Rows that are stored in another form."""
    manifest = kept / MANIFEST
    manifest.write_text(manifest.read_text(encoding="utf-8").replace("rows/v1", "rows/v2"), encoding="utf-8")


def without(name: str) -> Callable[[Path], None]:
    """A file is gone."""
    return lambda kept: (kept / name).unlink()


@pytest.mark.parametrize(
    ("damage", "sentence"),
    [
        (damaged_tokens, "training/tokens has sha256"),
        (cut_tokens, "training/tokens has sha256"),
        (other_counts, "data.json has sha256"),
        (link, "Too many levels of symbolic links"),
        (without("evaluation/sizes"), "No such file or directory"),
        (without(MANIFEST), "No such file or directory"),
        (cut_manifest, "manifest.json cannot be read: Unterminated string"),
        (other_version, "is of version 'lora-operator.io/rows/v2'"),
    ],
    ids=["damaged", "cut", "counts", "link", "file", "manifest", "cut manifest", "version"],
)
def test_what_is_damaged_is_encoded_anew_with_a_line_in_the_log(
    attempts: Attempts, caplog: pytest.LogCaptureFixture, damage: Callable[[Path], None], sentence: str
) -> None:
    """And is whole again for the attempt after that."""
    name = attempts.folder().name
    damage(attempts.folder())
    assert attempts.encoded()
    (line,) = [line for line in caplog.messages if name in line]
    assert line.startswith(f"the rows that an earlier attempt encoded ({name}) cannot be read: ")
    assert sentence in line
    assert attempts.folder().name == name
    assert not attempts.encoded()


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO, errno.ESTALE])
def test_a_volume_that_is_full_or_fails_costs_no_rows(
    attempts: Attempts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    """They may be whole: an attempt elsewhere reads them."""
    key = row_key(attempts.samples.sources, attempts.encoder)

    def failing(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    with monkeypatch.context() as patch:
        patch.setattr(kept_rows, "write_file", failing)
        assert not attempts.kept.read(key, tmp_path / "there", ("data.json",))
    assert attempts.kept.read(key, tmp_path / "there", ("data.json",))


def test_a_folder_of_rows_that_is_a_link_is_not_followed(attempts: Attempts, tmp_path: Path) -> None:
    """Nor removed: it is none of ours."""
    own = attempts.folder()
    shutil.move(own, tmp_path / "elsewhere")
    own.symlink_to(tmp_path / "elsewhere")
    attempts.kept.make_room(2**62)
    assert attempts.encoded()
    assert attempts.folder() == own
    assert own.is_symlink()
    assert (tmp_path / "elsewhere" / MANIFEST).exists()


def test_a_process_that_is_killed_while_it_writes_leaves_nothing_that_is_read(
    tmp_path: Path, index: DatasetIndex, encoder: Encoder
) -> None:
    """Whichever file is the last one: the next attempt encodes, and removes what is half written."""
    attempts = Attempts(tmp_path, index, encoder)
    for last in (1, 9, 12, 14):
        # Not forked from here: threads that other tests began would be missing there, with their locks held.
        child = CONTEXT.Process(target=_run_and_die_at, args=(tmp_path, index, encoder, attempts.count, last))
        child.start()
        child.join()
        assert child.exitcode == -signal.SIGKILL
        assert re.fullmatch(r"\.rows-[0-9a-f]{16}\.[0-9a-f]{8}", attempts.folder().name)
        attempts.count += 1
    assert attempts.encoded()
    assert re.fullmatch(r"rows-[0-9a-f]{16}", attempts.folder().name)
    assert not attempts.encoded()


def _run_and_die_at(place: Path, index: DatasetIndex, encoder: Encoder, count: int, call: int) -> None:
    attempts = Attempts(place, index, encoder)
    attempts.count = count
    _die_at(call)
    attempts.run()


def _die_at(call: int) -> None:
    """Of a process of its own: be killed at one of the copied files, or one of the times that files are synced."""
    calls = iter(range(1, call + 1))

    def wrapped(action: Any) -> Any:
        def act(*arguments: Any) -> Any:
            if next(calls) == call:
                os.kill(os.getpid(), signal.SIGKILL)
            return action(*arguments)

        return act

    sealed.write_file, sealed.sync = wrapped(sealed.write_file), wrapped(sealed.sync)


def full(*_: object) -> None:
    """What a volume without space answers."""
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize(
    ("name", "value", "sentence"),
    [
        (
            "data.kept_rows._free_bytes",
            lambda _: 9000,
            "they take 0.0 MiB, more than half of the 0.0 MiB that the volume has free",
        ),
        (
            "storage.sealed.sync",
            full,
            "the encoded rows are not kept for later attempts: No space left on device",
        ),
    ],
    ids=["known before", "on the way"],
)
def test_a_volume_without_space_costs_the_copy_and_not_the_run(
    unkept: Attempts,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    *,
    name: str,
    value: Any,
    sentence: str,
) -> None:
    """Nothing is left of it there, and the next attempt encodes."""
    caplog.set_level(logging.INFO)
    monkeypatch.setattr(f"lora_trainer.{name}", value)
    assert len(unkept.run().training) == 32
    assert any(sentence in line for line in caplog.messages), caplog.messages
    assert list(unkept.own.iterdir()) == []
    assert unkept.encoded()


def test_a_request_to_stop_waits_for_the_copy(tmp_path: Path, index: DatasetIndex, encoder: Encoder) -> None:
    """And ends the attempt after it, whose rows the next one reads."""
    stop = Stop()
    attempts = Attempts(tmp_path, index, encoder, undisturbed=stop.deferred)

    def asked(*arguments: Any) -> Any:
        stop.handle(signal.SIGTERM, None)
        return copy(*arguments)

    with pytest.MonkeyPatch.context() as patch:
        copy = sealed.write_file
        patch.setattr(sealed, "write_file", asked)
        with pytest.raises(SystemExit):
            attempts.run()
    assert not attempts.encoded()


def test_rows_give_way_to_a_checkpoint(
    attempts: Attempts, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Only where it does not fit beside them."""
    checkpoints = Checkpoints(attempts.own, keep=1, make_room=attempts.kept.make_room)
    rows = attempts.folder()
    checkpoints.save(1, {"a": lambda file: file.write(b"x")}, 1)
    assert rows.is_dir()
    monkeypatch.setattr(kept_rows, "_free_bytes", lambda _: 2**19 if rows.exists() else 2**30)
    checkpoints.save(2, {"a": lambda file: file.write(b"x")}, 1)
    assert [path.name for path in attempts.own.iterdir()] == ["step-00000002"]
    assert "the encoded rows are removed" in caplog.text


def test_nobody_writes_where_another_trainer_took_the_run_over(
    tmp_path: Path, index: DatasetIndex, encoder: Encoder
) -> None:
    """The sentence of that ends this attempt."""

    def lost() -> None:
        raise TransientError("taken over")

    attempts = Attempts(tmp_path, index, encoder, may_write=lost)
    (attempts.own / NAME).mkdir()
    with pytest.raises(TransientError, match="taken over"):
        attempts.run()
    with pytest.raises(TransientError, match="taken over"):
        attempts.kept.make_room(2**62)
    assert [path.name for path in attempts.own.iterdir()] == [NAME]


def test_only_our_own_folders_are_removed(attempts: Attempts) -> None:
    """What is named nearly so is somebody's own."""
    names = ["rows", "rows-old", f"{NAME}.txt", f"{NAME}-copy", "rows-ABCDEFABCDEFABCD", ".rows"]
    for name in names:
        (attempts.own / name).mkdir()
    (attempts.own / NAME.replace("ab", "cd")).write_text("a file")
    before = {path.name for path in attempts.own.iterdir()}
    kept_rows.discard_rows(attempts.own)
    gone = before - {path.name for path in attempts.own.iterdir()}
    assert len(gone) == 1
    assert gone.isdisjoint(names)


def test_in_a_shared_place_rows_leave_that_nobody_reads(
    tmp_path: Path, index: DatasetIndex, encoder: Encoder, tiny_base: Base
) -> None:
    """After a week; reading makes them young again, and those of other runs stay."""
    attempts = Attempts(tmp_path, index, encoder, shared=True)
    attempts.run()
    own = attempts.folder()
    other = make_encoder(tiny_base, max_length=99)

    def age(seconds: float) -> None:
        for path in (own, own / MANIFEST):
            os.utime(path, (time.time() - seconds, time.time() - seconds))

    def encode_other(length: int) -> None:
        other.max_length = length
        read_or_encode(index.sources, index, other, tmp_path / f"other-{length}", attempts.kept)

    age(UNUSED_S - 3600)
    encode_other(99)
    assert own.is_dir()
    age(UNUSED_S + 3600)
    assert not attempts.encoded()
    encode_other(98)
    assert own.is_dir()
    age(UNUSED_S + 3600)
    encode_other(97)
    assert not own.exists()
    assert len(list(attempts.own.iterdir())) == 3
