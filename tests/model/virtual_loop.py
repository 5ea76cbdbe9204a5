"""An asyncio loop whose clock stands still until it is told to go on: hours pass in no time, in a fixed order."""

import asyncio
import heapq
from collections.abc import Callable
from contextvars import Context
from typing import TypeVarTuple, Unpack

Ts = TypeVarTuple("Ts")
_MOST_ROUNDS = 2_000


class VirtualLoop(asyncio.SelectorEventLoop):
    """`settle` runs what can run now; `advance` lets time pass, from one timer to the next."""

    def __init__(self) -> None:
        super().__init__()
        self.now_s = 0.0
        self._wishes = 0
        self._dues: list[float] = []

    def time(self) -> float:
        """The time that was reached, in seconds since the loop was made."""
        return self.now_s

    def call_soon(
        self, callback: Callable[[Unpack[Ts]], object], *args: *Ts, context: Context | None = None
    ) -> asyncio.Handle:
        """Note that there is something to do."""
        self._wishes += 1
        return super().call_soon(callback, *args, context=context)

    def call_at(
        self, when: float, callback: Callable[[Unpack[Ts]], object], *args: *Ts, context: Context | None = None
    ) -> asyncio.TimerHandle:
        """Note when."""
        heapq.heappush(self._dues, when)
        return super().call_at(when, callback, *args, context=context)

    def settle(self) -> None:
        """Run until everything waits for time or for somebody else."""
        for _ in range(_MOST_ROUNDS):
            before = self._wishes
            self.call_soon(self.stop)
            self.run_forever()
            if self._wishes == before + 1:
                return
        raise AssertionError("the operators do not come to rest while time stands still")

    def advance(self, seconds: float) -> None:
        """Let time pass, and everything happen that is due on the way."""
        end_s = self.now_s + seconds
        self.settle()
        while self._dues and self._dues[0] <= end_s:
            self.now_s = max(self.now_s, heapq.heappop(self._dues))
            self.settle()
        self.now_s = end_s
        self.settle()
