"""Signs of life of a watch, over a real connection on 127.0.0.1."""

import asyncio

import aiohttp
from aiohttp import web
from prometheus_client import CollectorRegistry

from lora_operator.running.liveness import WatchLiveness, count_requests
from lora_operator.running.metrics import Metrics

JOBS = "/apis/batch/v1/jobs"


class Clock:
    """A clock that moves when it is told to."""

    now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


def make_liveness(clock: Clock, namespaces: tuple[str, ...] = ()) -> WatchLiveness:
    return WatchLiveness(namespaces, clock=clock, wall_clock=lambda: 1000.0 + clock.now_s)


def test_silence_is_that_of_the_watch_that_has_been_silent_longest() -> None:
    """One deaf watch among three is found, also one that never spoke."""
    clock = Clock()
    liveness = make_liveness(clock)
    assert liveness.silent_for_s()[0] == 0.0
    clock.now_s += 10
    liveness.heard(JOBS)
    liveness.heard("/apis/lora-operator.io/v1alpha1/lorafinetunes")
    silence_s, path = liveness.silent_for_s()
    assert (silence_s, path) == (10.0, "/api/v1/pods")
    liveness.heard("/api/v1/pods")
    assert liveness.all_heard
    assert liveness.silent_for_s()[0] == 0.0


def test_a_wait_before_the_watches_begin_is_no_silence() -> None:
    """The definition may be installed an hour after the operator, and a watch takes its time to begin."""
    clock = Clock()
    liveness = make_liveness(clock)
    clock.now_s += 3600
    liveness.begin()
    clock.now_s += 3
    assert liveness.silent_for_s()[0] == 3.0


def test_each_namespace_has_its_own_watch_and_the_metric_shows_the_oldest() -> None:
    """A resource is as fresh as its most silent namespace."""
    clock = Clock()
    liveness = make_liveness(clock, ("a", "b"))
    liveness.heard("/apis/batch/v1/namespaces/a/jobs")
    assert dict(liveness.last_heard())["jobs"] == 0.0
    clock.now_s += 5
    liveness.heard("/apis/batch/v1/namespaces/b/jobs")
    assert dict(liveness.last_heard())["jobs"] == 1100.0


async def test_a_bookmark_is_a_sign_of_life_and_a_request_is_counted(unused_tcp_port: int) -> None:
    """Bytes that arrive on a watch are heard before anyone parses them; other requests are not watches."""
    clock = Clock()
    liveness = make_liveness(clock)
    registry = CollectorRegistry()
    go_on = asyncio.Event()

    async def watch(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        await go_on.wait()
        await response.write(b'{"type":"BOOKMARK"}\n')
        return response

    application = web.Application()
    application.add_routes([web.get(JOBS, watch)])
    runner = web.AppRunner(application)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", unused_tcp_port).start()
    url = f"http://127.0.0.1:{unused_tcp_port}{JOBS}?watch=true"
    traces = [count_requests(Metrics(registry))]
    async with (
        aiohttp.ClientSession(response_class=liveness.response_class(), trace_configs=traces) as session,
        session.get(url) as response,
    ):
        clock.now_s += 60
        assert dict(liveness.last_heard())["jobs"] == 1100.0
        go_on.set()
        lines = [chunk async for chunk in response.content.iter_chunked(1024)]
    await runner.cleanup()
    assert lines == [b'{"type":"BOOKMARK"}\n']
    assert dict(liveness.last_heard())["jobs"] == 1160.0
    assert registry.get_sample_value("lora_operator_api_requests_total", {"verb": "watch", "code": "200"}) == 1.0
