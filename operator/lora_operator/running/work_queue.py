"""A queue of keys: each key at most once in it, one worker per key at a time, timers, and backoff with jitter."""

import asyncio
import heapq
import time
from collections import deque
from collections.abc import Awaitable, Callable
from typing import Generic, TypeVar

K = TypeVar("K")


class WorkQueue(Generic[K]):
    """Keys that want work. Everything happens in one event loop, so nothing here needs a lock.

    A key that is added while a worker has it comes round again when that worker is done: no change is missed, and no
    two workers hold the same key. Of an immediate wish and a timer, and of two timers, the earlier wins.
    """

    def __init__(
        self,
        *,
        base_s: float,
        max_s: float,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
        random: Callable[[], float],
    ) -> None:
        self._base_s = base_s
        self._max_s = max_s
        self._clock = clock
        self._sleep = sleep
        self._random = random
        self._ready: deque[K] = deque()
        self._queued: set[K] = set()
        self._active: set[K] = set()
        self._again: set[K] = set()
        self._failures: dict[K, int] = {}
        self._due: dict[K, float] = {}
        self._timers: list[tuple[float, int, K]] = []
        self._count = 0
        self._closed = False
        self._added = asyncio.Event()
        self._released = asyncio.Event()
        self._timer_set = asyncio.Event()

    def __len__(self) -> int:
        """Keys that wait for a worker; those with a timer do not count."""
        return len(self._ready)

    def add(self, key: K) -> None:
        """Want work on the key now."""
        self._due.pop(key, None)
        if key in self._active:
            self._again.add(key)
        elif key not in self._queued:
            self._queued.add(key)
            self._ready.append(key)
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
        self._timer_set.set()

    def sort(self, rank: Callable[[K], int]) -> None:
        """Hand out those that wait by rank, the lowest first; of one rank in the order in which they came."""
        self._ready = deque(sorted(self._ready, key=rank))

    async def take(self) -> K:
        """Wait for a key and hold it until `done`."""
        while self._closed or not self._ready:
            self._added.clear()
            await self._added.wait()
        key = self._ready.popleft()
        self._queued.discard(key)
        self._due.pop(key, None)
        self._active.add(key)
        return key

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
        """Let go of a key whose work failed and return the seconds until its next turn, `at_least_s` of them."""
        failures = self._failures.get(key, 0)
        self._failures[key] = failures + 1
        delay_s = max(at_least_s, backoff_s(failures, base_s=self._base_s, max_s=self._max_s, random=self._random))
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
                self.add(key)
        return None

    def _release(self, key: K) -> None:
        self._active.discard(key)
        self._released.set()
        if key in self._again:
            self._again.discard(key)
            self.add(key)


def backoff_s(failures: int, *, base_s: float, max_s: float, random: Callable[[], float]) -> float:
    """Seconds to wait after so many earlier failures: doubled each time up to `max_s`, less up to half by chance."""
    longest = min(max_s, base_s * 2.0 ** min(failures, 30))
    return longest * (0.5 + 0.5 * random())
