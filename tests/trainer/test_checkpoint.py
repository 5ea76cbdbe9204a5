"""Checkpoints on a disk: whole or absent, kept until a newer one is proven, and whatever damage does to them."""

import errno
import json
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest
import torch

from lora_trainer.errors import CheckpointError, StorageError, TransientError
from lora_trainer.spec.reasons import Reason
from lora_trainer.storage import sealed
from lora_trainer.train import checkpoint
from lora_trainer.train.checkpoint import Checkpoints, newest_in, newest_of, read_checkpoint

KIB = 1024


def save(checkpoints: Checkpoints, step: int, size: int = KIB) -> None:
    """Save a checkpoint of two files."""
    tensor = torch.full((size,), step, dtype=torch.uint8)
    files = {
        "state.json": lambda file: file.write(json.dumps({"step": step}).encode()),
        "weights.pt": lambda file: torch.save(tensor, file),
    }
    checkpoints.save(step, files, size)


def names(folder: Path) -> list[str]:
    """What is in a folder, hidden entries included."""
    return sorted(path.name for path in folder.iterdir())


def newest_step(folder: Path) -> int | None:
    """The step of the newest whole checkpoint."""
    found, _ = newest_of(folder)
    return None if found is None else found.step


def test_a_checkpoint_is_found_again_with_its_files(tmp_path: Path) -> None:
    """The newest of those that were kept."""
    checkpoints = Checkpoints(tmp_path, keep=2, wall_clock=lambda: 1e9)
    assert checkpoints.newest() is None
    for step in (3, 7, 120):
        save(checkpoints, step)
    assert names(tmp_path) == ["step-00000007", "step-00000120"]
    found = checkpoints.newest()
    assert found is not None
    assert (found.step, found.saved_at) == (120, 1e9)
    assert torch.load(found.folder / "weights.pt", weights_only=True).tolist() == [120] * KIB


def test_the_oldest_goes_only_after_the_new_one_is_proven(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The disk gives back other bytes than were written: the save fails, all before it stay."""
    checkpoints = Checkpoints(tmp_path, keep=1)
    save(checkpoints, 1)

    def spoilt(path: Path) -> None:
        if path.name == "weights.pt":
            path.write_bytes(path.read_bytes()[:-1] + b"?")

    monkeypatch.setattr(sealed, "_forget", spoilt)
    with pytest.raises(StorageError, match=r"step-00000002 was not written as it should be: weights\.pt has"):
        save(checkpoints, 2)
    assert names(tmp_path) == ["step-00000001"]
    assert newest_step(tmp_path) == 1


def truncate(folder: Path) -> None:
    """A file lost its end."""
    with (folder / "weights.pt").open("r+b") as stream:
        stream.truncate(100)


def flip(folder: Path) -> None:
    """One bit of a file is another."""
    data = bytearray((folder / "weights.pt").read_bytes())
    data[len(data) // 2] ^= 1
    (folder / "weights.pt").write_bytes(data)


def empty(folder: Path) -> None:
    """The folder alone is left."""
    shutil.rmtree(folder)
    folder.mkdir()


def no_manifest(folder: Path) -> None:
    """The manifest is missing."""
    (folder / "manifest.json").unlink()


def half_manifest(folder: Path) -> None:
    """The manifest lost its end."""
    (folder / "manifest.json").write_text((folder / "manifest.json").read_text(encoding="utf-8")[:50], encoding="utf-8")


def other_version(folder: Path) -> None:
    """A release that this one cannot read wrote it."""
    text = (folder / "manifest.json").read_text(encoding="utf-8")
    (folder / "manifest.json").write_text(text.replace("checkpoint/v1", "checkpoint/v9"), encoding="utf-8")


def foreign_file(folder: Path) -> None:
    """Its manifest leads out of the folder."""
    text = (folder / "manifest.json").read_text(encoding="utf-8")
    (folder / "manifest.json").write_text(text.replace("state.json", "../x"), encoding="utf-8")


DAMAGES = (truncate, flip, empty, no_manifest, half_manifest, other_version, foreign_file)


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_newest_checkpoint_falls_back_to_the_one_before(
    tmp_path: Path, damage: Callable[[Path], None], caplog: pytest.LogCaptureFixture
) -> None:
    """With a line in the log; the next save takes the damaged one away."""
    checkpoints = Checkpoints(tmp_path, keep=2)
    save(checkpoints, 1)
    save(checkpoints, 2)
    damage(tmp_path / "step-00000002")
    found = checkpoints.newest()
    assert found is not None
    assert found.step == 1
    assert "the checkpoint step-00000002 is damaged" in caplog.text
    save(checkpoints, 2)
    assert newest_step(tmp_path) == 2
    assert names(tmp_path) == ["step-00000001", "step-00000002"]


def test_where_all_are_damaged_the_run_ends_with_the_remedy_and_removes_nothing(tmp_path: Path) -> None:
    """78: to start over in silence would throw hours away."""
    run = tmp_path / "tiny-abcde"
    run.mkdir()
    checkpoints = Checkpoints(run, keep=2)
    for step in (1, 2):
        save(checkpoints, step)
        truncate(run / f"step-0000000{step}")
    with pytest.raises(CheckpointError, match=r"none of the 2 checkpoints in .*tiny-abcde is whole") as ended:
        checkpoints.newest()
    assert (ended.value.code, ended.value.reason) == (78, Reason.CHECKPOINT_INVALID)
    assert "delete that folder" in str(ended.value)
    assert names(run) == ["step-00000001", "step-00000002"]


def test_what_a_killed_trainer_left_half_written_is_no_checkpoint_and_goes(tmp_path: Path) -> None:
    """Whatever it holds; other hidden things stay."""
    checkpoints = Checkpoints(tmp_path, keep=2)
    save(checkpoints, 1)
    (tmp_path / ".step-00000002.0123abcd").mkdir()
    (tmp_path / ".step-00000002.0123abcd/weights.pt").write_bytes(b"half")
    (tmp_path / ".lock-x").touch()
    assert newest_step(tmp_path) == 1
    save(checkpoints, 3)
    assert names(tmp_path) == [".lock-x", "step-00000001", "step-00000003"]


def test_a_link_with_a_checkpoints_name_is_none(tmp_path: Path) -> None:
    """It may lead anywhere."""
    (tmp_path / "run").mkdir()
    save(Checkpoints(tmp_path, keep=2), 1)
    (tmp_path / "run/step-00000009").symlink_to(tmp_path / "step-00000001")
    assert newest_step(tmp_path / "run") is None


def test_who_lost_the_folder_writes_nothing(tmp_path: Path) -> None:
    """Neither at the beginning of a save nor at its end."""
    answers = iter([None, TransientError("gone", Reason.OUTPUT_LOCKED)])

    def may_write() -> None:
        answer = next(answers)
        if answer is not None:
            raise answer

    with pytest.raises(TransientError, match="gone"):
        save(Checkpoints(tmp_path, keep=2, may_write=may_write), 1)
    assert names(tmp_path) == []


@pytest.fixture
def small_volume(tmp_path: Path) -> Iterator[Path]:
    """A volume of 6 MiB."""
    folder = tmp_path / "volume"
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=6m", "tmpfs", folder], check=True)
    yield folder
    subprocess.run(["umount", folder], check=True)


def test_a_volume_without_room_is_never_filled(small_volume: Path) -> None:
    """74 before the first byte, with what is missing; what was there stays valid."""
    checkpoints = Checkpoints(small_volume, keep=2)
    save(checkpoints, 1, 1024 * KIB)
    save(checkpoints, 2, 1024 * KIB)
    (small_volume / "others").write_bytes(bytes(2048 * KIB))
    before = shutil.disk_usage(small_volume).free
    with pytest.raises(StorageError, match=r"a checkpoint of 1\.0 MiB does not fit: .* 2\.0 MiB free") as full:
        save(checkpoints, 3, 1024 * KIB + 1)
    assert (full.value.code, full.value.reason) == (74, Reason.STORAGE_FULL)
    assert shutil.disk_usage(small_volume).free == before
    assert newest_step(small_volume) == 2


@pytest.mark.parametrize("left_kib", [0, 4, 64, 700])
def test_a_volume_that_fills_up_during_a_save_keeps_the_last_valid_checkpoint(
    small_volume: Path, left_kib: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Somebody else's writes: 74, the half checkpoint is gone again, and with room the next save works."""
    checkpoints = Checkpoints(small_volume, keep=2)
    save(checkpoints, 1, 1024 * KIB)
    rest = shutil.disk_usage(small_volume).free - left_kib * KIB
    (small_volume / "others").write_bytes(bytes(rest))
    monkeypatch.setattr(checkpoint, "_check_space", lambda folder, size: None)
    with pytest.raises(StorageError, match="the volume is full; free space or enlarge it") as full:
        save(checkpoints, 2, 1024 * KIB)
    assert (full.value.code, full.value.reason) == (74, Reason.STORAGE_FULL)
    assert names(small_volume) == ["others", "step-00000001"]
    assert newest_step(small_volume) == 1
    (small_volume / "others").unlink()
    save(checkpoints, 2, 1024 * KIB)
    assert newest_step(small_volume) == 2


def test_files_are_for_others_to_read(tmp_path: Path) -> None:
    """Who continues a run is not always who began it."""
    save(Checkpoints(tmp_path, keep=1), 1)
    folder = read_checkpoint(tmp_path / "step-00000001").folder
    assert {path.stat().st_mode & 0o044 for path in folder.iterdir()} == {0o044}


@pytest.mark.parametrize(
    ("code", "saved", "step"),
    [(errno.EIO, (1, 2), 1), (errno.EIO, (2,), None), (errno.ESTALE, (1, 2), None), (errno.EACCES, (1, 2), None)],
)
def test_a_volume_that_fails_is_no_damaged_checkpoint(
    *, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int, saved: tuple[int, ...], step: int | None
) -> None:
    """A retry may read it: no run ends for good, nor loses steps but where a bad block has a checkpoint before it."""
    checkpoints = Checkpoints(tmp_path, keep=2)
    for number in saved:
        save(checkpoints, number)
    real = sealed.entry_of

    def failing(folder: Path, name: str) -> sealed.FileEntry:
        if folder.name == "step-00000002":
            raise OSError(code, os.strerror(code), str(folder / name))
        return real(folder, name)

    monkeypatch.setattr(sealed, "entry_of", failing)
    if step is not None:
        assert newest_step(tmp_path) == step
        return
    with pytest.raises(StorageError, match=f"step-00000002 cannot be read: {os.strerror(code)}; look at the") as caught:
        newest_of(tmp_path)
    assert caught.value.code == 74


def test_a_run_whose_checkpoints_are_all_damaged_hides_no_other(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Of several runs of a name the newest whole checkpoint counts; where none is whole, that is an error."""
    for name, when in (("one", 3e9), ("two", 1e9), ("three", 2e9)):
        (tmp_path / name).mkdir()
        save(Checkpoints(tmp_path / name, keep=2, wall_clock=partial(float, when)), 1)
    (tmp_path / "empty").mkdir()
    folders = [tmp_path / name for name in ("one", "two", "three", "empty")]

    def found() -> str | None:
        newest = newest_in(folders)
        return None if newest is None else newest.folder.parent.name

    assert found() == "one"
    for name, left in (("one", "three"), ("three", "two")):
        (tmp_path / name / "step-00000001/weights.pt").write_bytes(b"")
        assert found() == left
    assert "none of the 1 checkpoints in" in caplog.text
    (tmp_path / "two/step-00000001/weights.pt").write_bytes(b"")
    with pytest.raises(CheckpointError, match="none of the 1 checkpoints in"):
        newest_in(folders)
    assert newest_in(folders[3:]) is None
