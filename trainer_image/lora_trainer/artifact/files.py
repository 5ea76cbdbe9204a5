"""Files of a result or a checkpoint: their digests, forced to the disk."""

import errno
import hashlib
import os
import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from lora_trainer.errors import storage_error


@dataclass(frozen=True, slots=True, kw_only=True)
class FileEntry:
    """One file of the result; `path` is relative to its folder."""

    path: str
    sha256: str
    size_bytes: int


def entry_of(folder: Path, name: str) -> FileEntry:
    """Digest and size of the file `name` below `folder`. Raises `OSError`."""
    with (folder / name).open("rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
    return FileEntry(path=name, sha256=digest, size_bytes=(folder / name).stat().st_size)


def sync_files(paths: Iterable[Path]) -> None:
    """Force files to the disk: a manifest must never outlive the files that it vouches for."""
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


def sync_folder(folder: Path) -> None:
    """Force a folder's entries to the disk."""
    sync_files((folder,))


def make_folder(folder: Path) -> None:
    """An empty folder for a result; what an attempt left there that was cut short is removed. Raises `StorageError`."""
    try:
        if folder.exists():
            shutil.rmtree(folder)
        folder.mkdir(parents=True)
    except OSError as error:
        raise storage_error(error, f"the run's folder {folder.name}") from error
