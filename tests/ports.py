"""Ports for servers that bind them seconds after a test has chosen them, and addresses for pods that answer."""

import itertools
import os
import secrets

from localcluster.ports import is_free

# A worker of pytest-xdist has its own: above a kubelet's (10,250), below those of local clusters (from 20,000).
_FIRST, _EACH, _PARTS = 11_000, 1_000, 9
# Of 127.0.0.0/8, all of which is the machine's own: above those that belong to pods that answer nothing.
_FIRST_NET, _ADDRESSES = 90, 250 * 250
_PART = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw")) % _PARTS
# One after the other, so that none comes again soon; from anywhere, since sessions at once have the same ones.
_NEXT = itertools.count(secrets.randbelow(_EACH))
_NEXT_ADDRESS = itertools.count(secrets.randbelow(_ADDRESSES))


def free_port() -> int:
    """A port on 127.0.0.1 that nobody uses, and that no other worker is given before its server listens."""
    candidates = (_FIRST + _EACH * _PART + number % _EACH for number in itertools.islice(_NEXT, _EACH))
    return next(port for port in candidates if is_free(port))


def free_address() -> str:
    """A loopback address for a pod that is played, on which nobody else listens at the port of all trainers."""
    block, last = divmod(next(_NEXT_ADDRESS) % _ADDRESSES, 250)
    return f"127.{_FIRST_NET + _PART}.{block}.{last + 1}"
