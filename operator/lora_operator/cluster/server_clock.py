"""The API server's wall clock. Its objects carry its times, so ages and deadlines are counted by it and not by ours."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime

# An answer names whole seconds and takes a while: a smaller difference is none.
TOLERANCE = timedelta(seconds=5)
# Of several API servers one may have a wrong clock: another time than before counts once so many answers in a row, over
# so long, have agreed on it. A verdict that a single answer gives rise to would be final.
AGREED_TIMES, AGREED_S = 3, 30.0


def wall_clock() -> datetime:
    """This machine's own time."""
    return datetime.now(UTC)


@dataclass(frozen=True, slots=True)
class _Doubt:
    """Another offset that answers have named, since when, and how often in a row."""

    offset: timedelta
    since_s: float
    times: int


class ServerClock:
    """Our own clock, put right by the `Date` of the API server's answers where it is wrong by more than `TOLERANCE`.

    Our own is read once, and goes on by a monotonic clock: that somebody sets it moves no deadline. What it and an
    answer agree on counts at once.
    """

    def __init__(
        self, wall: Callable[[], datetime] = wall_clock, monotonic: Callable[[], float] = time.monotonic
    ) -> None:
        self._monotonic = monotonic
        self._origin = wall() - timedelta(seconds=monotonic())
        self._date = ""
        self._offset: timedelta | None = None
        self._doubt: _Doubt | None = None

    def saw(self, date: str | None) -> None:
        """An answer had this header."""
        if not date or date == self._date:
            return
        self._date = date
        try:
            theirs = parsedate_to_datetime(date)
        except ValueError:
            return
        offset = theirs.astimezone(UTC) - self._own()
        if abs(offset) <= TOLERANCE:
            self._believe(timedelta())
        elif self._offset is None:
            self._believe(offset)
        elif abs(offset - self._offset) <= TOLERANCE:
            self._doubt = None
        else:
            self._consider(offset)

    def now(self) -> datetime:
        """The time at the API server, our own before its first answer."""
        return self._own() + (self._offset or timedelta())

    def _own(self) -> datetime:
        return self._origin + timedelta(seconds=self._monotonic())

    def _believe(self, offset: timedelta) -> None:
        self._offset, self._doubt = offset, None

    def _consider(self, offset: timedelta) -> None:
        before, now_s = self._doubt, self._monotonic()
        if before is None or abs(offset - before.offset) > TOLERANCE:
            before = _Doubt(offset, now_s, 0)
        self._doubt = _Doubt(before.offset, before.since_s, before.times + 1)
        if self._doubt.times >= AGREED_TIMES and now_s - before.since_s >= AGREED_S:
            self._believe(offset)
