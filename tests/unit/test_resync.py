"""The lists of every few minutes, and what becomes of one that fails half-way."""

import asyncio
from typing import Any

import pytest

from lora_operator.cluster.api import FINETUNES, JOBS, Api, ApiError, UnreachableError
from lora_operator.cluster.cache import Cache, Key
from lora_operator.cluster.kueue import Kueue
from lora_operator.running.resync import Resync

ROUND_S = 0.01


class Server(Api):
    """Has one LoRAFineTune, and may fail when it is asked for Jobs."""

    def __init__(self) -> None:
        self.failure: Exception | None = None

    async def request(self, method: str, path: str, **_: Any) -> dict[str, Any]:
        """A list."""
        if path == JOBS.path(None) and self.failure is not None:
            raise self.failure
        tone = {"metadata": {"namespace": "team", "name": "tone", "uid": "u1", "resourceVersion": "5"}}
        return {"metadata": {"resourceVersion": "9"}, "items": [tone] if path == FINETUNES.path(None) else []}


class NoKueue(Kueue):
    """Never there."""

    async def has_changed(self, api: Api) -> bool:
        """It stays away."""
        return False


@pytest.mark.parametrize("failure", [UnreachableError("reset"), ApiError(410, "Expired", "too old")])
async def test_what_a_resync_brought_that_failed_later_wakes_all_the_same(failure: Exception) -> None:
    """To the next one, and to the watch, it is no news."""
    server, woken, worked = Server(), asyncio.Queue[Key](), asyncio.Event()
    server.failure = failure
    resync = Resync(server, Cache(), NoKueue(), namespaces=(), interval_s=ROUND_S, wake=woken.put_nowait)
    running = asyncio.create_task(resync.run(worked.set))
    async with asyncio.timeout(10):
        assert await woken.get() == Key("team", "tone")
        assert not worked.is_set()
        server.failure = None
        await worked.wait()
    running.cancel()
    assert woken.empty()
