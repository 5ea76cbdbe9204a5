"""One process at a time fetches something into a shared cache; the others wait for as long as it gets anywhere.

The lock of a process that was killed is free: the kernel, or the file server, holds it for the living alone. A file
server may go on holding it for a node that is gone, though, and a process may hang, so nobody waits for standstill.
"""

import contextlib
import logging
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from filelock import FileLock, Timeout

from lora_trainer.errors import TransientError

log = logging.getLogger(__name__)
PATIENCE_S = 1200.0
"""How long nothing may arrive; longer than the sum over a large file takes on a slow volume, and than the holder waits
for new limits of requests."""
_POLL_S = 1.0


@contextlib.contextmanager
def alone_in_cache(
    lock: Path,
    state: Callable[[], object],
    *,
    what: str,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], object] = time.sleep,
) -> Iterator[None]:
    """Hold the file lock `lock`. `state` changes while another holder gets on; `what` is fetched, for the sentences.

    Raises `TransientError` where another holds it and nothing changes for `PATIENCE_S`.
    """
    held = FileLock(lock)
    _acquire(held, state, what, clock, sleep)
    try:
        yield
    finally:
        held.release()


def _acquire(
    held: FileLock,
    state: Callable[[], object],
    what: str,
    clock: Callable[[], float],
    sleep: Callable[[float], object],
) -> None:
    seen, since, logged = state(), clock(), False
    while True:
        with contextlib.suppress(Timeout):
            held.acquire(blocking=False)
            return
        if (now := state()) != seen:
            seen, since = now, clock()
        if clock() - since >= PATIENCE_S:
            raise TransientError(
                f"{what}: another run has held its lock in the cache ({Path(held.lock_file).name}) for "
                f"{PATIENCE_S:.0f} s without a byte arriving; the run is tried again, and if this lasts, look for a "
                "node that is gone or does not answer"
            )
        if not logged:
            log.info("%s is being fetched by another run: waiting", what)
            logged = True
        sleep(_POLL_S)
