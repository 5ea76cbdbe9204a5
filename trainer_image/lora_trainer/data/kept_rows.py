"""Encoded rows that outlive the attempt that encoded them: beside a run's checkpoints, or in a cache.

A folder `rows-<key>` is whole or absent. It grows under a hidden name, its files are forced to the disk, the manifest
with the sha256 of each comes last, and only then it gets its name. Reading copies it to where the processes of the node
read rows from, and compares it on the way. Whatever happens to it, rows can be encoded anew: nothing here fails a run.
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
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

from lora_trainer.artifact.files import FileEntry, sync_files, sync_folder
from lora_trainer.contract import codec

log = logging.getLogger(__name__)

VERSION = "lora-operator.io/rows/v1"
MANIFEST = "manifest.json"
UNUSED_S = 7 * 86400.0
"""After how long without a reader rows leave a shared place."""

_NAME = re.compile(r"rows-[0-9a-f]{16}|\.rows-[0-9a-f]{16}\.[0-9a-f]{8}")
_CHUNK_BYTES = 2**20
_NO_DAMAGE = (errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.ESTALE, errno.ETIMEDOUT, errno.EACCES)
"""What a volume answers that is full or fails: the rows themselves may be whole, and a later attempt may read them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Manifest:
    """`key` in full: a folder's name has the beginning of it."""

    version: str
    key: str
    files: tuple[FileEntry, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class KeptRows:
    """Where rows are kept: `own` is read and written, `others` are only read.

    In a `shared` place there are rows of several runs, else those of one run, of which only the last are of use.
    `may_write` raises where the place is another's by now. `undisturbed` is a context that a request to stop waits for.
    """

    own: Path | None = None
    others: tuple[Path, ...] = ()
    shared: bool = False
    may_write: Callable[[], None] = lambda: None
    undisturbed: Callable[[], AbstractContextManager[object]] = field(default=contextlib.nullcontext)

    def read(self, key: str, folder: Path, names: tuple[str, ...]) -> bool:
        """Copy what was kept under `key` to the files `names` (paths in `folder`, the last one completes them).

        False where nothing was kept, or nothing whole: then none of the files exists.
        """
        for place in (self.own, *self.others):
            if place is None:
                continue
            kept = place / folder_name(key)
            try:
                if not _is_folder(kept):
                    continue
                _read(kept, key, folder, names)
            except (OSError, ValueError) as error:
                reason = error.strerror if isinstance(error, OSError) else error
                log.warning("the rows that an earlier attempt encoded (%s) cannot be read: %s", kept.name, reason)
                for name in names:
                    (folder / name).unlink(missing_ok=True)
                if place == self.own and not (isinstance(error, OSError) and error.errno in _NO_DAMAGE):
                    self.may_write()
                    _remove(kept)
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
            with self.undisturbed():
                self._write(self.own, key, folder, names)
        except OSError as error:
            log.warning("the encoded rows are not kept for later attempts: %s", error.strerror)
            return False
        log.info("the encoded rows (%.1f MiB) are kept for later attempts", size / 2**20)
        return True

    def make_room(self, size_bytes: int) -> None:
        """Remove what is kept in the own place unless so much is free beside it."""
        if self.own is None or self.shared or _free_bytes(self.own) >= size_bytes:
            return
        if any(folders_in(self.own)):
            log.warning("the encoded rows are removed, since what follows needs their space: a later attempt encodes")
            self.may_write()
            discard_rows(self.own)

    def _remove_useless(self, place: Path) -> None:
        """Rows that no attempt will read, and what a killed process left half written."""
        self.may_write()
        for found in list(folders_in(place)):
            with contextlib.suppress(OSError):
                used_at_s = max(path.stat().st_mtime for path in (found, *found.glob(MANIFEST)))
                if not self.shared or time.time() - used_at_s > UNUSED_S:
                    _remove(found)

    def _write(self, place: Path, key: str, folder: Path, names: tuple[str, ...]) -> None:
        partial = place / f".{folder_name(key)}.{secrets.token_hex(4)}"
        partial.mkdir()
        try:
            entries = tuple(_copy(name, folder / name, partial / _flat(name)) for name in names)
            sync_files(partial / entry.path for entry in entries)
            manifest = _Manifest(version=VERSION, key=key, files=entries)
            (partial / MANIFEST).write_text(json.dumps(codec.encode(manifest), indent=2) + "\n", encoding="utf-8")
            sync_files((partial / MANIFEST, partial))
            self.may_write()
            _remove(place / folder_name(key))
            partial.rename(place / folder_name(key))
            sync_folder(place)
        finally:
            shutil.rmtree(partial, ignore_errors=True)


def folder_name(key: str) -> str:
    """The name of the folder of a key."""
    return f"rows-{key[:16]}"


def folders_in(place: Path) -> Iterator[Path]:
    """The folders of rows in a place, half-written ones included; links and what others put there are none of ours."""
    return (path for path in place.iterdir() if _NAME.fullmatch(path.name) and _is_folder(path))


def discard_rows(place: Path) -> None:
    """Remove all rows that are kept in a place."""
    with contextlib.suppress(OSError):
        for found in list(folders_in(place)):
            _remove(found)


def _free_bytes(place: Path) -> int:
    return shutil.disk_usage(place).free


def _is_folder(path: Path) -> bool:
    return path.is_dir() and not path.is_symlink()


def _remove(kept: Path) -> None:
    """Half removed it would look damaged: it loses its name first. What is no folder stays."""
    if not _is_folder(kept):
        return
    hidden = kept if kept.name.startswith(".") else kept.with_name(f".{kept.name}.{secrets.token_hex(4)}")
    with contextlib.suppress(OSError):
        kept.rename(hidden)
    shutil.rmtree(hidden, ignore_errors=True)


def _flat(name: str) -> str:
    return name.replace("/", "-")


def _read(kept: Path, key: str, folder: Path, names: tuple[str, ...]) -> None:
    """Raises `OSError` or `ValueError` where something is not as it was written."""
    with _opened(kept / MANIFEST) as stream:
        manifest = codec.decode(_Manifest, json.load(stream))
    if (manifest.version, manifest.key) != (VERSION, key):
        raise ValueError("they are of other data, or in another form")
    wanted = {entry.path: entry for entry in manifest.files}
    for name in names:
        found = _copy(name, kept / _flat(name), folder / name)
        if found != wanted.get(found.path):
            raise ValueError(f"{found.path} ({found.size_bytes} bytes) is not as it was written")


def _copy(name: str, source: Path, target: Path) -> FileEntry:
    """Copy the file `name`; what was read of it, under the name that it is kept under."""
    digest, size = hashlib.sha256(), 0
    target.parent.mkdir(parents=True, exist_ok=True)
    with _opened(source) as reader, target.open("xb") as writer:
        while chunk := reader.read(_CHUNK_BYTES):
            digest.update(chunk)
            size += writer.write(chunk)
    return FileEntry(path=_flat(name), sha256=digest.hexdigest(), size_bytes=size)


def _opened(path: Path) -> BinaryIO:
    """As files of a claim are read: a link could lead anywhere."""
    return os.fdopen(os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC), "rb")
