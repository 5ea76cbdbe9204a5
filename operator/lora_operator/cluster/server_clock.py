"""The API server's wall clock. Its objects carry its times, so ages and deadlines are counted by it and not by ours."""

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime

# An answer names whole seconds and takes a while: a smaller difference is none.
TOLERANCE = timedelta(seconds=5)


def wall_clock() -> datetime:
    """This machine's own time."""
    return datetime.now(UTC)


class ServerClock:
    """Our own clock, put right by the `Date` of the API server's answers where it is wrong by more than `TOLERANCE`."""

    def __init__(self, wall: Callable[[], datetime] = wall_clock) -> None:
        self._wall = wall
        self._date = ""
        self._offset = timedelta()

    def saw(self, date: str | None) -> None:
        """An answer had this header."""
        if not date or date == self._date:
            return
        self._date = date
        try:
            theirs = parsedate_to_datetime(date)
        except ValueError:
            return
        offset = theirs.astimezone(UTC) - self._wall()
        self._offset = offset if abs(offset) > TOLERANCE else timedelta()

    def now(self) -> datetime:
        """The time at the API server, our own before its first answer."""
        return self._wall() + self._offset
