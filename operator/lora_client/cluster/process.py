"""A process in a pod, by the API server's exec: bytes in, bytes out."""

import json
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any, TypeVar
from urllib.parse import urlencode

from lora_client.cluster.connection import Cluster, UnreachableError
from lora_client.errors import ClientError
from lora_client.output import note

_STDIN, _STDOUT, _STDERR, _ERROR = range(4)
_KEPT_ERRORS = 8192
_PAUSES_S = (1.0, 2.0, 4.0, 8.0, 16.0)
T = TypeVar("T")


class Process:
    """Started in a container; for a `with` statement."""

    def __init__(self, cluster: Cluster, pod: str, container: str, command: Sequence[str]) -> None:
        from kubernetes.stream.ws_client import WSClient  # noqa: PLC0415 - half a second, which other verbs do without

        query = [("container", container), *(("command", argument) for argument in command)]
        query += [(name, "true") for name in ("stdin", "stdout", "stderr")]
        scheme, _, rest = cluster.configuration.host.rstrip("/").partition("://")
        address = f"{scheme.replace('http', 'ws')}://{rest}{cluster.path('pods', pod, 'exec')}?{urlencode(query)}"
        token = cluster.authorization()
        headers = {"authorization": token} if token else {}
        try:
            self._socket: Any = WSClient(cluster.configuration, address, headers, capture_all=False, binary=True)
        except Exception as error:
            # The library raises its own exceptions and those of sockets and TLS.
            why = " ".join(str(error).split())[:300]
            raise ClientError(
                f"No process can be started in pod {pod} ({why}): you need the right to create pods/exec, which "
                "the role edit has"
            ) from error
        self._out = bytearray()
        self._errors = b""

    def __enter__(self) -> "Process":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End it with its input."""
        with suppress(Exception):  # the library's own, of sockets and of TLS, for one that broke off
            self._socket.close()
        # What the server has closed first it leaves open.
        self._socket.sock.shutdown()

    def write(self, data: bytes) -> None:
        """Send bytes to its standard input. Raises `ClientError`."""
        try:
            self._socket.write_channel(_STDIN, data)
        except Exception as error:
            raise self._ended() from error

    def line(self, timeout_s: float) -> bytes:
        """The next line of its output, without the end. Raises `ClientError` when it ends or is silent."""
        while b"\n" not in self._out:
            self._more(timeout_s)
        line, _, rest = bytes(self._out).partition(b"\n")
        self._out = bytearray(rest)
        return line

    def bytes(self, count: int, timeout_s: float) -> bytes:
        """So many bytes of its output. Raises as `line`."""
        while len(self._out) < count:
            self._more(timeout_s)
        data = bytes(self._out[:count])
        del self._out[:count]
        return data

    def _more(self, timeout_s: float) -> None:
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline:
            try:
                self._socket.update(timeout=min(1.0, timeout_s))
                data = self._socket.read_channel(_STDOUT)
                self._errors = (self._errors + self._socket.read_channel(_STDERR))[-_KEPT_ERRORS:]
            except Exception as error:
                raise UnreachableError(f"The connection to the pod broke off ({error}): try again") from error
            if data:
                self._out += data
                return
            if not self._socket.is_open():
                raise self._ended()
        raise UnreachableError(
            f"The process in the pod has printed nothing for {timeout_s:.0f} s: try again, or look at the node"
        )

    def _ended(self) -> ClientError:
        said = self._errors.decode(errors="replace").strip().splitlines()
        if said:
            return ClientError(said[-1][:500])
        try:
            status = json.loads(self._socket.read_channel(_ERROR) or b"{}")
        except ValueError:
            status = {}
        # Without a status it was the connection that ended.
        kind = ClientError if status.get("message") else UnreachableError
        return kind(f"The process in the pod ended early ({status.get('message') or 'without a reason'}): try again")


class Lasting:
    """A process that answers each request by itself: where the connection breaks off, another one is asked it again.

    For a `with` statement; `start` starts one.
    """

    def __init__(self, start: Callable[[], Process]) -> None:
        self._start = start
        self._process = start()
        self._request = b""

    def __enter__(self) -> "Lasting":
        return self

    def __exit__(self, *_: object) -> None:
        self._process.close()

    def write(self, data: bytes) -> None:
        """As `Process`; `data` is a whole request."""
        self._request = data
        self._tried(lambda: self._process.write(data), lambda: None)

    def line(self, timeout_s: float) -> bytes:
        """As `Process`: what the answer begins with."""
        return self._tried(lambda: self._process.line(timeout_s), self._ask)

    def bytes(self, count: int, timeout_s: float) -> bytes:
        """As `Process`: the rest of the answer."""

        def ask() -> None:
            self._ask()
            self._process.line(timeout_s)

        return self._tried(lambda: self._process.bytes(count, timeout_s), ask)

    def _ask(self) -> None:
        self._process.write(self._request)

    def _tried(self, act: Callable[[], T], ask: Callable[[], None]) -> T:
        def anew() -> T:
            self._process.close()
            self._process = self._start()
            ask()
            return act()

        try:
            return act()
        except UnreachableError as error:
            note(f"{str(error).partition(':')[0]}; continuing where it was")
        for pause_s in _PAUSES_S:
            time.sleep(pause_s)
            # Of a network that is still away, starting a process says something else.
            with suppress(ClientError):
                return anew()
        return anew()
