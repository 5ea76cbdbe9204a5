"""Sealed folders: whole or absent, and every file known by its digest.

A folder grows under a hidden name. Its files are forced to the disk and read back, its manifest with the sha256 of each
comes last, and only then it gets its name; one that goes loses its name first. A result grows in its place, and is one
once it has its manifest. Standard library only.
"""

import contextlib
import dataclasses
import errno
import hashlib
import json
import os
import re
import secrets
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, TypeVar

from lora_trainer.errors import DamagedError
from lora_trainer.spec import codec

MANIFEST = "manifest.json"
_UNFINISHED = ".manifest"
"""The manifest while it is written."""
_CHUNK_BYTES = 2**20
Write = Callable[[Any], object]
"""Writes the content of one file to an object that has `write` and `flush`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FileEntry:
    """One file; `path` is relative to its folder."""

    path: str
    sha256: str
    size_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Seal:
    """A manifest: `version` names its form, `files` are those that it vouches for."""

    version: str
    files: tuple[FileEntry, ...]

    def to_json(self) -> str:
        """Stable text."""
        return json.dumps(codec.encode(self), indent=2, sort_keys=True, ensure_ascii=False) + "\n"


S = TypeVar("S", bound=Seal)


def read_seal(folder: Path, kind: type[S], version: str) -> S:
    """The manifest of a folder. Raises `OSError`, `DamagedError`."""
    try:
        seal = codec.decode(kind, json.loads((folder / MANIFEST).read_text(encoding="utf-8")))
    except ValueError as error:
        raise DamagedError(f"{folder.name}/{MANIFEST} cannot be read: {error}") from error
    if seal.version != version:
        raise DamagedError(f"{folder.name}/{MANIFEST} is of version {seal.version!r}, this trainer reads {version}")
    return seal


def write_seal(folder: Path, seal: Seal) -> None:
    """Write the manifest of a folder, whole or not at all. Raises `OSError`."""
    (folder / _UNFINISHED).write_text(seal.to_json(), encoding="utf-8")
    sync(folder / _UNFINISHED)
    (folder / _UNFINISHED).replace(folder / MANIFEST)
    sync(folder)


def file_names(folder: Path) -> list[str]:
    """The files below a folder but its manifest; a link counts as a file."""
    files = (path for path in folder.rglob("*") if path.is_symlink() or not path.is_dir())
    names = sorted(path.relative_to(folder).as_posix() for path in files)
    return [name for name in names if name not in (MANIFEST, _UNFINISHED)]


def entry_of(folder: Path, name: str) -> FileEntry:
    """Digest and size of the file `name` below `folder`. Raises `OSError`."""
    with (folder / name).open("rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
        return FileEntry(path=name, sha256=digest, size_bytes=os.fstat(stream.fileno()).st_size)


def compare(found: FileEntry, wanted: FileEntry) -> None:
    """Raises `DamagedError` where a file is not what its manifest says."""
    if found != wanted:
        raise DamagedError(
            f"{wanted.path} has sha256 {found.sha256[:12]}… and {found.size_bytes} bytes, the manifest says "
            f"{wanted.sha256[:12]}… and {wanted.size_bytes}: the file was changed or damaged after it was written"
        )


def check_files(folder: Path, files: Iterable[FileEntry]) -> None:
    """Read files and compare them with their entries. Raises `DamagedError`, and `OSError` for what cannot be read."""
    for wanted in files:
        if PurePosixPath(wanted.path).is_absolute() or ".." in PurePosixPath(wanted.path).parts:
            raise DamagedError(f"{MANIFEST} names {wanted.path!r}, which is no file of its folder")
        compare(entry_of(folder, wanted.path), wanted)


def write_folder(target: Path, seal: Seal, files: Mapping[str, Write], *, ready: Callable[[], None]) -> None:
    """Make `target` of `files`, in place of a folder of this name. `ready` is called when all is written, and raises
    where nothing may change. Raises as `write_files`."""
    with aside(target) as partial:
        write_seal(partial, dataclasses.replace(seal, files=write_files(partial, files)))
        ready()
        remove(target)
        partial.rename(target)
        sync(target.parent)


@contextlib.contextmanager
def aside(target: Path, mark: str | None = None) -> Iterator[Path]:
    """An empty folder with a hidden name beside `target`, to be renamed to it; what still has that name is removed.

    With a `mark` it has one name at all times, and what a killed process left of it is removed. Raises `OSError`.
    """
    partial = target.with_name(f".{target.name}.{mark or secrets.token_hex(4)}")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        yield partial
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def write_files(folder: Path, files: Mapping[str, Write]) -> tuple[FileEntry, ...]:
    """Write files that are not there yet, force them to the disk and read them back. Raises `OSError`, and
    `DamagedError` where the disk has something else."""
    entries = tuple(write_file(folder, name, write) for name, write in files.items())
    paths = [folder / entry.path for entry in entries]
    sync(*paths, *{path.parent for path in paths})
    for entry in entries:
        _forget(folder / entry.path)
    check_files(folder, entries)
    return entries


def write_file(folder: Path, name: str, write: Write) -> FileEntry:
    """Write one file that is not there yet; what was written. Raises `OSError`, and what `write` raises."""
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
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


def copied(path: Path) -> Write:
    """The content of another file."""

    def write(file: Any) -> None:
        with path.open("rb") as stream:
            shutil.copyfileobj(stream, file, _CHUNK_BYTES)

    return write


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


def _forget(path: Path) -> None:
    """Drop the file from the page cache, so that reading it proves what the disk has. Mere advice, unknown to macOS."""
    with contextlib.suppress(OSError, AttributeError), path.open("rb") as stream:
        os.posix_fadvise(stream.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def folders_in(place: Path, name: str) -> list[Path]:
    """The folders of a place whose names match the pattern `name`, and those that have it hidden: half written, or half
    removed, by who was killed. Links are none."""
    pattern = re.compile(rf"{name}|\.{name}\.[0-9a-f]{{8}}")
    return [path for path in place.iterdir() if pattern.fullmatch(path.name) and _is_folder(path)]


def remove(folder: Path) -> None:
    """Remove a folder, which half removed would look damaged: it loses its name first. What is none stays.

    Raises `OSError` where it keeps its name.
    """
    if not _is_folder(folder):
        return
    hidden = folder
    if not folder.name.startswith("."):
        hidden = folder.rename(folder.with_name(f".{folder.name}.{secrets.token_hex(4)}"))
    shutil.rmtree(hidden, ignore_errors=True)


def _is_folder(path: Path) -> bool:
    return path.is_dir() and not path.is_symlink()


def sync(*paths: Path) -> None:
    """Force files and folders to the disk: a manifest must never outlive the files that it vouches for."""
    for path in paths:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        except OSError as error:
            # An SMB share, and some file systems in user space, know no such thing for a folder.
            if error.errno not in (errno.EINVAL, errno.EOPNOTSUPP) or not path.is_dir():
                raise
        finally:
            os.close(descriptor)
