"""How far a long piece of work is, for whoever looks on. Like the log, a listener is not handed through all calls."""

import contextlib
import time
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from dataclasses import dataclass

REPORT_EVERY_S = 0.2
"""Short enough for a line on a terminal, long enough to cost nothing."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Activity:
    """`done` of `total` things are done; either is None where nobody counts.

    `what` is for people: a present participle with its object, as in "reading rows".
    """

    what: str
    done: int | None = None
    total: int | None = None


_listener: ContextVar[Callable[[Activity], None] | None] = ContextVar("listener", default=None)


@contextlib.contextmanager
def heard_by(listener: Callable[[Activity], None]) -> Iterator[None]:
    """Have `listener` called with what this thread's work reports in the meantime."""
    token = _listener.set(listener)
    try:
        yield
    finally:
        _listener.reset(token)


def begun(what: str) -> None:
    """Report work that is not counted."""
    listener = _listener.get()
    if listener is not None:
        listener(Activity(what=what))


class Counter:
    """Reports one piece of work: the first count at once, then a few a second, and the last one."""

    def __init__(self, what: str, total: int | None = None, clock: Callable[[], float] = time.monotonic) -> None:
        self._what, self._total, self._clock = what, total, clock
        self._listener = _listener.get()
        self._due_at_s = clock()

    def __call__(self, done: int) -> None:
        """So many are done now."""
        if self._listener is None:
            return
        now = self._clock()
        if now >= self._due_at_s or done == self._total:
            self._due_at_s = now + REPORT_EVERY_S
            self._listener(Activity(what=self._what, done=done, total=self._total))
