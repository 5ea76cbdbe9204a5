"""The API server's wall clock. Its objects carry its times, so ages and deadlines are counted by it and not by ours."""

import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime

# An answer names whole seconds and takes a while: a smaller difference is none.
TOLERANCE = timedelta(seconds=5)


def wall_clock() -> datetime:
    """This machine's own time."""
    return datetime.now(UTC)


class ServerClock:
    """Our own clock, put right by the `Date` of the API server's answers where it is wrong by more than `TOLERANCE`.

    Our own is read once, and goes on by a monotonic clock: that somebody sets it moves no deadline.
    """

    def __init__(
        self, wall: Callable[[], datetime] = wall_clock, monotonic: Callable[[], float] = time.monotonic
    ) -> None:
        self._monotonic = monotonic
        self._origin = wall() - timedelta(seconds=monotonic())
        self._offset = timedelta()

    def saw(self, date: str | None) -> None:
        """An answer had this header."""
        try:
            theirs = parsedate_to_datetime(date or "")
        except ValueError:
            return
        offset = theirs.astimezone(UTC) - self._own()
        if abs(offset) <= TOLERANCE:
            offset = timedelta()
        if abs(offset - self._offset) > TOLERANCE:
            self._offset = offset

    def now(self) -> datetime:
        """The time at the API server, our own before its first answer."""
        return self._own() + self._offset

    def _own(self) -> datetime:
        return self._origin + timedelta(seconds=self._monotonic())
