"""Encoded rows that outlive the attempt that encoded them: beside a run's checkpoints, or in a cache.

Reading copies a sealed folder `rows-<key>` to where the processes of the node read rows from, and compares it on the
way. Whatever happens to it, rows can be encoded anew: nothing here fails a run.
"""

import contextlib
import errno
import hashlib
import logging
import os
import shutil
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from lora_trainer.errors import DamagedError
from lora_trainer.storage.sealed import (
    MANIFEST,
    Seal,
    compare,
    copied,
    folders_in,
    read_seal,
    remove,
    write_file,
    write_folder,
)

log = logging.getLogger(__name__)

VERSION = "lora-operator.io/rows/v1"
UNUSED_S = 7 * 86400.0
"""After how long without a reader rows leave a shared place."""

_NAME = "rows-[0-9a-f]{16}"
_LIBRARIES = ("transformers", "tokenizers", "jinja2")
_NO_DAMAGE = (errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.ESTALE, errno.ETIMEDOUT, errno.EACCES)
"""What a volume answers that is full or fails: the rows themselves may be whole, and a later attempt may read them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class KeptRows:
    """Where rows are kept: `own` is read and written, `other` and `cache` are only read.

    In the cache, and in an own place that is `shared`, there are rows of several runs, each for the libraries that
    encoded them; else those of one run, which goes on with the rows that it began with, and of which only the last are
    of use.
    `may_write` raises where the place is another's by now. `undisturbed` is a context that a request to stop waits for.
    """

    own: Path | None = None
    other: Path | None = None
    cache: Path | None = None
    shared: bool = False
    may_write: Callable[[], None] = lambda: None
    undisturbed: Callable[[], AbstractContextManager[object]] = field(default=contextlib.nullcontext)

    @property
    def some(self) -> bool:
        """Whether any are there, of whatever key."""
        places = (place for place in (self.own, self.other, self.cache) if place is not None and place.is_dir())
        return any(row_folders(place) for place in places)

    def read(self, key: str, folder: Path, names: tuple[str, ...]) -> bool:
        """Copy what was kept under `key` to the files `names` (paths in `folder`, the last one completes them).

        False where nothing was kept, or nothing whole: then none of the files exists.
        """
        for place, shared in ((self.own, self.shared), (self.other, False), (self.cache, True)):
            if place is None:
                continue
            kept = place / folder_name(key, shared=shared)
            try:
                if kept.is_symlink() or not kept.is_dir():
                    continue
                _read(kept, folder, names)
            except (OSError, DamagedError) as error:
                reason = error.strerror if isinstance(error, OSError) else error
                log.warning("the rows that an earlier attempt encoded (%s) cannot be read: %s", kept.name, reason)
                for name in names:
                    (folder / name).unlink(missing_ok=True)
                if place == self.own and not (isinstance(error, OSError) and error.errno in _NO_DAMAGE):
                    self.may_write()
                    with contextlib.suppress(OSError):
                        remove(kept)
                continue
            # A place of others may not be writable.
            with contextlib.suppress(OSError):
                os.utime(kept / MANIFEST)
            return True
        return False

    def keep(self, key: str, folder: Path, names: tuple[str, ...]) -> bool:
        """Copy the files `names` of `folder` into the own place; False, with a line in the log, where that fails.

        They may take half of the free space: the other half is left to checkpoints and to others.
        """
        if self.own is None:
            return False
        try:
            self.own.mkdir(parents=True, exist_ok=True)
            self._remove_useless(self.own)
            size = sum((folder / name).stat().st_size for name in names)
            free = _free_bytes(self.own)
            if 2 * size > free:
                log.info(
                    "the encoded rows are not kept for later attempts: they take %.1f MiB, more than half of the "
                    "%.1f MiB that the volume has free",
                    size / 2**20,
                    free / 2**20,
                )
                return False
            seal, files = Seal(version=VERSION, files=()), {name: copied(folder / name) for name in names}
            with self.undisturbed():
                write_folder(self.own / folder_name(key, shared=self.shared), seal, files, ready=self.may_write)
        except (OSError, DamagedError) as error:
            reason = error.strerror if isinstance(error, OSError) else error
            log.warning("the encoded rows are not kept for later attempts: %s", reason)
            return False
        log.info("the encoded rows (%.1f MiB) are kept for later attempts", size / 2**20)
        return True

    def make_room(self, size_bytes: int) -> None:
        """Remove what is kept in the own place unless so much is free beside it."""
        if self.own is None or self.shared or _free_bytes(self.own) >= size_bytes:
            return
        if row_folders(self.own):
            log.warning("the encoded rows are removed, since what follows needs their space: a later attempt encodes")
            self.may_write()
            discard_rows(self.own)

    def _remove_useless(self, place: Path) -> None:
        """Rows that no attempt will read, and what a killed process left half written."""
        self.may_write()
        for found in row_folders(place):
            with contextlib.suppress(OSError):
                used_at_s = max(path.stat().st_mtime for path in (found, *found.glob(MANIFEST)))
                if not self.shared or time.time() - used_at_s > UNUSED_S:
                    remove(found)


def folder_name(key: str, *, shared: bool) -> str:
    """The name of the folder of a key, in a place that runs share of these libraries alone."""
    libraries = "".join(f" {name} {_version(name)}" for name in _LIBRARIES) if shared else ""
    return f"rows-{hashlib.sha256(f'{key}{libraries}'.encode()).hexdigest()[:16]}"


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "absent"


def row_folders(place: Path) -> list[Path]:
    """The folders of rows in a place, half-written ones included; links and what others put there are none of ours."""
    return folders_in(place, _NAME)


def discard_rows(place: Path) -> None:
    """Remove all rows that are kept in a place."""
    with contextlib.suppress(OSError):
        for found in row_folders(place):
            remove(found)


def _free_bytes(place: Path) -> int:
    return shutil.disk_usage(place).free


def _read(kept: Path, folder: Path, names: tuple[str, ...]) -> None:
    """Raises `OSError` or `DamagedError` where something is not as it was written, or a link: that could lead
    anywhere."""
    if any(path.is_symlink() for path in kept.rglob("*")):
        raise OSError(errno.ELOOP, os.strerror(errno.ELOOP))
    wanted = {entry.path: entry for entry in read_seal(kept, Seal, VERSION).files}
    for name in names:
        found = write_file(folder, name, copied(kept / name))
        if name not in wanted:
            raise DamagedError(f"{MANIFEST} does not name {name}")
        compare(found, wanted[name])
