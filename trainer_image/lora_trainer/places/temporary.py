"""Temporary folders that a killed process does not leave for ever: the next one of the same kind removes them.

The owner holds a lock on a file in its folder, which the kernel gives up with the process. Process ids would not do:
another container may share the volume and not the ids.
"""

import contextlib
import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

_OWNER = ".owner"


@contextlib.contextmanager
def temporary_folder(prefix: str, parent: Path | None = None) -> Iterator[Path]:
    """A new folder below `parent`, or where the system has temporary files; removed at the end. Raises `OSError`."""
    parent = parent or Path(tempfile.gettempdir())
    _remove_abandoned(prefix, parent)
    with tempfile.TemporaryDirectory(prefix=prefix, dir=parent) as name, _owned(Path(name)):
        yield Path(name)


@contextlib.contextmanager
def _owned(folder: Path) -> Iterator[None]:
    with (folder / f"{_OWNER}.new").open("wb") as lock:
        # A volume without locks: then no other process will get one either, and removes nothing.
        with contextlib.suppress(OSError):
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # It has its name only once it is locked, so that nobody finds it free.
            (folder / f"{_OWNER}.new").rename(folder / _OWNER)
        yield


def _remove_abandoned(prefix: str, parent: Path) -> None:
    for folder in parent.glob(f"{prefix}*"):
        with contextlib.suppress(OSError), _taken_over(folder):
            shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def _taken_over(folder: Path) -> Iterator[None]:
    """Raises `OSError` unless the folder is this user's own, and whoever made it is gone."""
    if folder.is_symlink() or folder.stat().st_uid != os.geteuid():
        raise PermissionError(folder)
    descriptor = os.open(folder / _OWNER, os.O_RDWR | os.O_NOFOLLOW)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    finally:
        os.close(descriptor)
