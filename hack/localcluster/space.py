"""Free disk space, asked before a step that would fill the disk."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING

from localcluster.errors import ClusterError

if TYPE_CHECKING:
    from pathlib import Path

_GIB = 1024**3
# Go's module and build caches take 3.5 GiB for Kubernetes, Helm and CoreDNS, the binaries 0.6 GiB.
TOOLS_GIB = 5


def require(folder: Path, needed_gib: int, purpose: str) -> None:
    """Raise ClusterError unless the file system of the folder has that much space."""
    existing = folder
    while not existing.exists():
        existing = existing.parent
    free_gib = shutil.disk_usage(existing).free / _GIB
    if free_gib < needed_gib:
        raise ClusterError(
            f"To {purpose}, {needed_gib} GiB of free disk are needed at {folder}, and there are {free_gib:.1f} GiB:"
            " free some, or point XDG_CACHE_HOME at a larger disk."
        )
