"""Temporary folders that a killed process does not leave for ever: the next one of the same kind removes them."""

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from lora_trainer.storage.lock import held, is_abandoned

_ABANDONED_S = 3600.0
"""Without a sign of life of an owner whose process cannot be seen from here: another container may share the volume."""


@contextlib.contextmanager
def temporary_folder(prefix: str, parent: Path | None = None) -> Iterator[Path]:
    """A new folder below `parent`, or where the system has temporary files; removed at the end. Raises `OSError`."""
    parent = parent or Path(tempfile.gettempdir())
    for found in parent.glob(f"{prefix}*"):
        # Whoever makes it has no lock in it yet; a link is none of ours, and leads anywhere.
        with contextlib.suppress(OSError):
            if found.lstat().st_uid == os.geteuid() and is_abandoned(found, _ABANDONED_S):
                shutil.rmtree(found, ignore_errors=True)
    with tempfile.TemporaryDirectory(prefix=prefix, dir=parent) as name, held(Path(name), f"the folder {name}"):
        yield Path(name)
