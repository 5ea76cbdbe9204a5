"""A queue of keys: each key at most once in it, one worker per key at a time, timers, and backoff with jitter."""

import asyncio
import heapq
import math
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Hashable
from typing import Generic, TypeVar

K = TypeVar("K")

_PATIENCE_TURNS = 8
_SHARE = 3
_MOST_REPLACED = 64


class WorkQueue(Generic[K]):
    """Keys that want work. Everything happens in one event loop, so nothing here needs a lock.

    A key that is added while a worker has it comes round again when that worker is done: no change is missed, and no
    two workers hold the same key. Of an immediate wish and a timer, and of two timers, the earlier wins.

    A wait that somebody else asked for, such as a busy server, is kept whatever happens meanwhile.

    Keys are handed out by the lowest rank that they had when they were added, the lowest first. Within a rank groups
    take turns, and a group's keys come in the order in which they were added: a group with thousands of keys delays
    another's by one turn each. Every eighth turn goes to the higher ranks in turn, so that a flood of low ones starves
    nobody.

    A group holds at most three times as many of the `workers` as are free: of 16 one holds 12, or two hold 7 each. So
    turns that take long, since the API server does not answer them, leave workers to other groups.
    """

    def __init__(
        self,
        *,
        base_s: float,
        max_s: float,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
        random: Callable[[], float],
        rank: Callable[[K], int] = lambda _: 0,
        group: Callable[[K], Hashable] = lambda _: None,
        workers: float = math.inf,
    ) -> None:
        self._workers = workers
        self._rank = rank
        self._group = group
        self._turns = 0
        self._base_s = base_s
        self._max_s = max_s
        self._clock = clock
        self._sleep = sleep
        self._random = random
        # By rank, the groups in the order of their turns, each with its keys in theirs.
        self._ready: dict[int, OrderedDict[Hashable, OrderedDict[K, None]]] = {}
        self._queued: dict[K, int] = {}
        self._active: set[K] = set()
        self._held: dict[Hashable, int] = {}
        self._again: set[K] = set()
        self._failures: dict[K, int] = {}
        self._due: dict[K, float] = {}
        self._not_before: dict[K, float] = {}
        self._timers: list[tuple[float, int, K]] = []
        self._count = 0
        self._closed = False
        self._added = asyncio.Event()
        self._released = asyncio.Event()
        self._timer_set = asyncio.Event()

    def __len__(self) -> int:
        """Keys that wait for a worker; those with a timer do not count."""
        return len(self._queued)

    def add(self, key: K) -> None:
        """Want work on the key now, or as soon as the wait is over that somebody asked for."""
        held_s = self._not_before.get(key, 0.0) - self._clock()
        if held_s > 0 and key not in self._active:
            self.add_after(key, held_s)
            return
        self._not_before.pop(key, None)
        self._due.pop(key, None)
        if key in self._active:
            self._again.add(key)
        else:
            rank = self._rank(key)
            if rank < self._queued.get(key, rank + 1):
                self._line_up(key, rank)
            self._added.set()

    def add_after(self, key: K, delay_s: float) -> None:
        """Want work on the key after a while; an earlier wish that is already known stays."""
        if delay_s <= 0:
            self.add(key)
            return
        due = self._clock() + delay_s
        if key in self._queued or key in self._again or self._due.get(key, due + 1) <= due:
            return
        self._due[key] = due
        self._count += 1
        heapq.heappush(self._timers, (due, self._count, key))
        if len(self._timers) > 2 * len(self._due) + _MOST_REPLACED:
            # One that an earlier wish has replaced would stay until it was due, which may be in a year.
            self._timers = [(due, number, key) for number, (key, due) in enumerate(self._due.items())]
            heapq.heapify(self._timers)
        self._timer_set.set()

    def is_waiting(self, rank: int) -> bool:
        """Whether a key of that rank waits for a worker, and not for others of its group; none does once closed."""
        return not self._closed and self._place_in(rank) is not None

    async def take(self) -> K:
        """Wait for a key and hold it until `done`."""
        while self._closed or (place := self._next_place()) is None:
            self._added.clear()
            await self._added.wait()
        return self._hand_out(*place)

    def close(self) -> None:
        """Hand out no more keys: whoever waits for one waits until it is cancelled."""
        self._closed = True

    async def idle(self) -> None:
        """Wait until no worker holds a key."""
        while self._active:
            self._released.clear()
            await self._released.wait()

    def done(self, key: K, *, requeue_after_s: float | None = None) -> None:
        """Let go of a key whose work went well."""
        self._failures.pop(key, None)
        self._release(key)
        if requeue_after_s is not None:
            self.add_after(key, requeue_after_s)

    def failed(self, key: K, *, at_least_s: float = 0.0) -> float:
        """Let go of a key whose work failed and return the seconds until its next turn, `at_least_s` of them.

        News shorten the wait, but not that part of it.
        """
        failures = self._failures.get(key, 0)
        self._failures[key] = failures + 1
        delay_s = max(at_least_s, backoff_s(failures, base_s=self._base_s, max_s=self._max_s, random=self._random))
        if at_least_s > 0:
            self._not_before[key] = self._clock() + at_least_s
        self._release(key)
        self.add_after(key, delay_s)
        return delay_s

    def failures(self, key: K) -> int:
        """How often in a row the work on a key has failed."""
        return self._failures.get(key, 0)

    async def run_timers(self) -> None:
        """Move keys whose time has come to the queue, forever."""
        while True:
            self._timer_set.clear()
            wait_s = self._fire()
            sleeper = asyncio.ensure_future(self._sleep(wait_s)) if wait_s is not None else None
            waker = asyncio.ensure_future(self._timer_set.wait())
            waiting = [task for task in (sleeper, waker) if task is not None]
            try:
                await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
            finally:
                for task in waiting:
                    task.cancel()

    def _fire(self) -> float | None:
        """Add the keys that are due; return the seconds until the next one, None where there is none."""
        now = self._clock()
        while self._timers:
            due, _, key = self._timers[0]
            current = self._due.get(key) == due
            if current and due > now:
                return due - now
            heapq.heappop(self._timers)
            if current:
                del self._due[key]  # a key that is held back is given another timer, which this one must not forestall
                self.add(key)
        return None

    def _line_up(self, key: K, rank: int) -> None:
        former = self._queued.get(key)
        if former is not None:
            self._leave(key, former)
        self._queued[key] = rank
        groups = self._ready.setdefault(rank, OrderedDict())
        groups.setdefault(self._group(key), OrderedDict())[key] = None

    def _leave(self, key: K, rank: int) -> None:
        del self._queued[key]
        groups, group = self._ready[rank], self._group(key)
        del groups[group][key]
        if not groups[group]:
            del groups[group]
        if not groups:
            del self._ready[rank]

    def _next_place(self) -> tuple[int, Hashable] | None:
        """The rank and the group whose turn it is; None where no group that waits may hold another worker."""
        places = [place for rank in sorted(self._ready) if (place := self._place_in(rank)) is not None]
        patient, number = divmod(self._turns + 1, _PATIENCE_TURNS)
        if number or len(places) < 2:
            return places[0] if places else None
        return places[1 + patient % (len(places) - 1)]

    def _place_in(self, rank: int) -> tuple[int, Hashable] | None:
        """The first group of a rank that may hold another worker. Those that may not are few, as the workers are."""
        most = _SHARE * max(1, self._workers - len(self._active))
        return next(((rank, group) for group in self._ready.get(rank, ()) if self._held.get(group, 0) < most), None)

    def _hand_out(self, rank: int, group: Hashable) -> K:
        self._turns += 1
        groups = self._ready[rank]
        groups.move_to_end(group)
        key = next(iter(groups[group]))
        self._leave(key, rank)
        self._due.pop(key, None)
        self._active.add(key)
        self._held[group] = self._held.get(group, 0) + 1
        return key

    def _release(self, key: K) -> None:
        self._active.discard(key)
        group = self._group(key)
        self._held[group] -= 1
        if not self._held[group]:
            del self._held[group]
        self._released.set()
        if self._queued:
            self._added.set()  # a group may have waited for this alone
        if key in self._again:
            self._again.discard(key)
            self.add(key)


def backoff_s(failures: int, *, base_s: float, max_s: float, random: Callable[[], float]) -> float:
    """Seconds to wait after so many earlier failures: doubled each time up to `max_s`, less up to half by chance."""
    longest = min(max_s, base_s * 2.0 ** min(failures, 30))
    return longest * (0.5 + 0.5 * random())
