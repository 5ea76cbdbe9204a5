"""What a row is, how large it may be, and which rows of several files are wanted."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from lora_trainer.errors import DatasetError

MAX_ROW_BYTES = 16 * 2**20


class Row(NamedTuple):
    """One row: its number over all files, from 0, and where it stands, as in `train.jsonl, line 17`.

    That is its `position` in its `file`, from 1: a line (the last one of a row of CSV), or a row of a list or a table,
    as `unit` says. A tuple, since one is made of each of millions of rows.
    """

    number: int
    where: str
    file: str
    position: int
    values: Mapping[str, Any]
    unit: str = "line"


class Selection:
    """Counts rows over all files and says which of them are wanted: all, or those that are true in `wanted`."""

    def __init__(self, wanted: NDArray[np.bool_] | None = None) -> None:
        self._wanted = wanted
        self._last = None if wanted is None else int(np.flatnonzero(wanted).max(initial=-1))
        self.count = 0

    @property
    def finished(self) -> bool:
        """Whether no further row is wanted."""
        return self._last is not None and self.count > self._last

    def take(self) -> int | None:
        """Count one more row; its number, or None where it is not wanted."""
        number, self.count = self.count, self.count + 1
        return number if self._wanted is None or self._wanted[number] else None

    def take_many(self, rows: int) -> list[int]:
        """Count several more rows; the numbers of those that are wanted."""
        start, self.count = self.count, self.count + rows
        numbers = range(start, self.count)
        return (
            list(numbers) if self._wanted is None else [n for n in numbers if n < len(self._wanted) and self._wanted[n]]
        )


_KINDS: Mapping[type, str] = {
    type(None): "null",
    bool: "true or false",
    int: "a number",
    float: "a number",
    str: "text",
    list: "a list",
    dict: "an object",
    bytes: "binary data",
}


def kind_of(value: object) -> str:
    """What a value is, in the words of JSON, for a sentence."""
    return _KINDS.get(type(value), f"of type {type(value).__name__}")


def too_long(where: str) -> DatasetError:
    """The sentence for a row that is larger than any that is read."""
    return DatasetError(f"{where}: the row has more than {MAX_ROW_BYTES / 2**20:g} MiB; split it into several rows")
