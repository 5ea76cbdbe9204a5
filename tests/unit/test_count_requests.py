"""How requests to the API server are counted, over a real connection on 127.0.0.1."""

import aiohttp
from aiohttp import web
from prometheus_client import CollectorRegistry
from tests.ports import free_port

from lora_operator.controller.metrics import Metrics, count_requests

JOBS = "/apis/batch/v1/jobs"


async def test_requests_are_counted_by_what_they_do() -> None:
    """A watch is told apart from a list, and a refusal from an answer."""
    registry, port = CollectorRegistry(), free_port()

    async def answer(request: web.Request) -> web.StreamResponse:
        return web.Response(status=int(request.query.get("status", 200)))

    application = web.Application()
    application.add_routes([web.get(JOBS, answer)])
    runner = web.AppRunner(application)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", port).start()
    async with aiohttp.ClientSession(trace_configs=[count_requests(Metrics(registry))]) as session:
        for query in ("", "?watch=true&status=403", "?watch=true"):
            async with session.get(f"http://127.0.0.1:{port}{JOBS}{query}"):
                pass
    await runner.cleanup()
    for labels in ({"verb": "get", "code": "200"}, {"verb": "watch", "code": "403"}, {"verb": "watch", "code": "200"}):
        assert registry.get_sample_value("lora_operator_api_requests_total", labels) == 1.0
