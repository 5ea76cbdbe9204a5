"""The lists of every few minutes, and what becomes of one that fails half-way."""

import asyncio
from typing import Any

import pytest

from lora_operator.cluster.api import FINETUNES, JOBS, Api, ApiError, UnreachableError
from lora_operator.cluster.cache import Cache, Key
from lora_operator.cluster.kueue import Kueue
from lora_operator.running.resync import Resync
from lora_operator.running.supervision import OperatorFailedError

ROUND_S = 0.01


class Server(Api):
    """Has one LoRAFineTune, and may fail when it is asked for Jobs."""

    def __init__(self) -> None:
        self.failure: Exception | None = None
        self.version = "9"

    async def request(self, method: str, path: str, **_: Any) -> dict[str, Any]:
        """A list."""
        if path == JOBS.path(None) and self.failure is not None:
            raise self.failure
        tone = {"metadata": {"namespace": "team", "name": "tone", "uid": "u1", "resourceVersion": "5"}}
        return {"metadata": {"resourceVersion": self.version}, "items": [tone] if path == FINETUNES.path(None) else []}


class Clock:
    """Moves when it is told to."""

    s = 100.0

    def __call__(self) -> float:
        return self.s


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


async def test_an_api_server_that_stays_in_the_past_ends_the_process_once() -> None:
    """A replica that is behind catches up within a minute; where etcd was restored, only a restart helps."""
    server, cache, now = Server(), Cache(), Clock()
    resync = Resync(server, cache, NoKueue(), namespaces=(), interval_s=ROUND_S, wake=lambda _: None, clock=now)

    async def lists_after(seconds: float) -> None:
        now.s += seconds
        await resync.fill(set())

    await lists_after(0)
    cache.finetunes.saw("20")
    await lists_after(60)
    await lists_after(119)
    server.version = "21"
    await lists_after(100)
    cache.finetunes.saw("30")
    await lists_after(100)
    await lists_after(120)
    with pytest.raises(OperatorFailedError, match="as of version 21, and 30 was seen before"):
        await lists_after(1)
    await Resync(server, Cache(), NoKueue(), namespaces=(), interval_s=1, wake=lambda _: None, clock=now).fill(set())


async def test_an_api_server_that_is_in_the_past_is_asked_again_soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """A watch that had to be listed anew has found out, long before the next resync."""
    pauses = []

    async def sleep(seconds: float) -> None:
        pauses.append(seconds)
        if len(pauses) == 2:
            resync.compare("/jobs", "9", "8")

    monkeypatch.setattr(asyncio, "sleep", sleep)
    worked: list[int] = []

    def work() -> None:
        worked.append(len(pauses))
        if len(worked) == 2:
            raise EOFError

    resync = Resync(Server(), Cache(), NoKueue(), namespaces=(), interval_s=35, wake=lambda _: None)
    with pytest.raises(EOFError):
        await resync.run(work)
    assert worked == [2, 3]
    assert pauses == [10, 10, 10]
