"""How the client that the operator logs in with behaves, over real connections on 127.0.0.1."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from aiohttp import web
from kubernetes.aio.client.api_client import ApiClient
from tests.ports import free_port

from lora_operator.cluster.api import LEASES, PODS, Api
from lora_operator.cluster.login import credentials, load_configuration

WATCHES, LONG_S = 120, 600


@asynccontextmanager
async def served_watches(port: int) -> AsyncIterator[None]:
    """A server whose watches say nothing for long, and that answers all else at once."""

    async def answer(request: web.Request) -> web.StreamResponse:
        if "watch" not in request.query:
            return web.json_response({"kind": "Lease"})
        stream = web.StreamResponse()
        await stream.prepare(request)
        await stream.write(b"\n")
        await asyncio.sleep(LONG_S)
        return stream

    application = web.Application()
    application.add_routes([web.get("/{path:.*}", answer)])
    runner = web.AppRunner(application, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", port).start()
    try:
        yield
    finally:
        await runner.cleanup()


def write_kubeconfig(file: Path, port: int) -> None:
    """Names the server and a token."""
    server = {"server": f"http://127.0.0.1:{port}"}
    config = {
        "apiVersion": "v1",
        "kind": "Config",
        "current-context": "only",
        "contexts": [{"name": "only", "context": {"cluster": "only", "user": "only"}}],
        "clusters": [{"name": "only", "cluster": server}],
        "users": [{"name": "only", "user": {"token": "secret"}}],
    }
    file.write_text(json.dumps(config))


async def test_watches_of_many_namespaces_leave_connections_for_requests(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each holds one as long as it lasts: with a limit, requests would wait for the end of a watch, and time out."""
    port = free_port()
    write_kubeconfig(tmp_path / "config", port)
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "config"))
    async with served_watches(port), ApiClient(await load_configuration()) as client:
        api = Api(client)
        watches = [api.watch(PODS, f"team-{number}", {}, silence_s=LONG_S) for number in range(WATCHES)]
        try:
            async with asyncio.timeout(180):
                await asyncio.gather(*(anext(watch) for watch in watches))
                assert await api.get(LEASES, "lora-system", "lora") == {"kind": "Lease"}
        finally:
            await asyncio.gather(*(watch.aclose() for watch in watches), return_exceptions=True)


async def test_kopf_logs_in_where_and_as_our_own_client_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Equal as long as they stay the same: so a refusal of them is known to be one for good."""
    write_kubeconfig(tmp_path / "config", 6443)
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "config"))
    found = await credentials()
    assert (found.server, found.scheme, found.token) == ("http://127.0.0.1:6443", "Bearer", "secret")
    assert found == await credentials()
