"""Saved states of a run as sealed folders `step-00000120`, kept until a newer one is proven. Standard library only."""

import errno
import logging
import os
import shutil
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from lora_trainer.errors import CheckpointError, DamagedError, StorageError, storage_error
from lora_trainer.spec.reasons import Reason
from lora_trainer.storage.sealed import Seal, Write, check_files, folders_in, read_seal, remove, write_folder

log = logging.getLogger(__name__)
RUN_FILE = "run.json"
"""What a checkpoint says of its run, as JSON."""
VERSION = "lora-operator.io/checkpoint/v1"
MARGIN_BYTES = 2**20
"""What stays free on the volume beyond the new checkpoint itself: folders, manifest and the lock's signs of life."""
_NAME = r"step-\d{8,}"


@dataclass(frozen=True, slots=True, kw_only=True)
class _Seal(Seal):
    """`saved_at` is seconds since 1970 on the writer's clock."""

    step: int
    saved_at: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint:
    """A whole checkpoint: its folder, the optimizer steps before it, and when it was saved (seconds since 1970)."""

    folder: Path
    step: int
    saved_at: float


class Checkpoints:
    """Those in one folder. `may_write` is called before each change and raises where the folder is another's by now;
    `make_room` takes how many bytes are to be free."""

    def __init__(
        self,
        folder: Path,
        *,
        keep: int,
        may_write: Callable[[], None] = lambda: None,
        make_room: Callable[[int], None] = lambda _size_bytes: None,
        wall_clock: Callable[[], float] = time.time,
    ) -> None:
        self.folder = folder
        self._keep = keep
        self._make_room = make_room
        self._may_write = may_write
        self._wall_clock = wall_clock
        self._damaged: tuple[Path, ...] = ()

    def newest(self) -> Checkpoint | None:
        """The newest whole one, None where none was ever saved; what is damaged is logged and passed over.

        Raises `CheckpointError` where there are some and all are damaged.
        """
        newest, damaged = newest_of(self.folder)
        self._damaged = tuple(damaged)
        return newest

    def save(self, step: int, files: Mapping[str, Write], size_bytes: int) -> Checkpoint:
        """Write one, prove it, then remove the oldest beyond those to keep.

        `size_bytes` is what the files take, about. Raises `StorageError`; whatever happens, those before stay valid.
        """
        self._may_write()
        discard_partial(self.folder)
        folder = self.folder / step_name(step)
        seal = _Seal(version=VERSION, step=step, saved_at=self._wall_clock(), files=())
        try:
            self._make_room(size_bytes + MARGIN_BYTES)
            _check_space(self.folder, size_bytes)
            write_folder(folder, seal, files, ready=self._may_write)
        except OSError as error:
            raise storage_error(error, f"the checkpoint {folder.name}") from error
        except DamagedError as error:
            raise StorageError(f"the checkpoint {folder.name} was not written as it should be: {error}") from error
        saved = Checkpoint(folder=folder, step=step, saved_at=seal.saved_at)
        for path in self._damaged:
            if path != folder:
                remove(path)
        self._damaged = ()
        self.prune()
        return saved

    def prune(self) -> None:
        """Remove all but the newest that are to be kept, and what a killed trainer left half done."""
        self._may_write()
        discard_partial(self.folder)
        for folder in checkpoint_folders(self.folder)[self._keep :]:
            remove(folder)


def newest_of(folder: Path) -> tuple[Checkpoint | None, list[Path]]:
    """The newest whole checkpoint in a folder and the damaged ones that are newer. Raises as `Checkpoints.newest`, and
    `StorageError` where the volume fails: a retry may read what is whole."""
    damaged: list[Path] = []
    first, failing = "", None
    for candidate in checkpoint_folders(folder):
        try:
            return read_checkpoint(candidate), damaged
        except StorageError as error:
            if getattr(error.__cause__, "errno", None) != errno.EIO:
                raise
            failing = failing or error
            log.warning("%s: going back to the one before", error)
        except CheckpointError as error:
            first = first or str(error)
            log.warning("%s: going back to the one before", error)
        damaged.append(candidate)
    if failing is not None:
        raise failing
    if damaged:
        raise CheckpointError(
            f"none of the {len(damaged)} checkpoints in {folder.parent.name}/{folder.name} is whole ({first}): restore "
            "one from a backup, or delete that folder on the checkpoint claim to start from the beginning"
        )
    return None, damaged


def newest_in(folders: Iterable[Path]) -> Checkpoint | None:
    """The newest whole checkpoint of several runs; one of which none is whole hides no other. Raises as `newest_of`
    where nothing whole is left."""
    found: list[Checkpoint] = []
    failed: CheckpointError | None = None
    for folder in folders:
        try:
            newest, _ = newest_of(folder)
        except CheckpointError as error:
            log.warning("%s", error)
            failed = error
        else:
            found += [] if newest is None else [newest]
    if failed is not None and not found:
        raise failed
    return max(found, key=lambda checkpoint: (checkpoint.saved_at, checkpoint.step), default=None)


def read_checkpoint(folder: Path) -> Checkpoint:
    """A checkpoint whose files all have the size and sha256 of its manifest. Raises `CheckpointError`, and
    `StorageError` where the volume fails."""
    try:
        seal = read_seal(folder, _Seal, VERSION)
        check_files(folder, seal.files)
    except DamagedError as error:
        raise CheckpointError(f"the checkpoint {folder.name} is damaged: {error}") from error
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.ELOOP):
            what = f"{error.strerror} ({Path(str(error.filename)).name})"
            raise CheckpointError(f"the checkpoint {folder.name} is damaged: {what}") from error
        raise StorageError(
            f"the checkpoint {folder.name} cannot be read: {error.strerror}; look at the claim, its storage, and "
            f"whether user {os.geteuid()} of the trainer may read it"
        ) from error
    return Checkpoint(folder=folder, step=seal.step, saved_at=seal.saved_at)


def discard_partial(folder: Path) -> None:
    """Remove what a killed trainer left half written or half removed."""
    for path in partial_folders(folder):
        shutil.rmtree(path, ignore_errors=True)


def partial_folders(folder: Path) -> list[Path]:
    """What a killed trainer left half written or half removed."""
    return [path for path in folders_in(folder, _NAME) if path.name.startswith(".")]


def step_name(step: int) -> str:
    """The name of a checkpoint's folder."""
    return f"step-{step:08d}"


def checkpoint_folders(folder: Path) -> list[Path]:
    """The checkpoints by name, newest first; links are none of ours."""
    found = folders_in(folder, _NAME) if folder.is_dir() else []
    whole = (path for path in found if not path.name.startswith("."))
    return sorted(whole, key=lambda path: int(path.name.removeprefix("step-")), reverse=True)


def _check_space(folder: Path, size_bytes: int) -> None:
    free = shutil.disk_usage(folder).free
    if free < size_bytes + MARGIN_BYTES:
        raise StorageError(
            f"a checkpoint of {size_bytes / 2**20:.1f} MiB does not fit: the checkpoint volume has "
            f"{free / 2**20:.1f} MiB free; free space or enlarge it, or create a new LoRAFineTune with a lower "
            "checkpoint.keep",
            Reason.STORAGE_FULL,
        )
