"""What this machine is and what a process on it costs, as the kernel says."""

import math
import os
import platform
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

MIB = 2**20


@dataclass(frozen=True, slots=True, kw_only=True)
class Usage:
    """CPU time and resident memory of a process; `peak_bytes` is the most that it ever had."""

    cpu_s: float
    resident_bytes: int
    peak_bytes: int


def usage(pid: int) -> Usage:
    """Of a process that runs. Raises OSError for one that does not."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    lines = (line.partition(":") for line in Path(f"/proc/{pid}/status").read_text().splitlines())
    status = {name: value for name, _, value in lines}
    return Usage(
        cpu_s=(int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK"),
        resident_bytes=_kib(status["VmRSS"]),
        peak_bytes=_kib(status["VmHWM"]),
    )


def _kib(text: str) -> int:
    return int(text.split(maxsplit=1)[0]) * 1024


def percentile(values: Sequence[float], share: float) -> float:
    """Nearest rank of values in any order; `share` 1 is the largest."""
    return sorted(values)[max(0, math.ceil(share * len(values)) - 1)]


def _idle_ticks() -> tuple[int, int]:
    """Idle and all ticks of all cores since the start of the machine."""
    fields = [int(field) for field in Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:]]
    return fields[3] + fields[4], sum(fields[:8])


class Busy:
    """How busy the machine was since this was made."""

    def __init__(self) -> None:
        self._idle, self._all = _idle_ticks()

    def share(self) -> float:
        """From 0 to 1."""
        idle, ticks = _idle_ticks()
        return 1 - (idle - self._idle) / max(1, ticks - self._all)


def description() -> str:
    """The machine in words, without its load."""
    cpu = next((line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")), "")
    memory_gib = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return (
        f"{os.cpu_count()} cores ({cpu.partition(':')[2].strip() or platform.machine()}), {memory_gib:.0f} GiB, "
        f"Linux {platform.release()}, Python {platform.python_version()}"
    )
