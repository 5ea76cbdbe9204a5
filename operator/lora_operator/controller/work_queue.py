"""A queue of keys: each key at most once in it, one worker per key at a time, timers, and backoff with jitter."""

import asyncio
import math
from collections import Counter, OrderedDict
from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

K = TypeVar("K")

_PATIENCE_TURNS = 8
_SHARE = 3


class WorkQueue(Generic[K]):
    """Keys that want work. Everything happens in one event loop, so nothing here needs a lock.

    A key that is added while a worker has it comes round again when that worker is done: no change is missed, and no
    two workers hold the same key. Of an immediate wish and a timer, and of two timers, the earlier wins.

    Urgent keys come first, but for every eighth turn, so that a flood of them starves nobody. Among those, and among
    the others, groups take turns, and a group's keys come in the order in which they were added.

    A group holds at most three times as many of the `workers` as are free: of 16 one holds 12, or two hold 7 each. So
    turns that take long, since the API server does not answer them, leave workers to other groups.
    """

    def __init__(
        self,
        *,
        base_s: float,
        max_s: float,
        random: Callable[[], float],
        is_urgent: Callable[[K], bool] = lambda _: False,
        group: Callable[[K], Hashable] = lambda _: None,
        workers: float = math.inf,
    ) -> None:
        self._base_s = base_s
        self._max_s = max_s
        self._random = random
        self._is_urgent = is_urgent
        self._group = group
        self._workers = workers
        self._turns = 0
        self._urgent: _Line[K] = _Line(group)
        self._patient: _Line[K] = _Line(group)
        self._active: set[K] = set()
        self._held: Counter[Hashable] = Counter()
        self._again: set[K] = set()
        self._failures: dict[K, int] = {}
        self._timers: dict[K, asyncio.TimerHandle] = {}
        self._not_before: dict[K, float] = {}
        self._closed = False
        self._changed = asyncio.Event()

    def __len__(self) -> int:
        """Keys that wait for a worker; those with a timer do not count."""
        return len(self._urgent) + len(self._patient)

    def add(self, key: K) -> None:
        """Want work on the key now, or as soon as the wait is over that somebody asked for."""
        if key in self._not_before:
            self.add_after(key, 0)
        else:
            self._line_up(key)

    def add_after(self, key: K, delay_s: float) -> None:
        """Want work on the key after a while; an earlier wish that is already known stays."""
        loop = asyncio.get_running_loop()
        due_s = max(loop.time() + delay_s, self._not_before.get(key, 0.0))
        if due_s <= loop.time():
            self._line_up(key)
            return
        timer = self._timers.get(key)
        if key in self._again or key in self._urgent or key in self._patient or (timer and timer.when() <= due_s):
            return
        self._cancel_timer(key)
        self._timers[key] = loop.call_at(due_s, self._fire, key)

    @property
    def has_urgent(self) -> bool:
        """Whether an urgent key waits for a worker, and not for others of its group; none does once closed."""
        return not self._closed and self._urgent.first(self._may_hold_more) is not None

    async def take(self) -> K:
        """Wait for a key and hold it until `done` or `failed`."""
        while (key := self._next()) is None:
            self._changed.clear()
            await self._changed.wait()
        return key

    def close(self) -> None:
        """Hand out no more keys: whoever waits for one waits until it is cancelled."""
        self._closed = True

    async def idle(self) -> None:
        """Wait until no worker holds a key."""
        while self._active:
            self._changed.clear()
            await self._changed.wait()

    def done(self, key: K, *, requeue_after_s: float | None = None) -> None:
        """Let go of a key whose work went well."""
        self._failures.pop(key, None)
        self._release(key)
        if requeue_after_s is not None:
            self.add_after(key, requeue_after_s)

    def failed(self, key: K, *, at_least_s: float = 0.0) -> float:
        """Let go of a key whose work failed and return the seconds until its next turn, `at_least_s` of them.

        News shorten the wait, but not that part of it, which a busy server asked for.
        """
        failures = self._failures.get(key, 0)
        self._failures[key] = failures + 1
        delay_s = max(at_least_s, backoff_s(failures, base_s=self._base_s, max_s=self._max_s, random=self._random))
        if at_least_s > 0:
            self._not_before[key] = asyncio.get_running_loop().time() + at_least_s
        self._release(key)
        self.add_after(key, delay_s)
        return delay_s

    def failures(self, key: K) -> int:
        """How often in a row the work on a key has failed."""
        return self._failures.get(key, 0)

    def _fire(self, key: K) -> None:
        del self._timers[key]
        self.add(key)

    def _cancel_timer(self, key: K) -> None:
        timer = self._timers.pop(key, None)
        if timer is not None:
            timer.cancel()

    def _line_up(self, key: K) -> None:
        self._cancel_timer(key)
        if key in self._active:
            self._again.add(key)
        elif self._is_urgent(key):
            self._patient.discard(key)
            self._urgent.add(key)
        elif key not in self._urgent:
            self._patient.add(key)
        self._changed.set()

    def _next(self) -> K | None:
        """The key whose turn it is; None where no group that waits may hold another worker."""
        if self._closed:
            return None
        lines = [self._urgent, self._patient]
        if (self._turns + 1) % _PATIENCE_TURNS == 0:
            lines.reverse()
        for line in lines:
            key = line.first(self._may_hold_more)
            if key is not None:
                line.pass_on(key)
                self._turns += 1
                self._not_before.pop(key, None)
                self._active.add(key)
                self._held[self._group(key)] += 1
                return key
        return None

    def _may_hold_more(self, group: Hashable) -> bool:
        return self._held[group] < _SHARE * max(1, self._workers - len(self._active))

    def _release(self, key: K) -> None:
        self._active.discard(key)
        group = self._group(key)
        self._held[group] -= 1
        if not self._held[group]:
            del self._held[group]
        if key in self._again:
            self._again.discard(key)
            self.add(key)
        self._changed.set()  # another key may have waited for this alone


class _Line(Generic[K]):
    """Keys in line, each once: groups take turns, and a group's keys come in the order in which they were added."""

    def __init__(self, group: Callable[[K], Hashable]) -> None:
        self._group = group
        self._groups: OrderedDict[Hashable, OrderedDict[K, None]] = OrderedDict()
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def __contains__(self, key: K) -> bool:
        return key in self._groups.get(self._group(key), ())

    def add(self, key: K) -> None:
        if key not in self:
            self._groups.setdefault(self._group(key), OrderedDict())[key] = None
            self._count += 1

    def discard(self, key: K) -> None:
        group = self._group(key)
        if key in self:
            del self._groups[group][key]
            self._count -= 1
            if not self._groups[group]:
                del self._groups[group]

    def first(self, may_come: Callable[[Hashable], bool]) -> K | None:
        """The next key of the groups that may come. Those that may not are few, as the workers are."""
        return next((next(iter(keys)) for group, keys in self._groups.items() if may_come(group)), None)

    def pass_on(self, key: K) -> None:
        """Take a key out; the turn passes to the other groups."""
        self._groups.move_to_end(self._group(key))
        self.discard(key)


def backoff_s(failures: int, *, base_s: float, max_s: float, random: Callable[[], float]) -> float:
    """Seconds to wait after so many earlier failures: doubled each time up to `max_s`, less up to half by chance."""
    longest = min(max_s, base_s * 2.0 ** min(failures, 30))
    return longest * (0.5 + 0.5 * random())
