"""A bound on the processor time of what cannot be trusted to end."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def cpu_time(limit_s: float) -> Iterator[None]:
    """Raise `TimeoutError` inside once the process has computed for so long; only a main thread can be interrupted.

    Time of the processor, so that a busy machine ends nothing.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(*_: object) -> None:
        raise TimeoutError(f"it takes more than {limit_s:g} s of processor time")

    previous = signal.signal(signal.SIGVTALRM, stop)
    signal.setitimer(signal.ITIMER_VIRTUAL, limit_s)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        signal.signal(signal.SIGVTALRM, previous)
