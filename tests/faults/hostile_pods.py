"""Pods that answer `/progress` as nobody should, each at a loopback address of its own: one server plays them all."""

import asyncio
import gzip
import json
import threading
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any

from lora_trainer.spec.progress import PORT

Talk = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]
"""What happens on a connection after its request; it is cut afterwards."""

_PAUSE_S = 0.02
_GOOD: Mapping[str, Any] = {"phase": "Training", "step": 5, "total_steps": 40, "loss": 1.25, "updated_at": 1.0}
_RESOLVED: Mapping[str, Any] = {
    "device": "cpu",
    "compute_dtype": "float32",
    "model_type": "llama",
    "model_revision": "a" * 40,
    "dataset_format": "Messages",
    "dataset_fingerprint": "sha256:" + "b" * 64,
    "target_modules": ["q_proj"],
    "trainable_parameters": 1000,
    "total_parameters": 100_000,
    "micro_batch_size": 1,
    "micro_batch_tokens": 4096,
    "gradient_accumulation_steps": 16,
}


class Pods:
    """The pods that are played. `requests` are the first lines of all requests, `asked` counts them by address."""

    def __init__(self) -> None:
        self.requests: set[str] = set()
        self.asked: dict[str, int] = {}
        self._talks: dict[str, Talk] = {}
        self._servers: list[asyncio.Server] = []
        self._loop = asyncio.new_event_loop()
        self._ended = asyncio.Event()

    def play(self, address: str, talk: Talk) -> None:
        """Let a pod be there, or answer something else from now on; its address is the machine's own."""
        self._talks[address] = talk
        if address in self.asked:
            return
        self.asked[address] = 0
        server = asyncio.run_coroutine_threadsafe(asyncio.start_server(self._serve, address, PORT), self._loop)
        self._servers.append(server.result(60))

    def run(self) -> None:
        """Answer until `end`."""
        with asyncio.Runner(loop_factory=lambda: self._loop) as runner:
            runner.run(self._ended.wait())
            for server in self._servers:
                server.close()

    def end(self) -> None:
        """Have `run` return."""
        self._loop.call_soon_threadsafe(self._ended.set)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        address = str(writer.get_extra_info("sockname")[0])
        try:
            head = await reader.readuntil(b"\r\n\r\n")
            self.requests.add(head.split(b"\r\n", 1)[0].decode())
            self.asked[address] += 1
            await self._talks[address](reader, writer)
        except (OSError, asyncio.IncompleteReadError, asyncio.CancelledError):
            return
        finally:
            writer.transport.abort()


@contextmanager
def played_pods() -> Iterator[Pods]:
    """A server for pods, in a thread of its own."""
    pods = Pods()
    thread = threading.Thread(target=pods.run)
    thread.start()
    try:
        yield pods
    finally:
        pods.end()
        thread.join()


def progress(**changes: Any) -> bytes:
    """A trainer's answer, with lies."""
    return json.dumps({**_GOOD, **changes}).encode()


async def answer(
    _: asyncio.StreamReader,
    writer: asyncio.StreamWriter,
    *,
    body: bytes,
    head: str = "HTTP/1.1 200 OK",
    length: int | None = None,
) -> None:
    """One whole answer, with the Content-Length that it claims."""
    claimed = len(body) if length is None else length
    writer.write(f"{head}\r\nContent-Length: {claimed}\r\nConnection: close\r\n\r\n".encode() + body)
    await writer.drain()
    writer.write_eof()
    await asyncio.sleep(_PAUSE_S)


async def flood(_: asyncio.StreamReader, writer: asyncio.StreamWriter, *, head: str, again: bytes) -> None:
    """The same bytes without end, as fast as they are taken."""
    writer.write(head.encode())
    while True:
        writer.write(again)
        await writer.drain()


async def drip(_: asyncio.StreamReader, writer: asyncio.StreamWriter, *, head: str, again: bytes) -> None:
    """The same bytes without end, slowly: never silent for long, and never done."""
    writer.write(head.encode())
    while True:
        writer.write(again)
        await writer.drain()
        await asyncio.sleep(_PAUSE_S)


async def silent(reader: asyncio.StreamReader, _: asyncio.StreamWriter) -> None:
    """Nothing at all until the other side has enough of it."""
    await reader.read()


async def cut(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Gone in the middle of an answer."""
    writer.write(b'HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n{"phase": "Trai')
    await writer.drain()
    await asyncio.sleep(_PAUSE_S)


_OK = "HTTP/1.1 200 OK\r\n"
_CHUNKED = f"{_OK}Transfer-Encoding: chunked\r\n\r\n"
_LONG = f"{_OK}Content-Length: 1000000000\r\n\r\n"
_MIB = b" " * 2**20
_BOMB = gzip.compress(progress() + b" " * 2**24)

NOISE: Mapping[str, Talk] = {
    "silent": silent,
    "cut": cut,
    "slow-status-line": partial(drip, head="HTTP/1.1 200 ", again=b"O"),
    "slow-headers": partial(drip, head=_OK, again=b"X-Slow: 1\r\n"),
    "slow-body": partial(drip, head=_LONG, again=b" "),
    "slow-chunks": partial(drip, head=_CHUNKED, again=b"1\r\n \r\n"),
    "endless-status-line": partial(flood, head="HTTP/1.1 200 ", again=_MIB),
    "endless-header": partial(flood, head=f"{_OK}X-Long: ", again=b"x" * 2**20),
    "endless-headers": partial(flood, head=_OK, again=b"X-Again: again\r\n" * 4096),
    "endless-cookies": partial(flood, head=_OK, again=b"Set-Cookie: a=b\r\n" * 4096),
    "endless-body": partial(flood, head=f"{_OK}\r\n", again=_MIB),
    "endless-chunk": partial(flood, head=f"{_CHUNKED}ffffffffffff\r\n", again=_MIB),
    "endless-chunks": partial(flood, head=_CHUNKED, again=b"1\r\n \r\n" * 16384),
    "endless-chunk-extension": partial(flood, head=f"{_CHUNKED}1;", again=b"x" * 2**20),
    "endless-trailers": partial(flood, head=f"{_CHUNKED}0\r\n", again=b"X-Again: again\r\n" * 4096),
    "endless-continue": partial(flood, head="", again=b"HTTP/1.1 100 Continue\r\n\r\n" * 4096),
    "endless-answers": partial(flood, head="", again=b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{]" * 4096),
    "huge": partial(flood, head=_LONG, again=_MIB),
    "huge-length": partial(answer, body=progress(), length=10**30),
    "not-chunked": partial(answer, body=progress(), head=f"{_OK}Transfer-Encoding: chunked"),
    "short-length": partial(answer, body=progress(), length=10),
    "long-length": partial(answer, body=progress(), length=4000),
    "too-long": partial(answer, body=progress() + b" " * 4096),
    "gzip-bomb": partial(answer, body=_BOMB, head=f"{_OK}Content-Encoding: gzip"),
    "gzip-lie": partial(answer, body=progress() + b"\x00", head=f"{_OK}Content-Encoding: gzip"),
    "empty": partial(answer, body=b""),
    "not-json": partial(answer, body=b"<html>"),
    "half-json": partial(answer, body=progress()[:-1]),
    "not-text": partial(answer, body=b'{"phase": "\xff\xfe"}'),
    "nested-lists": partial(answer, body=b"[" * 4000),
    "nested-maps": partial(answer, body=b'{"a":' * 800),
    "a-list": partial(answer, body=b"[1]"),
    "huge-number": partial(answer, body=b'{"step": 1' + b"0" * 4000 + b"}"),
    "step-not-a-number": partial(answer, body=progress(step=float("nan"))),
    "step-infinite": partial(answer, body=progress(total_steps=float("inf"))),
    "step-a-text": partial(answer, body=progress(step="5")),
    "step-a-truth": partial(answer, body=progress(step=True)),
    "phase-unknown": partial(answer, body=progress(phase="Succeeded")),
    "unknown-keys": partial(answer, body=progress(verdict="Succeeded")),
    "server-error": partial(answer, body=progress(), head="HTTP/1.1 500 Oops"),
    "no-content": partial(answer, body=b"", head="HTTP/1.1 204 No Content"),
    "redirect": partial(answer, body=b"", head="HTTP/1.1 302 Found\r\nLocation: http://169.254.169.254/progress"),
    "not-http": partial(answer, body=b"", head="SSH-2.0-OpenSSH_9.2"),
}
"""Answers that are no progress."""

LIES: Mapping[str, Talk] = {
    "all-done": partial(answer, body=progress(step=40, phase="Publishing", estimated_remaining_seconds=0)),
    "beyond-the-end": partial(answer, body=progress(step=10**15, checkpoint_step=10**16, resumed_step=10**17)),
    "beyond-all-numbers": partial(answer, body=progress(step=10**300, total_steps=10**299, loss=1e308)),
    "negative": partial(
        answer, body=progress(step=-5, total_steps=-40, epoch=-1.0, tokens_per_second=-1.0, peak_memory_bytes=-1)
    ),
    "from-the-future": partial(answer, body=progress(updated_at=1e18, estimated_remaining_seconds=10**18)),
    "not-finite": partial(answer, body=progress(loss=float("nan"), eval_loss=float("inf"), learning_rate=-1e-320)),
    "odd-texts": partial(
        answer,
        body=progress(resolved={**_RESOLVED, "model_type": "\x1b[31m\x00\ud800" + "x" * 2000, "micro_batch_size": -9}),
    ),
}
"""Answers that read well and are not true."""
