"""A time limit on what has none of its own and hears no signal, such as the making of NCCL's communicators."""

import contextlib
import logging
import os
import threading
from collections.abc import Callable, Iterator
from contextvars import ContextVar

from lora_trainer.distributed.parent import STORE
from lora_trainer.errors import NOT_CONNECTED, PeerFailedError, TrainerError

log = logging.getLogger(__name__)
_LATE_BY = 2
"""Times the limit of a collective: once for those that come late, and once for the connections."""
_LEAST_S = 600.0
"""What to connect may always take: the first use of many GPUs takes minutes."""
_reporting: ContextVar[Callable[[TrainerError], None] | None] = ContextVar("reporting", default=None)


@contextlib.contextmanager
def reported_by(report: Callable[[TrainerError], None]) -> Iterator[None]:
    """Have `report` called with the error of a limit that this thread's work exceeds in the meantime."""
    token = _reporting.set(report)
    try:
        yield
    finally:
        _reporting.reset(token)


@contextlib.contextmanager
def within(seconds: float, error: TrainerError) -> Iterator[None]:
    """End the process for `error` where the block takes longer: nothing could be raised in it."""
    timer = threading.Timer(seconds, _end, (error, _reporting.get()))
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def connecting(timeout_s: float | None) -> contextlib.AbstractContextManager[None]:
    """End the process with `PeerFailedError` where the block does not connect it with the others, some of which may
    come late, within several times `timeout_s`: NCCL waits for ever for a connection that does not come through."""
    if timeout_s is None:
        return contextlib.nullcontext()
    limit_s = max(_LATE_BY * timeout_s, _LEAST_S)
    late = f"{NOT_CONNECTED} within {limit_s:.0f} s"
    network = "if this lasts, set NCCL_SOCKET_IFNAME in defaults.environment to the nodes' common network interface"
    return within(limit_s, PeerFailedError(late if STORE in os.environ else f"{late}; {network}"))


def _end(error: TrainerError, report: Callable[[TrainerError], None] | None) -> None:
    # Whatever else fails, as where the supervisor is gone: an exception would end this thread alone.
    try:
        log.error("%s: %s", error.reason.value, error)
        if report is not None:
            report(error)
    finally:
        os._exit(error.code)
