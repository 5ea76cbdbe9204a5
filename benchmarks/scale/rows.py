"""What the benchmark finds: rows of numbers."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple


class Measure(NamedTuple):
    """One number."""

    name: str
    value: float
    unit: str = ""

    def __str__(self) -> str:
        return f"{self.name} {round(self.value, 3):,g} {self.unit}".rstrip()


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """The numbers of one thing; `busy` is how busy the whole machine was meanwhile, from 0 to 1."""

    what: str
    found: Sequence[Measure]
    busy: float
    wanted: str = ""

    def __str__(self) -> str:
        wanted = f" (wanted: {self.wanted})" if self.wanted else ""
        return f"{self.what}: {'; '.join(map(str, self.found))}{wanted}; machine {100 * self.busy:.0f} % busy"
