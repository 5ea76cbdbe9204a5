"""Ports for servers that bind them seconds after a test has chosen them, and addresses for pods that answer."""

from __future__ import annotations

import fcntl
import itertools
import os
import tempfile
from pathlib import Path
from typing import TextIO

from localcluster.ports import is_free

# Above a kubelet's (10,250), below those of local clusters (from 20,000) and of outgoing connections (from 32,768).
_FIRST, _EACH, _PARTS = 11_000, 1_000, 9
# Of 127.0.0.0/8, all of which is the machine's own: above those that belong to pods that answer nothing.
_FIRST_NET, _ADDRESSES = 90, 250 * 250


def own_ports(worker: str) -> range:
    """Those of one worker of pytest-xdist, such as gw3, which no other takes; "" stands for a session without any."""
    first = _FIRST + _EACH * _part(worker)
    return range(first, first + _EACH)


def own_address(worker: str, number: int) -> str:
    """One of a worker's loopback addresses, which no other takes; their numbers begin anew where they end."""
    block, last = divmod(number % _ADDRESSES, 250)
    return f"127.{_FIRST_NET + _part(worker)}.{block}.{last + 1}"


def _part(worker: str) -> int:
    return int(worker.removeprefix("gw") or 0) % _PARTS


_WORKER = os.environ.get("PYTEST_XDIST_WORKER", "")
_OWN = own_ports(_WORKER)
# One after the other, so that none comes again soon.
_NEXT = itertools.count(os.getpid())
_NEXT_ADDRESS = itertools.count(250 * os.getpid())


# Locked as long as this process lives: sessions at once, such as two random lives, have the same ports.
_CLAIMS = Path(tempfile.gettempdir(), "lora-operator-test-ports")
_CLAIMED: dict[int, TextIO] = {}


def free_port() -> int:
    """A port on 127.0.0.1 that nobody uses, and that nobody is given before its server listens."""
    candidates = (_OWN[number % len(_OWN)] for number in itertools.islice(_NEXT, len(_OWN)))
    return next(port for port in candidates if claimed(port) and is_free(port))


def claimed(port: int) -> bool:
    """Whether the port is this process's from now on, rather than another's."""
    if port in _CLAIMED:
        return True
    _CLAIMS.mkdir(exist_ok=True)
    file = (_CLAIMS / str(port)).open("w")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        return False
    _CLAIMED[port] = file
    return True


def free_address() -> str:
    """A loopback address for a pod that is played, on which nobody else listens at the port of all trainers."""
    return own_address(_WORKER, next(_NEXT_ADDRESS))
