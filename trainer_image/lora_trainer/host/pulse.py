"""Whether processes work, of which some report for minutes nothing: one that loads a model, or uploads a result.

Seen from outside, by the CPU time that they have taken. One that waits for a network that hangs takes next to none.
"""

import time
from collections.abc import Callable
from pathlib import Path

LEAST_SHARE = 0.001
"""Of a core. Timers that only wait take a tenth of that."""
LEAST_S = 5.0
"""Between two looks: clock ticks are hundredths of a second."""
_TICKS_PER_S = 100
_UTIME, _STIME, _PPID = 11, 12, 1


class Pulse:
    """Of a process and all that it started; `pid` gives it, None while there is none."""

    def __init__(
        self,
        pid: Callable[[], int | None],
        ticks: "Callable[[int], int] | None" = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._pid, self._ticks, self._clock = pid, ticks or ticks_of, clock
        self._seen: tuple[int, float, int] | None = None

    def stirs(self) -> bool:
        """Whether the process has worked since the last time that this was asked."""
        pid, now = self._pid(), self._clock()
        if pid is None:
            self._seen = None
            return False
        if self._seen is not None and self._seen[0] == pid and now - self._seen[1] < LEAST_S:
            return False
        before, self._seen = self._seen, (pid, now, self._ticks(pid))
        if before is None or before[0] != pid:
            return False
        return self._seen[2] - before[2] >= max(1.0, LEAST_SHARE * _TICKS_PER_S * (now - before[1]))


def ticks_of(pid: int, processes: Path = Path("/proc")) -> int:
    """CPU time of a process and its descendants, in hundredths of a second; 0 where the system does not tell."""
    found: dict[int, tuple[int, int]] = {}
    for stat in processes.glob("[0-9]*/stat"):
        try:
            # The name, in parentheses, may hold anything.
            fields = stat.read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
            found[int(stat.parent.name)] = int(fields[_PPID]), int(fields[_UTIME]) + int(fields[_STIME])
        except (OSError, ValueError, IndexError):
            continue  # it has ended
    family = {pid}
    while more := {child for child, (parent, _) in found.items() if parent in family} - family:
        family |= more
    return sum(found[member][1] for member in family if member in found)
