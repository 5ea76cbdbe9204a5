"""A bound on what goes on at once and on how fast it begins; whoever waits is served by group in turns."""

import asyncio
import contextlib
import math
from collections import OrderedDict
from collections.abc import AsyncIterator, Hashable


class FairSlots:
    """`most` slots, of which one group holds `most_of_group` at most, so that a slow group cannot fill them.

    They are taken evenly, `most_per_s` in a second at most: what begins all at once does not stay together.
    Groups that wait take turns, and within a group the first that came is first. Everything happens in one event loop.
    """

    def __init__(self, *, most: int, most_of_group: int, most_per_s: float = math.inf) -> None:
        self._free = most
        self._most_of_group = most_of_group
        self._interval_s = 1 / most_per_s
        self._next_s = 0.0
        self._held: dict[Hashable, int] = {}
        self._waiting: OrderedDict[Hashable, OrderedDict[asyncio.Future[None], None]] = OrderedDict()

    @contextlib.asynccontextmanager
    async def slot(self, group: Hashable) -> AsyncIterator[None]:
        """Hold a slot, once there is one for the group."""
        ready: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.setdefault(group, OrderedDict())[ready] = None
        self._hand_out()
        try:
            await ready
            await self._wait_for_turn()
            yield
        finally:
            if ready.done() and not ready.cancelled():
                self._give_back(group)
            else:
                self._leave(group, ready)

    async def _wait_for_turn(self) -> None:
        now_s = asyncio.get_running_loop().time()
        turn_s = max(self._next_s, now_s)
        self._next_s = turn_s + self._interval_s
        if turn_s > now_s:
            await asyncio.sleep(turn_s - now_s)

    def _hand_out(self) -> None:
        while self._free and (group := self._next_group()) is not None:
            ready = next(iter(self._waiting[group]))
            self._waiting.move_to_end(group)
            self._leave(group, ready)
            if not ready.cancelled():  # whose task is being cancelled, and has yet to leave
                self._free -= 1
                self._held[group] = self._held.get(group, 0) + 1
                ready.set_result(None)

    def _next_group(self) -> Hashable | None:
        """Those that hold all that they may are few, as the slots are."""
        return next((g for g in self._waiting if self._held.get(g, 0) < self._most_of_group), None)

    def _give_back(self, group: Hashable) -> None:
        self._free += 1
        self._held[group] -= 1
        if not self._held[group]:
            del self._held[group]
        self._hand_out()

    def _leave(self, group: Hashable, ready: asyncio.Future[None]) -> None:
        line = self._waiting.get(group)
        if line is not None:
            line.pop(ready, None)
            if not line:
                del self._waiting[group]
