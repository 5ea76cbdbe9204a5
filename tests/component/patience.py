"""Waiting for what comes in its own time."""

import time
from collections.abc import Callable
from typing import TypeVar

# Of a busy machine; whatever is waited for mostly comes within a second or two.
DEADLINE_S = 300.0
T = TypeVar("T")


def eventually(look: Callable[[], T | None], what: str, *, deadline_s: float = DEADLINE_S) -> T:
    """What `look` returns once it is true; fails with `what` and the last answer after the deadline."""
    end = time.monotonic() + deadline_s
    while True:
        seen = look()
        if seen:
            return seen
        assert time.monotonic() < end, f"not within {deadline_s:.0f} s: {what}; last seen: {seen!r}"
        time.sleep(0.05)
