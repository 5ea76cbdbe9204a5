"""A proxy between an operator and its API server that does to requests and watches what networks and servers do.

It speaks plain HTTP on 127.0.0.1 and forwards over TLS. It runs in a thread of its own; tests add rules and inject
faults from theirs, and read what was called.
"""

import asyncio
import contextlib
import json
import ssl
import threading
from collections.abc import Callable, Coroutine
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, TypeVar

import aiohttp
from aiohttp import web
from tests.faults.calls import Call, parse_body, status_document
from tests.faults.injections import (
    Answer,
    Cut,
    Delay,
    Freeze,
    HalfDocument,
    Hold,
    Instead,
    LostAnswer,
    Reset,
    Rule,
    StreamFault,
    WatchError,
)

T = TypeVar("T")
Lost = Callable[[Call, dict[str, Any]], bool]
"""Whether an event of a watch is lost on its way."""
# Of one connection, or made anew by the server here.
_NOT_FORWARDED = frozenset(
    {"connection", "keep-alive", "transfer-encoding", "content-length", "content-encoding", "accept-encoding", "host"}
)
_PATIENCE_S = 30.0


class _Stream:
    """A watch that goes on: lines of the server and faults of the test, in the order in which they come."""

    def __init__(self, call: Call) -> None:
        self.call = call
        self.items: asyncio.Queue[bytes | StreamFault | None] = asyncio.Queue()


class FaultProxy:
    """Clients connect to `url`; `server` is the API server's URL, and `ca` the file that it is trusted by."""

    def __init__(self, server: str, ca: Path) -> None:
        self.calls: list[Call] = []
        self._server = server
        self._ca = ca
        self._rules: list[Rule] = []
        self._lost: list[Lost] = []
        self._streams: list[_Stream] = []
        self._held: list[Call] = []
        self._port = 0
        self._loop = asyncio.new_event_loop()
        self._stop = asyncio.Event()
        self._let_go = asyncio.Event()
        self._ready = threading.Event()
        self._thread = threading.Thread(target=self._run, name="fault proxy")

    def start(self) -> "FaultProxy":
        """Listen; connections are taken when this returns."""
        self._thread.start()
        assert self._ready.wait(_PATIENCE_S), "the proxy has not started"
        return self

    def close(self) -> None:
        """End every connection and the thread, if there is one still."""
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join()

    # -- for tests

    @property
    def url(self) -> str:
        """Where the operator is to connect to."""
        return f"http://127.0.0.1:{self._port}"

    def add(self, rule: Rule) -> Rule:
        """Let a rule act on what comes from now on; of several the first that matches does. Lift it to end it."""
        self._rules.append(rule)
        return rule

    def lose(self, lost: Lost) -> None:
        """Keep events of watches back for ever, those for which `lost` is true."""
        self._lost.append(lost)

    def inject(self, fault: StreamFault, what: str = "watch *") -> int:
        """Do something to the watches that go on, such as `watch jobs`; return to how many."""
        return self._in_loop(self._inject(fault, what))

    def watching(self, what: str = "watch *") -> int:
        """How many watches go on now."""
        return sum(fnmatchcase(stream.call.what, what) for stream in list(self._streams))

    @property
    def held(self) -> list[Call]:
        """Calls that a `Hold` holds now."""
        return list(self._held)

    def let_go(self) -> None:
        """Let them go on, and hold nothing from now on."""
        self._loop.call_soon_threadsafe(self._let_go.set)

    def made(self, what: str = "*", *, about: str = "*") -> list[Call]:
        """Calls so far, such as those of `update lorafinetunes/status`, about one LoRAFineTune."""
        calls = list(self.calls)
        return [call for call in calls if fnmatchcase(call.what, what) and fnmatchcase(call.about, about)]

    # -- the proxy's own thread

    def _run(self) -> None:
        try:
            self._loop.run_until_complete(self._serve())
        finally:
            self._loop.close()

    def _in_loop(self, coroutine: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result(_PATIENCE_S)

    async def _serve(self) -> None:
        application = web.Application(client_max_size=2**26)
        application.router.add_route("*", "/{path:.*}", self._handle)
        # A client that is gone must not have its request forwarded a moment later.
        runner = web.AppRunner(application, access_log=None, handler_cancellation=True, shutdown_timeout=0.1)
        connector = aiohttp.TCPConnector(limit=0, ssl=ssl.create_default_context(cafile=self._ca))
        timeout = aiohttp.ClientTimeout(total=None)
        async with aiohttp.ClientSession(connector=connector, timeout=timeout, trust_env=False) as session:
            self._session = session
            await runner.setup()
            try:
                await web.TCPSite(runner, "127.0.0.1", 0).start()
                self._port = runner.addresses[0][1]
                self._ready.set()
                await self._stop.wait()
            finally:
                await runner.cleanup()
        # TLS connections are over a little after their session, which nothing reports.
        await asyncio.sleep(0.1)

    async def _inject(self, fault: StreamFault, what: str) -> int:
        streams = [stream for stream in self._streams if fnmatchcase(stream.call.what, what)]
        for stream in streams:
            stream.items.put_nowait(fault)
        return len(streams)

    async def _handle(self, request: web.Request) -> web.StreamResponse:
        data = await request.read()
        call = Call(method=request.method, path=request.path, query=dict(request.query), body=parse_body(data))
        self.calls.append(call)
        rule = next((rule for rule in self._rules if rule.takes(call)), None)
        fault = rule.fault if rule else None
        answered = fault.document(call) if isinstance(fault, Instead) else fault
        if isinstance(answered, Answer):
            return _refuse(call, answered)
        if isinstance(fault, Instead) and answered is not None:
            call.code = 200
            return web.json_response(answered)
        if isinstance(fault, Reset) and not call.is_watch:
            return _reset(request)
        if isinstance(fault, Delay):
            await asyncio.sleep(fault.seconds)
        if isinstance(fault, Hold) and not fault.answered:
            await self._hold(call)
        return await self._forward(request, data, call, fault)

    async def _forward(self, request: web.Request, data: bytes, call: Call, fault: Any) -> web.StreamResponse:
        headers = {name: value for name, value in request.headers.items() if name.lower() not in _NOT_FORWARDED}
        try:
            async with self._session.request(
                request.method, self._server + request.raw_path, headers=headers, data=data or None
            ) as upstream:
                if call.is_watch and upstream.status == 200:
                    call.code = 200
                    return await self._watch(request, upstream, call, fault)
                body = await upstream.read()
        except (aiohttp.ClientError, OSError):
            # The server is gone: so is the connection to it.
            return _reset(request)
        call.code = upstream.status
        if isinstance(fault, LostAnswer):
            return _reset(request)
        if isinstance(fault, Hold) and fault.answered:
            await self._hold(call)
        kept = {name: value for name, value in upstream.headers.items() if name.lower() not in _NOT_FORWARDED}
        return web.Response(status=upstream.status, body=body, headers=kept)

    async def _hold(self, call: Call) -> None:
        """Wait until the client goes away, which cancels this, or until the test lets it go."""
        self._held.append(call)
        try:
            await self._let_go.wait()
        finally:
            self._held.remove(call)

    async def _watch(
        self, request: web.Request, upstream: aiohttp.ClientResponse, call: Call, fault: Any
    ) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "application/json"})
        await response.prepare(request)
        stream = _Stream(call)
        if isinstance(fault, StreamFault):
            stream.items.put_nowait(fault)
        self._streams.append(stream)
        reading = asyncio.create_task(_read_lines(upstream, stream))
        try:
            while (item := await stream.items.get()) is not None:
                if not isinstance(item, bytes):
                    return await _break(request, response, item)
                event = json.loads(item)
                if not any(lost(call, event) for lost in self._lost):
                    await response.write(item)
            return response
        finally:
            self._streams.remove(stream)
            reading.cancel()
            await asyncio.gather(reading, return_exceptions=True)


async def _read_lines(upstream: aiohttp.ClientResponse, stream: _Stream) -> None:
    """Take the server's events line by line; None is the end."""
    buffer = b""
    try:
        async for chunk in upstream.content.iter_any():
            *lines, buffer = (buffer + chunk).split(b"\n")
            for line in lines:
                stream.items.put_nowait(line + b"\n")
    except aiohttp.ClientError:
        stream.items.put_nowait(Reset())
    else:
        stream.items.put_nowait(None)


async def _break(request: web.Request, response: web.StreamResponse, fault: StreamFault) -> web.StreamResponse:
    """Do to a watch what the fault says; it is over then."""
    if isinstance(fault, Freeze):
        await asyncio.Event().wait()
    elif isinstance(fault, HalfDocument):
        await response.write(b'{"type":"MODIFIED","object":{"apiVersion":"v1","metad')
    elif isinstance(fault, WatchError):
        document = status_document(fault.code, fault.reason, "injected")
        await response.write(json.dumps({"type": "ERROR", "object": document}).encode() + b"\n")
    elif isinstance(fault, Reset):
        return _reset(request, response)
    else:
        assert isinstance(fault, Cut)
    with contextlib.suppress(ConnectionError):
        await response.write_eof()
    return response


def _refuse(call: Call, answer: Answer) -> web.Response:
    """A Status, as the API server refuses with."""
    call.code = answer.code
    headers = {} if answer.retry_after_s is None else {"Retry-After": str(answer.retry_after_s)}
    document = status_document(answer.code, answer.reason, answer.message)
    return web.json_response(document, status=answer.code, headers=headers)


def _reset(request: web.Request, response: web.StreamResponse | None = None) -> web.StreamResponse:
    """Break the connection; nothing of the response is sent."""
    if request.transport is not None:
        request.transport.abort()
    return response or web.Response()
