"""Many requests to an API server over a few connections that stay open, as a busy client sends them."""

import http.client
import json
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import orjson

from localcluster.api import Api

Object = dict[str, Any]
MERGE_PATCH = "application/merge-patch+json"
_NAMES_ONLY = "application/json;as=PartialObjectMetadata;g=meta.k8s.io;v=v1"
_WATCH_S = 3600


class Connection:
    """One connection; requests one after the other."""

    def __init__(self, api: Api, timeout_s: float = _WATCH_S) -> None:
        context = ssl.create_default_context(cafile=str(api.ca_file))
        self._connection = http.client.HTTPSConnection("127.0.0.1", api.port, timeout=timeout_s, context=context)
        self._headers = {"Authorization": f"Bearer {api.token}"}

    def send(self, method: str, path: str, body: bytes | None = None, content: str = "application/json") -> bytes:
        """Send one request. Raises RuntimeError for an answer that is no success."""
        self._connection.request(method, path, body, {**self._headers, "Content-Type": content})
        answer = self._connection.getresponse()
        data = answer.read()
        if answer.status >= 300:
            raise RuntimeError(f"{method} {path}: the API server answered {answer.status}: {data[:300].decode()}")
        return data

    def version(self, path: str) -> str:
        """The resource version of a collection as it is now."""
        return str(orjson.loads(self.send("GET", f"{path}?limit=1"))["metadata"]["resourceVersion"])

    def events(self, path: str, version: str, *, names_only: bool) -> Iterator[Object]:
        """Watch from a version on; `names_only` leaves all but the metadata with the server."""
        accept = {"Accept": _NAMES_ONLY} if names_only else {}
        url = f"{path}?watch=true&resourceVersion={version}&timeoutSeconds={_WATCH_S}"
        self._connection.request("GET", url, headers={**self._headers, **accept})
        answer = self._connection.getresponse()
        while line := answer.readline():
            yield orjson.loads(line)

    def hang_up(self) -> None:
        """End the watch that another thread reads: that thread sees an end or an error."""
        if self._connection.sock is not None:
            self._connection.sock.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Give the connection back; no other thread may use it."""
        self._connection.close()


class Connections:
    """Some connections to one API server."""

    def __init__(self, api: Api, count: int) -> None:
        self._all = [Connection(api) for _ in range(count)]

    def run(self, work: Callable[[Connection, int], None], count: int) -> None:
        """Call `work` for each number below `count`, on all connections at once."""
        numbers = iter(range(count))
        lock = threading.Lock()

        def take() -> int | None:
            with lock:
                return next(numbers, None)

        def loop(connection: Connection) -> None:
            while (number := take()) is not None:
                work(connection, number)

        with ThreadPoolExecutor(len(self._all)) as pool:
            list(pool.map(loop, self._all))

    def send_all(self, method: str, requests: Iterable[tuple[str, Object]], content: str = "application/json") -> None:
        """Send many requests, in about this order."""
        listed = list(requests)

        def send(connection: Connection, number: int) -> None:
            path, body = listed[number]
            connection.send(method, path, orjson.dumps(body), content)

        self.run(send, len(listed))

    def close(self) -> None:
        """Hang up."""
        for connection in self._all:
            connection.close()


class Watch:
    """A watch in a thread of its own that notes when, on the monotonic clock, something was first seen of an object.

    It tells of what happens from `with` on.
    """

    def __init__(self, api: Api, path: str, look: Callable[[Object], str | None], *, names_only: bool) -> None:
        self.seen: dict[str, float] = {}
        self._look = look
        self._connection = Connection(api)
        self._path = path
        self._names_only = names_only
        self._version = ""
        self._hung_up = False
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._follow, daemon=True)

    def __enter__(self) -> "Watch":
        self._version = self._connection.version(self._path)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._hung_up = True
        self._connection.hang_up()
        self._thread.join()
        self._connection.close()

    def wait(self, count: int, timeout_s: float) -> None:
        """Wait until so many objects were seen. Raises SystemExit after the timeout."""
        with self._changed:
            if not self._changed.wait_for(lambda: len(self.seen) >= count, timeout_s):
                raise SystemExit(f"within {timeout_s:.0f} s only {len(self.seen)} of {count} were seen at {self._path}")

    def _follow(self) -> None:
        try:
            for event in self._connection.events(self._path, self._version, names_only=self._names_only):
                self._note(event)
        except (OSError, ValueError, AttributeError, http.client.HTTPException):
            if not self._hung_up:
                raise

    def _note(self, event: Object) -> None:
        now_s = time.monotonic()
        name = self._look(event["object"]) if event["type"] in ("ADDED", "MODIFIED") else None
        if name is not None and name not in self.seen:
            with self._changed:
                self.seen[name] = now_s
                self._changed.notify_all()


def dump(document: Object) -> bytes:
    """JSON as it is sent."""
    return json.dumps(document).encode()
