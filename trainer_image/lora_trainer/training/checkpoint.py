"""Saved states of a run as folders `step-00000120`, each whole or absent, and kept until a newer one is proven.

A folder grows under a hidden name. Its files are forced to the disk and read back, its manifest with the sha256 of each
comes last, and only then it gets its name. Standard library only.
"""

import contextlib
import errno
import hashlib
import json
import logging
import os
import re
import secrets
import shutil
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lora_trainer.artifact.files import FileEntry, sync_files, sync_folder
from lora_trainer.contract import codec
from lora_trainer.contract.reasons import Reason
from lora_trainer.errors import CheckpointError, StorageError, storage_error

log = logging.getLogger(__name__)
RUN_FILE = "run.json"
"""What a checkpoint says of its run, as JSON."""
VERSION = "lora-operator.io/checkpoint/v1"
MANIFEST = "manifest.json"
MARGIN_BYTES = 2**20
"""What stays free on the volume beyond the new checkpoint itself: folders, manifest and the lock's signs of life."""

_NAME = re.compile(r"step-(\d{8,})")
Write = Callable[[Any], object]
"""Writes the content of one file to an object that has `write` and `flush`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Manifest:
    """`saved_at` is seconds since 1970 on the writer's clock."""

    version: str
    step: int
    saved_at: float
    files: tuple[FileEntry, ...]


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
        self._folder = folder
        self._keep = keep
        self._make_room = make_room
        self._may_write = may_write
        self._wall_clock = wall_clock
        self._damaged: tuple[Path, ...] = ()

    def newest(self) -> Checkpoint | None:
        """The newest whole one, None where none was ever saved; what is damaged is logged and passed over.

        Raises `CheckpointError` where there are some and all are damaged.
        """
        newest, damaged = newest_of(self._folder)
        self._damaged = tuple(damaged)
        return newest

    def save(self, step: int, files: Mapping[str, Write], size_bytes: int) -> Checkpoint:
        """Write one, prove it, then remove the oldest beyond those to keep.

        `size_bytes` is what the files take, about. Raises `StorageError`; whatever happens, those before stay valid.
        """
        self._may_write()
        discard_partial(self._folder)
        partial = self._folder / f".{step_name(step)}.{secrets.token_hex(4)}"
        saved_at = self._wall_clock()
        try:
            self._make_room(size_bytes + MARGIN_BYTES)
            _check_space(self._folder, size_bytes)
            _write(partial, step, saved_at, files)
            self._may_write()
            folder = self._give_name(partial, step)
        except OSError as error:
            raise storage_error(error, f"the checkpoint {step_name(step)}") from error
        finally:
            shutil.rmtree(partial, ignore_errors=True)
        saved = Checkpoint(folder=folder, step=step, saved_at=saved_at)
        self._remove(*(path for path in self._damaged if path != folder))
        self._damaged = ()
        self.prune()
        return saved

    def prune(self) -> None:
        """Remove all but the newest that are to be kept, and what a killed trainer left half done."""
        self._may_write()
        discard_partial(self._folder)
        self._remove(*checkpoint_folders(self._folder)[self._keep :])

    def _give_name(self, partial: Path, step: int) -> Path:
        folder = self._folder / step_name(step)
        if folder.exists():
            self._remove(folder)
        partial.rename(folder)
        sync_folder(self._folder)
        return folder

    def _remove(self, *folders: Path) -> None:
        for folder in folders:
            # Half removed it would look damaged: it loses its name first.
            hidden = self._folder / f".{folder.name}.{secrets.token_hex(4)}"
            try:
                folder.rename(hidden)
            except FileNotFoundError:
                continue
            shutil.rmtree(hidden, ignore_errors=True)


def newest_of(folder: Path) -> tuple[Checkpoint | None, list[Path]]:
    """The newest whole checkpoint in a folder and the damaged ones that are newer. Raises as `Checkpoints.newest`, and
    `StorageError` where the volume fails: a retry may read what is whole."""
    damaged: list[Path] = []
    first, failing = "", None
    for candidate in checkpoint_folders(folder):
        try:
            found = read_checkpoint(candidate)
        except CheckpointError as error:
            failing = failing or _failure_of_volume(candidate, error)
            if failing is not None and failing.errno != errno.EIO:
                break
            log.warning("%s: going back to the one before", error)
            damaged.append(candidate)
            first = first or str(error)
        else:
            return found, damaged
    if failing is not None:
        raise StorageError(
            f"the checkpoint {Path(str(failing.filename)).parent.name} cannot be read: {failing.strerror}; look at the "
            f"claim, its storage, and whether user {os.geteuid()} of the trainer may read it"
        )
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


def _failure_of_volume(folder: Path, error: CheckpointError) -> OSError | None:
    """The error for which a checkpoint could not be read, unless what is missing is the checkpoint's own damage."""
    cause = error.__cause__
    if not isinstance(cause, OSError) or cause.errno in (errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.ELOOP):
        return None
    return OSError(cause.errno, cause.strerror, str(folder / MANIFEST))


def read_checkpoint(folder: Path) -> Checkpoint:
    """A checkpoint whose files all have the size and sha256 of its manifest. Raises `CheckpointError`."""
    try:
        document = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        manifest = codec.decode(_Manifest, document)
        if manifest.version != VERSION:
            raise ValueError(f"its version is {manifest.version!r}, this trainer reads {VERSION}")
        for entry in manifest.files:
            _check_file(folder, entry)
    except (OSError, ValueError) as error:
        what = f"{error.strerror} ({Path(str(error.filename)).name})" if isinstance(error, OSError) else str(error)
        raise CheckpointError(f"the checkpoint {folder.name} is damaged: {what}") from error
    return Checkpoint(folder=folder, step=manifest.step, saved_at=manifest.saved_at)


def discard_partial(folder: Path) -> None:
    """Remove what a killed trainer left half written or half removed."""
    for path in partial_folders(folder):
        shutil.rmtree(path, ignore_errors=True)


def partial_folders(folder: Path) -> list[Path]:
    """What a killed trainer left half written or half removed."""
    return [path for path in folder.iterdir() if path.name.startswith(".step-")]


def step_name(step: int) -> str:
    """The name of a checkpoint's folder."""
    return f"step-{step:08d}"


def checkpoint_folders(folder: Path) -> list[Path]:
    """The checkpoints by name, newest first; links are none of ours."""
    found = [
        (int(match[1]), path)
        for path in (folder.iterdir() if folder.is_dir() else ())
        if (match := _NAME.fullmatch(path.name)) and path.is_dir() and not path.is_symlink()
    ]
    return [path for _, path in sorted(found, reverse=True)]


def _check_space(folder: Path, size_bytes: int) -> None:
    free = shutil.disk_usage(folder).free
    if free < size_bytes + MARGIN_BYTES:
        raise StorageError(
            f"a checkpoint of {size_bytes / 2**20:.1f} MiB does not fit: the checkpoint volume has "
            f"{free / 2**20:.1f} MiB free; free space or enlarge it, or create a new LoRAFineTune with a lower "
            "checkpoint.keep",
            Reason.STORAGE_FULL,
        )


def _write(folder: Path, step: int, saved_at: float, files: Mapping[str, Write]) -> None:
    folder.mkdir()
    entries = tuple(_write_file(folder, name, write) for name, write in files.items())
    sync_files(folder / entry.path for entry in entries)
    for entry in entries:
        _forget(folder / entry.path)
        try:
            _check_file(folder, entry)
        except ValueError as error:
            raise StorageError(f"the checkpoint {step_name(step)} was not written as it should be: {error}") from error
    manifest = _Manifest(version=VERSION, step=step, saved_at=saved_at, files=entries)
    (folder / MANIFEST).write_text(json.dumps(codec.encode(manifest), indent=2) + "\n", encoding="utf-8")
    sync_files((folder / MANIFEST, folder))


class _Hashed:
    """A file that is hashed as it is written. Keeps the first error: what writes through it may hide that."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self.hash = hashlib.sha256()
        self.size_bytes = 0
        self.error: OSError | None = None

    def write(self, data: bytes) -> int:
        left = memoryview(data)
        try:
            while left:
                left = left[os.write(self._descriptor, left) :]
        except OSError as error:
            self.error = self.error or error
            raise
        self.hash.update(data)
        self.size_bytes += len(data)
        return len(data)

    def flush(self) -> None:
        """Nothing waits: a full disk shows in the write that it stops."""


def _write_file(folder: Path, name: str, write: Write) -> FileEntry:
    descriptor = os.open(folder / name, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
    try:
        hashed = _Hashed(descriptor)
        try:
            write(hashed)
        except Exception as error:
            raise hashed.error or error from None
    finally:
        os.close(descriptor)
    return FileEntry(path=name, sha256=hashed.hash.hexdigest(), size_bytes=hashed.size_bytes)


def _forget(path: Path) -> None:
    """Drop the file from the page cache, so that reading it proves what the disk has. Mere advice, unknown to macOS."""
    with contextlib.suppress(OSError, AttributeError), path.open("rb") as stream:
        os.posix_fadvise(stream.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def _check_file(folder: Path, entry: FileEntry) -> None:
    """Raises `OSError` or `ValueError` where a file is not what its manifest says."""
    if Path(entry.path).name != entry.path:
        raise ValueError(f"its manifest names {entry.path!r}, which is not a file of its own")
    with (folder / entry.path).open("rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
        size = os.fstat(stream.fileno()).st_size
    if (digest, size) != (entry.sha256, entry.size_bytes):
        raise ValueError(
            f"{entry.path} has {size} bytes and sha256 {digest[:12]}…, its manifest says {entry.size_bytes} and "
            f"{entry.sha256[:12]}…"
        )
