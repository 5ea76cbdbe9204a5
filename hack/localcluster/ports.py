"""TCP ports on 127.0.0.1: free ones, and who holds a taken one."""

from __future__ import annotations

import contextlib
import socket
from pathlib import Path
from typing import TYPE_CHECKING

from localcluster.errors import ClusterError

if TYPE_CHECKING:
    import random

# Below the range from which the kernel takes the local ports of outgoing connections.
_FIRST, _LAST = 20000, 30000


def is_free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


def choose(count: int, source: random.Random) -> list[int]:
    """Ports that are free now, chosen at random so that clusters started at once rarely meet."""
    chosen: list[int] = []
    while len(chosen) < count:
        port = source.randrange(_FIRST, _LAST)
        if port not in chosen and is_free(port):
            chosen.append(port)
    return chosen


def require_free(port: int, option: str) -> None:
    """Raise ClusterError, naming the holder, if the port is taken; `option` is the flag that changes it."""
    if not is_free(port):
        raise ClusterError(
            f"Port {port} on 127.0.0.1 is already taken by {holder(port)}: end that, or choose another with {option}."
        )


def holder(port: int) -> str:
    """Name and pid of the process that listens on the port, as far as this user may see it."""
    inodes = listening_inodes(Path("/proc/net/tcp").read_text(), port)
    with contextlib.suppress(FileNotFoundError):
        inodes |= listening_inodes(Path("/proc/net/tcp6").read_text(), port)
    wanted = {f"socket:[{inode}]" for inode in inodes}
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if any(str(link.readlink()) in wanted for link in (process / "fd").iterdir()):
                return f"{(process / 'comm').read_text().strip()} (process {process.name})"
    return "a process that this user may not see"


def listening_inodes(table: str, port: int) -> set[str]:
    """Inodes of listening sockets on the port, from the text of /proc/net/tcp or tcp6."""
    inodes = set()
    for line in table.splitlines()[1:]:
        fields = line.split()
        local, state, inode = fields[1], fields[3], fields[9]
        if state == "0A" and int(local.rsplit(":", 1)[1], 16) == port:
            inodes.add(inode)
    return inodes
