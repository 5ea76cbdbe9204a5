"""A process in a pod through the API server's websocket, played by a server here that runs the pods' program."""

import asyncio
import hashlib
import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from aiohttp import WSMsgType, web
from kubernetes.client import Configuration

from lora_client.cluster import process as module
from lora_client.cluster.connection import Cluster
from lora_client.cluster.process import Lasting, Process
from lora_client.errors import ClientError
from lora_client.in_pod import files
from lora_client.verbs.pull import fetch

_STDIN, _STDOUT, _STDERR, _ERROR = (bytes([channel]) for channel in range(4))


class ApiServer:
    """Answers `exec` of pod `helper` by a process here, as the API server and a kubelet would."""

    def __init__(self) -> None:
        self.queries: list[list[str]] = []
        self.tokens: list[str] = []
        self.cuts: list[int] = []
        """Of each connection to come, after how many bytes of output it breaks off."""
        self._loop = asyncio.new_event_loop()
        self._ready = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()
        assert self._ready.wait(300)

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        app = web.Application()
        app.router.add_get("/api/v1/namespaces/team-a/pods/helper/exec", self._exec)
        self._runner = web.AppRunner(app)
        self._loop.run_until_complete(self._runner.setup())
        site = web.TCPSite(self._runner, "127.0.0.1", 0)
        self._loop.run_until_complete(site.start())
        self.url = f"http://127.0.0.1:{self._runner.addresses[0][1]}"
        self._ready.set()
        self._loop.run_forever()
        self._loop.run_until_complete(self._runner.cleanup())
        self._loop.close()

    def close(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(30)

    async def _exec(self, request: web.Request) -> web.WebSocketResponse:
        self.queries.append(request.query.getall("command"))
        self.tokens.append(request.headers.get("Authorization", ""))
        socket = web.WebSocketResponse(protocols=("v4.channel.k8s.io",), max_msg_size=0)
        await socket.prepare(request)
        command = [sys.executable, "-I", *request.query.getall("command")[1:]]
        process = await asyncio.create_subprocess_exec(
            *command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )
        assert process.stdin is not None
        cut = self.cuts.pop(0) if self.cuts else None
        pumps = [
            asyncio.create_task(self._pump(stream, channel, socket, cut, request.transport))
            for stream, channel in ((process.stdout, _STDOUT), (process.stderr, _STDERR))
        ]
        ends = asyncio.create_task(self._end(process, pumps, socket))
        async for message in socket:
            if message.type is WSMsgType.BINARY and message.data[:1] == _STDIN:
                process.stdin.write(message.data[1:])
        process.stdin.close()
        await ends
        return socket

    async def _pump(
        self,
        stream: asyncio.StreamReader | None,
        channel: bytes,
        socket: web.WebSocketResponse,
        cut: int | None,
        transport: asyncio.Transport | None,
    ) -> None:
        assert stream is not None
        assert transport is not None
        passed = 0
        while data := await stream.read(32 * 1024):
            passed += len(data)
            if cut is not None and passed > cut:
                transport.abort()
            elif not socket.closed:
                await socket.send_bytes(channel + data)

    async def _end(
        self, process: asyncio.subprocess.Process, pumps: "list[asyncio.Task[None]]", socket: web.WebSocketResponse
    ) -> None:
        await asyncio.gather(*pumps)
        code = await process.wait()
        if not socket.closed:
            status = {"status": "Success" if code == 0 else "Failure", "message": f"exit code {code}"}
            await socket.send_bytes(_ERROR + json.dumps(status).encode())
            await socket.close()


@pytest.fixture
def server() -> Iterator[ApiServer]:
    """The API server."""
    started = ApiServer()
    yield started
    started.close()


@pytest.fixture
def cluster(server: ApiServer) -> Iterator[Cluster]:
    """A connection to it, with a token."""
    configuration = Configuration()
    configuration.host = server.url
    configuration.api_key = {"authorization": "Bearer secret"}
    with Cluster(configuration, "team-a") as opened:
        yield opened


@pytest.mark.parametrize("cuts", [[], [0], [5 * 2**20], [5 * 2**20, 0, 2**20]], ids=len)
def test_a_result_of_many_megabytes_comes_through_a_pod(
    cluster: Cluster, server: ApiServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cuts: list[int]
) -> None:
    """Whole, with frames that the network cuts as it likes; where it breaks off, from there on."""
    folder = tmp_path / "claim"
    folder.mkdir()
    weights = hashlib.shake_256(b"x").digest(9 * 2**20 + 17)
    (folder / "adapter_model.safetensors").write_bytes(weights)
    entry = {
        "path": "adapter_model.safetensors",
        "sha256": hashlib.sha256(weights).hexdigest(),
        "size_bytes": len(weights),
    }
    manifest = json.dumps({"files": [entry]}).encode()
    (folder / "manifest.json").write_bytes(manifest)
    program = Path(files.__file__).read_text()
    monkeypatch.setattr(module, "_PAUSES_S", (0.0, 0.0))
    server.cuts += cuts
    command = ["python3", "-c", program, str(folder)]
    with Lasting(lambda: Process(cluster, "helper", "lora", command)) as process:
        fetch(process, tmp_path / "here", f"sha256:{hashlib.sha256(manifest).hexdigest()}", lambda _: None)
    assert (tmp_path / "here" / "adapter_model.safetensors").read_bytes() == weights
    assert server.tokens == ["Bearer secret"] * (1 + len(cuts))
    assert server.queries[0][0] == "python3"


@pytest.mark.parametrize("pauses", [(), (0.0,)])
def test_a_connection_that_keeps_breaking_off_is_given_up(
    cluster: Cluster, server: ApiServer, monkeypatch: pytest.MonkeyPatch, pauses: tuple[float, ...]
) -> None:
    """After so many pauses, and one more try."""
    monkeypatch.setattr(module, "_PAUSES_S", pauses)
    server.cuts += [0] * 9
    with Lasting(lambda: Process(cluster, "helper", "lora", ["python3", "-c", "print(input())"])) as process:
        process.write(b"x\n")
        with pytest.raises(ClientError, match="try again"):
            process.line(300)
    assert len(server.cuts) == 9 - 2 - len(pauses)


def test_a_process_that_fails_says_so_with_its_last_words(cluster: Cluster) -> None:
    """As an older trainer does with options that it does not know."""
    program = "import sys; sys.exit('lora-trainer ask: error: the following arguments are required: --question')"
    with (
        Process(cluster, "helper", "lora", ["python3", "-c", program]) as process,
        pytest.raises(ClientError, match="the following arguments are required"),
    ):
        process.line(300)


def test_a_process_that_ends_in_silence_names_its_status(cluster: Cluster) -> None:
    """Of a container that was killed nothing else is known."""
    with (
        Process(cluster, "helper", "lora", ["python3", "-c", "import os; os._exit(9)"]) as process,
        pytest.raises(ClientError, match="ended early \\(exit code 9\\)"),
    ):
        process.line(300)


def test_a_process_that_says_nothing_is_waited_for_so_long(cluster: Cluster) -> None:
    """And no longer."""
    with (
        Process(cluster, "helper", "lora", ["python3", "-c", "import sys; sys.stdin.read()"]) as process,
        pytest.raises(ClientError, match="has printed nothing for 1 s"),
    ):
        process.line(1)


def test_a_pod_that_takes_no_process_is_one_sentence(cluster: Cluster) -> None:
    """A right that lacks, a pod that is gone."""
    with pytest.raises(ClientError, match="No process can be started in pod other"):
        Process(cluster, "other", "lora", ["python3"])
