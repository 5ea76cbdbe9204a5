"""Which contents some rows have, in at most 512 KiB: enough to say which share of other rows is among them."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lora_trainer.data.split import Keys

MOST = 65_536
"""Contents that are kept; of more the smallest hashes."""
_AT_A_TIME = 2**20
_HIGHEST = 2**64 - 1
_HASH = np.dtype("<u8")


@dataclass(frozen=True, slots=True, kw_only=True)
class RowSketch:
    """A bottom-k sketch of contents (Cohen and Kaplan, PODC 2007): their hashes up to `limit`, rising, each once.

    Whatever hash up to the limit is not there is of no content of the set. With all hashes up to 2^64 - 1 the sketch is
    the set itself.
    """

    keys: Keys
    limit: int

    @classmethod
    def of(cls, keys: Keys, chosen: NDArray[np.bool_]) -> "RowSketch":
        """Of the contents of those rows that are chosen, in memory that does not grow with them."""
        sketch = cls(keys=np.empty(0, np.uint64), limit=_HIGHEST)
        for part in _parts(keys, chosen):
            sketch = sketch._with(part, _HIGHEST)
        return sketch

    def joined(self, other: "RowSketch") -> "RowSketch":
        """Of the contents of both."""
        return self._with(other.keys, other.limit)

    def share_in(self, others: "RowSketch", but_for: "RowSketch") -> float:
        """Which share of these contents is among `others` and not in `but_for`.

        Exact where all are kept. Else an estimate: that of few contents among millions may be 0.
        """
        limit = min(self.limit, others.limit, but_for.limit)
        ours = _up_to(self.keys, limit)
        if not len(ours):
            return 0.0
        found = np.isin(ours, _up_to(others.keys, limit)) & ~np.isin(ours, _up_to(but_for.keys, limit))
        return float(np.count_nonzero(found)) / len(ours)

    def to_bytes(self) -> bytes:
        """The limit and the hashes, 8 bytes each, little-endian."""
        return np.concatenate([np.array([self.limit], np.uint64), self.keys]).astype(_HASH).tobytes()

    @classmethod
    def from_bytes(cls, data: bytes) -> "RowSketch":
        """Inverse of `to_bytes`. Raises `ValueError` for other bytes."""
        numbers = np.frombuffer(data, _HASH).astype(np.uint64)
        if not len(numbers):
            raise ValueError("there is no limit")
        return cls(keys=numbers[1:], limit=int(numbers[0]))

    def _with(self, keys: Keys, known_up_to: int) -> "RowSketch":
        """With more contents, which are known up to a limit of their own."""
        limit = min(self.limit, known_up_to)
        # Not np.unique, whose hash table takes 60 bytes for each of them.
        ordered = np.sort(np.concatenate([_up_to(self.keys, limit), keys[keys <= np.uint64(limit)]]))
        distinct = ordered[np.append(True, ordered[1:] != ordered[:-1])] if len(ordered) else ordered
        if len(distinct) > MOST:
            distinct = distinct[:MOST].copy()
            limit = int(distinct[-1])
        return RowSketch(keys=distinct, limit=limit)


def _parts(keys: Keys, chosen: NDArray[np.bool_]) -> Iterator[Keys]:
    for start in range(0, len(keys), _AT_A_TIME):
        yield keys[start : start + _AT_A_TIME][chosen[start : start + _AT_A_TIME]]


def _up_to(keys: Keys, limit: int) -> Keys:
    return keys[: int(np.searchsorted(keys, np.uint64(limit), side="right"))]
