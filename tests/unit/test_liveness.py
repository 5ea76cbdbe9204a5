"""Signs of life of a watch, over a real connection on 127.0.0.1."""

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


async def test_requests_are_counted_by_what_they_do(unused_tcp_port: int) -> None:
    """A watch is told apart from a list, and a refusal from an answer."""
    registry = CollectorRegistry()

    async def answer(request: web.Request) -> web.StreamResponse:
        return web.Response(status=int(request.query.get("status", 200)))

    application = web.Application()
    application.add_routes([web.get(JOBS, answer)])
    runner = web.AppRunner(application)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", unused_tcp_port).start()
    async with aiohttp.ClientSession(trace_configs=[count_requests(Metrics(registry))]) as session:
        for query in ("", "?watch=true&status=403", "?watch=true"):
            async with session.get(f"http://127.0.0.1:{unused_tcp_port}{JOBS}{query}"):
                pass
    await runner.cleanup()
    for labels in ({"verb": "get", "code": "200"}, {"verb": "watch", "code": "403"}, {"verb": "watch", "code": "200"}):
        assert registry.get_sample_value("lora_operator_api_requests_total", labels) == 1.0
