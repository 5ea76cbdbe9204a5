"""The operator's own HTTP endpoints: /healthz, /readyz and /metrics."""

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from aiohttp import web
from prometheus_client import CollectorRegistry, exposition

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

Probe = Callable[[], str]
"""Answers with an empty text where all is well, else with a sentence."""


def make_application(registry: CollectorRegistry, *, ready: Probe) -> web.Application:
    """The three endpoints. Metrics come in the format that the scraper asks for, and compressed where it takes that.

    No connection is kept: a task waits at each, and kopf waits for the end of every task when it stops.
    """

    async def metrics(request: web.Request) -> web.Response:
        encode, content_type = exposition.choose_encoder(request.headers.get("Accept", ""))
        # Of thousands of resources it takes a second, in which runs are not to wait.
        text = await asyncio.to_thread(encode, registry)
        response = web.Response(body=text, headers={"Content-Type": content_type, "Vary": "Accept, Accept-Encoding"})
        response.enable_compression()
        response.force_close()
        return response

    application = web.Application()
    application.add_routes(
        [
            web.get("/healthz", _answer(lambda: "")),
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
        response = web.Response(text=f"{trouble or 'ok'}\n", status=503 if trouble else 200)
        response.force_close()
        return response

    return handle
