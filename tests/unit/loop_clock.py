"""A clock for what waits by the running loop."""

import asyncio

import pytest


class LoopClock:
    """The running loop's clock, which stands still until it is turned; whatever is due is done then."""

    def __init__(self) -> None:
        self.now_s = 0.0
        # For good: each test has a loop of its own.
        pytest.MonkeyPatch().setattr(asyncio.get_running_loop(), "time", lambda: self.now_s)

    async def turn(self, seconds: float) -> None:
        """Let time pass, and all that is due by then come to its end, as far as it waits for nothing else."""
        self.now_s += seconds
        await settle()


async def settle() -> None:
    """Let every task go on that can."""
    for _ in range(20):
        await asyncio.sleep(0)
