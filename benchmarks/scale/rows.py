"""What the benchmark finds: rows of a table, and points of a plot."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """A row of the table; `busy` is how busy the whole machine was meanwhile, from 0 to 1."""

    what: str
    wanted: str
    measured: str
    busy: float

    def __str__(self) -> str:
        wanted = f" (wanted: {self.wanted})" if self.wanted else ""
        return f"{self.what}: {self.measured}{wanted}; machine {100 * self.busy:.0f} % busy"


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """What a fleet of so many resources means: how fast a new one gets its Job, and what the operator holds."""

    resources: int
    p50_s: float
    p99_s: float
    ready_s: float
    resident_bytes: int

    def __str__(self) -> str:
        return (
            f"among {self.resources:,} resources: p50 {self.p50_s:.3f} s, p99 {self.p99_s:.3f} s, "
            f"ready after {self.ready_s:.1f} s, {self.resident_bytes / 2**20:.0f} MiB"
        )
