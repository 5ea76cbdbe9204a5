"""Whether a download has room where it goes, before its first byte: a node that runs full evicts other pods, too."""

import shutil
from collections.abc import Iterable
from pathlib import Path

from lora_trainer.errors import StorageError
from lora_trainer.spec.reasons import Reason


def check_room(folder: Path, files: Iterable[tuple[Path, int]], what: str) -> None:
    """Raise `StorageError` where what is missing of `files`, each with its whole size in bytes, is more than `folder`,
    which need not exist yet, can take. A path may be that of a file that was begun."""
    missing = sum(size_bytes - (path.stat().st_size if path.is_file() else 0) for path, size_bytes in files)
    place = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
    free = shutil.disk_usage(place).free
    if missing > free:
        raise StorageError(
            f"{what}: {missing:,} bytes are still to be fetched, and the cache (HF_HOME) has room for {free:,}; free "
            "space or enlarge its volume, which without a cache claim is the node's disk",
            Reason.STORAGE_FULL,
        )
