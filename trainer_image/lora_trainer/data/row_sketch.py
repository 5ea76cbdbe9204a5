"""Which contents were trained on, in at most 512 KiB: enough to say which share of other rows is among them."""

from dataclasses import dataclass

import numpy as np

from lora_trainer.data.split import Keys

MOST = 65_536
"""Contents that are kept; of more the smallest hashes."""
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
    def of(cls, keys: Keys) -> "RowSketch":
        """Of the contents of some rows."""
        return cls(keys=np.unique(keys), limit=int(np.iinfo(np.uint64).max))._kept()

    def joined(self, other: "RowSketch") -> "RowSketch":
        """Of the contents of both."""
        limit = min(self.limit, other.limit)
        return RowSketch(keys=np.union1d(self._up_to(limit), other._up_to(limit)), limit=limit)._kept()

    def share_in(self, others: "RowSketch", but_for: "RowSketch") -> float:
        """Which share of these contents is among `others` and not in `but_for`; an estimate where not all are kept."""
        limit = min(self.limit, others.limit, but_for.limit)
        ours = self._up_to(limit)
        if not len(ours):
            return 0.0
        found = np.isin(ours, others._up_to(limit)) & ~np.isin(ours, but_for._up_to(limit))
        return float(np.count_nonzero(found)) / len(ours)

    def to_bytes(self) -> bytes:
        """The limit and the hashes, 8 bytes each, little-endian."""
        return np.concatenate([np.array([self.limit], np.uint64), self.keys]).astype(_HASH).tobytes()

    @classmethod
    def from_bytes(cls, data: bytes) -> "RowSketch":
        """Inverse of `to_bytes`. Raises `ValueError` for other bytes."""
        numbers = np.frombuffer(data, _HASH).astype(np.uint64)
        if not len(numbers):
            raise ValueError("no limit stands there")
        return cls(keys=numbers[1:], limit=int(numbers[0]))

    def _up_to(self, limit: int) -> Keys:
        return self.keys[: int(np.searchsorted(self.keys, np.uint64(limit), side="right"))]

    def _kept(self) -> "RowSketch":
        if len(self.keys) <= MOST:
            return self
        return RowSketch(keys=self.keys[:MOST], limit=int(self.keys[MOST - 1]))
