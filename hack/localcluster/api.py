"""The few calls to a Kubernetes API server that the cluster itself needs, without kubectl's start-up time."""

from __future__ import annotations

import http
import http.client
import json
import ssl
import time
import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

Object = dict[str, Any]

_BUSY_S = 10.0


class ApiError(Exception):
    """The server's answer when it is not a success."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(f"{status}: {message}")
        self.status = status


@dataclass(frozen=True, slots=True, kw_only=True)
class Api:
    """An API server, by default on 127.0.0.1, reached with a bearer token (or anonymously, if it is empty)."""

    port: int
    ca_file: Path
    token: str
    host: str = "127.0.0.1"

    def ready(self) -> bool:
        """Whether the server answers /readyz with ok; never raises for a server that is not there yet."""
        with warnings.catch_warnings():
            # Python's own ssl leaves a socket open whose peer goes away before the handshake.
            warnings.simplefilter("ignore", ResourceWarning)
            try:
                self._send("GET", "/readyz", None, timeout_s=5)
            except (OSError, http.client.HTTPException, ApiError):
                return False
            return True

    def get(self, path: str) -> Object:
        return self._json("GET", path, None)

    def post(self, path: str, body: Object) -> Object:
        return self._json("POST", path, body)

    def delete(self, path: str) -> Object:
        return self._json("DELETE", path, None)

    def patch(self, path: str, body: Object) -> Object:
        return self._json("PATCH", path, body, content_type="application/merge-patch+json")

    def apply(self, path: str, body: Object) -> Object:
        """Server-side apply, so that it can be repeated."""
        query = "?fieldManager=localcluster&force=true"
        return self._json("PATCH", path + query, body, content_type="application/apply-patch+yaml")

    def exists(self, path: str) -> bool:
        """Whether the object is there; a server that does not answer counts as no."""
        try:
            self.get(path)
        except (OSError, http.client.HTTPException, ApiError):
            return False
        return True

    def watch(self, path: str, *, timeout_s: int) -> Iterator[Object]:
        """Events from now on, until the server ends the watch after timeout_s."""
        separator = "&" if "?" in path else "?"
        url = f"{path}{separator}watch=true&timeoutSeconds={timeout_s}"
        connection, response = self._open("GET", url, None, timeout_s=timeout_s + 10)
        try:
            while line := response.readline():
                yield json.loads(line)
        finally:
            connection.close()

    def _json(self, method: str, path: str, body: Object | None, *, content_type: str = "application/json") -> Object:
        """Send, and again where the server asks for it: it does so while it fills the cache of a kind that is new."""
        end_s = time.monotonic() + _BUSY_S
        while True:
            try:
                answer = self._send(method, path, body, content_type=content_type, timeout_s=30)
                break
            except ApiError as error:
                if error.status != http.HTTPStatus.TOO_MANY_REQUESTS or time.monotonic() > end_s:
                    raise
            time.sleep(0.2)
        document: Object = json.loads(answer)
        return document

    def _send(
        self, method: str, path: str, body: Object | None, *, content_type: str = "application/json", timeout_s: float
    ) -> bytes:
        connection, response = self._open(method, path, body, content_type=content_type, timeout_s=timeout_s)
        try:
            return response.read()
        finally:
            connection.close()

    def _open(
        self, method: str, path: str, body: Object | None, *, content_type: str = "application/json", timeout_s: float
    ) -> tuple[http.client.HTTPSConnection, http.client.HTTPResponse]:
        context = ssl.create_default_context(cafile=str(self.ca_file))
        connection = http.client.HTTPSConnection(self.host, self.port, timeout=timeout_s, context=context)
        try:
            headers = {"Content-Type": content_type}
            if self.token:
                headers["Authorization"] = f"Bearer {self.token}"
            connection.request(method, path, body=None if body is None else json.dumps(body), headers=headers)
            response = connection.getresponse()
            if response.status >= 300:
                text = response.read().decode(errors="replace")
                raise ApiError(response.status, _message(text))
        except BaseException:
            connection.close()
            raise
        return connection, response


def _message(text: str) -> str:
    try:
        return str(json.loads(text)["message"])
    except (ValueError, KeyError, TypeError):
        return text[:300]
