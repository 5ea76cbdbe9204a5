"""The operator's own HTTP endpoints: /healthz, /readyz and /metrics."""

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from aiohttp import web
from prometheus_client import CollectorRegistry

from lora_operator.running.scrape import accepts_gzip, compressed, pieces

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

Probe = Callable[[], str]
"""Answers with an empty text where all is well, else with a sentence."""


def make_application(registry: CollectorRegistry, *, healthy: Probe, ready: Probe) -> web.Application:
    """The three endpoints. Metrics come in the format that the scraper asks for, and compressed where it takes that."""

    async def metrics(request: web.Request) -> web.StreamResponse:
        content_type, parts = pieces(registry, request.headers.get("Accept", ""))
        response = web.StreamResponse(headers={"Content-Type": content_type, "Vary": "Accept, Accept-Encoding"})
        if accepts_gzip(request.headers.get("Accept-Encoding", "")):
            parts = compressed(parts)
            response.headers["Content-Encoding"] = "gzip"
        # Of thousands of resources it takes a second, in which runs are not to wait.
        part = await asyncio.to_thread(next, parts, None)
        await response.prepare(request)
        while part is not None:
            await response.write(part)
            part = await asyncio.to_thread(next, parts, None)
        await response.write_eof()
        return response

    application = web.Application()
    application.add_routes(
        [
            web.get("/healthz", _answer(healthy)),
            web.get("/readyz", _answer(ready)),
            web.get("/metrics", metrics),
        ]
    )
    return application


@asynccontextmanager
async def serving(application: web.Application, port: int) -> "AsyncIterator[None]":
    """Serve on all addresses of the pod. Raises OSError where the port is taken."""
    runner = web.AppRunner(application, access_log=None, shutdown_timeout=1.0)
    await runner.setup()
    try:
        await web.TCPSite(runner, port=port).start()
        yield
    finally:
        await runner.cleanup()


def _answer(probe: Probe) -> Callable[[web.Request], Awaitable[web.Response]]:
    async def handle(_: web.Request) -> web.Response:
        trouble = probe()
        return web.Response(text=f"{trouble or 'ok'}\n", status=503 if trouble else 200)

    return handle
