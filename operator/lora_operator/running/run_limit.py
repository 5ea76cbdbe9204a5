"""The most unfinished runs of a namespace: which of them may have a Job, and which wait for another to end."""

from bisect import bisect_left, insort
from collections.abc import Callable
from typing import NamedTuple

from lora_operator.cluster.cache import Cache, Key
from lora_operator.views.conditions import result_of
from lora_operator.views.model import FineTune


class _Waiting(NamedTuple):
    """A run without a Job, in the order in which runs get theirs: by creation, then by name."""

    created_s: float
    name: str


class _Namespace:
    """Unfinished runs of one namespace: names of those that have had a Job, and the others in order."""

    def __init__(self) -> None:
        self.started: set[str] = set()
        self.waiting: list[_Waiting] = []


class RunLimit:
    """An index of unfinished runs by namespace, kept by the news of each run; 0 for `most` is no limit.

    The oldest runs go first, and one that has had a Job keeps its place until it ends: so the runs beyond the limit are
    the same whichever of them is looked at first, and after a restart.
    """

    def __init__(self, most: int, cache: Cache, wake: Callable[[Key], None]) -> None:
        self._most = most
        self._cache = cache
        self._wake = wake
        self._places: dict[Key, _Waiting | None] = {}
        self._namespaces: dict[str, _Namespace] = {}

    def update(self, key: Key) -> None:
        """Take note of a run as the cache has it now, and wake the one that may go on in its place."""
        if not self._most:
            return
        finetune = None if self._cache.finetunes.is_packed(key) else self._cache.finetunes.get(key)
        counts = finetune is not None and not result_of(finetune.status) and not self._is_left(key, finetune)
        place = self._place(key, finetune) if finetune is not None and counts else None
        if (key in self._places) == counts and self._places.get(key) == place:
            return
        self._forget(key)
        if counts:
            self._remember(key, place)
        last = self._most - len(self._of(key).started) - 1
        waiting = self._of(key).waiting
        if 0 <= last < len(waiting):
            self._wake(Key(key.namespace, waiting[last].name))

    def exceeded_by(self, key: Key) -> int | None:
        """The limit, for a run without a Job that is beyond it; else None."""
        place = self._places.get(key)
        if place is None:
            return None
        runs = self._of(key)
        return self._most if len(runs.started) + bisect_left(runs.waiting, place) >= self._most else None

    def _is_left(self, key: Key, finetune: FineTune) -> bool:
        """Whether a deleted run has nothing in the cluster any more, though somebody's finalizer keeps it."""
        return finetune.deleting and not self._cache.jobs.of(key, finetune.uid)

    def _place(self, key: Key, finetune: FineTune) -> _Waiting | None:
        if finetune.status.get("jobName") or self._cache.jobs.of(key, finetune.uid):
            return None
        return _Waiting(finetune.created_at.timestamp() if finetune.created_at else 0.0, key.name)

    def _of(self, key: Key) -> _Namespace:
        return self._namespaces.get(key.namespace) or _Namespace()

    def _remember(self, key: Key, place: _Waiting | None) -> None:
        self._places[key] = place
        runs = self._namespaces.setdefault(key.namespace, _Namespace())
        if place is None:
            runs.started.add(key.name)
        else:
            insort(runs.waiting, place)

    def _forget(self, key: Key) -> None:
        if key not in self._places:
            return
        place, runs = self._places.pop(key), self._of(key)
        if place is None:
            runs.started.discard(key.name)
        else:
            del runs.waiting[bisect_left(runs.waiting, place)]
        if not runs.started and not runs.waiting:
            del self._namespaces[key.namespace]
