"""Faults that the stand-in injects on request, so that clients can be tried against a Hub that misbehaves."""

import threading
from dataclasses import asdict, dataclass, field, fields, replace
from fnmatch import fnmatchcase


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """What to do to requests whose path matches `path` (shell wildcards, without the query string).

    status: answer with this status instead of the real answer (429, 500, 503, ...).
    headers: more headers for that answer, for instance Retry-After.
    cut_after_bytes: send the real answer, but close the connection after this many bytes of its body.
    flip_byte: send the real answer with this byte of its body changed, counted from 0.
    whole: send the whole file, whatever part of it was asked for, as servers do that know no ranges.
    skip: let this many matching requests pass first.
    times: then hit this many requests; None hits every one.
    """

    path: str
    method: str = "*"
    status: int | None = None
    headers: dict[str, str] = field(default_factory=dict)
    cut_after_bytes: int | None = None
    flip_byte: int | None = None
    whole: bool = False
    skip: int = 0
    times: int | None = 1

    def __post_init__(self) -> None:
        """Refuse a fault that does nothing or two things."""
        effects = (self.status, self.cut_after_bytes, self.flip_byte, self.whole or None)
        if sum(value is not None for value in effects) != 1:
            raise ValueError(f"fault for {self.path}: give one of status, cut_after_bytes, flip_byte and whole")


class Faults:
    """The faults that are still to happen, shared by the server's threads."""

    def __init__(self) -> None:
        """Start with none."""
        self._pending: list[Fault] = []
        self._lock = threading.Lock()

    def add(self, fault: Fault) -> None:
        """Queue one more; of several that match a request the first added wins."""
        with self._lock:
            self._pending.append(fault)

    def replace(self, faults: list[Fault]) -> None:
        """Drop what is pending and start over with `faults`."""
        with self._lock:
            self._pending = list(faults)

    def pending(self) -> list[dict[str, object]]:
        """Return what is still to happen, as JSON-able records."""
        with self._lock:
            return [asdict(fault) for fault in self._pending]

    def take(self, method: str, path: str) -> Fault | None:
        """Return the fault that hits this request, and count it as used."""
        with self._lock:
            for index, fault in enumerate(self._pending):
                if fault.method not in {"*", method} or not fnmatchcase(path, fault.path):
                    continue
                if fault.skip > 0:
                    self._pending[index] = replace(fault, skip=fault.skip - 1)
                    continue
                if fault.times is not None:
                    self._pending[index : index + 1] = (
                        [replace(fault, times=fault.times - 1)] if fault.times > 1 else []
                    )
                return fault
        return None


def parse_faults(records: object) -> list[Fault]:
    """Return the faults that a JSON list of objects describes; a wrong record raises ValueError with a sentence."""
    known = {item.name for item in fields(Fault)}
    if not isinstance(records, list) or not all(isinstance(record, dict) for record in records):
        raise ValueError("faults: give a JSON list of objects")
    for record in records:
        unknown = sorted(set(record) - known)
        if unknown or "path" not in record:
            raise ValueError(f"fault {record}: needs path; known fields are {', '.join(sorted(known))}")
    return [Fault(**record) for record in records]
