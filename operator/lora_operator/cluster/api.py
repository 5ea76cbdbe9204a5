"""Requests to the API server: dicts in, dicts out, a deadline on each, and one exception for every refusal."""

import asyncio
import logging
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote, urlencode

import aiohttp
import orjson
from kubernetes.aio.client.api_client import ApiClient

from lora_operator.cluster.login import USER_AGENT, authorization
from lora_operator.cluster.server_clock import ServerClock
from lora_operator.model import names
from lora_operator.model.wording import is_of_webhook

logger = logging.getLogger(__name__)

Object = dict[str, Any]

REQUEST_TIMEOUT_S = 30.0
# The API server gives up a write, and what its webhooks take of it, after 34 s; its answer says which of them hangs.
WRITE_TIMEOUT_S = 40.0
CONNECT_TIMEOUT_S = 10.0
LONGEST_WAIT_S = 300
# A busy server is asked again from here, as Go's client does it; who asks for more time is left to the caller.
LONGEST_PAUSE_S = 5.0
MOST_PAUSES = 5
# An object may carry annotations of 256 KiB, and a chunk is there twice, as bytes and parsed: 10 MiB for 20 of them,
# and 40 MiB where 80 of them follow small ones. Each chunk costs the API server some milliseconds of its own.
LEAST_IN_CHUNK, MOST_IN_CHUNK = 20, 80
CHUNK_BYTES = 2**20
# A chunk that is larger, since large objects follow small ones, is dropped half-read and asked for in smaller ones.
LARGEST_CHUNK = 6 * 2**20
# etcd takes objects of 1.5 MiB, of which JSON may make several times as much.
LONGEST_LINE = 2**24
MERGE_PATCH = "application/merge-patch+json"


class ApiError(Exception):
    """The API server refused a request: the HTTP status, the server's reason, and its sentence.

    `retry_after_s` is how long it asks to be left alone, 0 where it does not say.
    """

    def __init__(self, code: int, reason: str, message: str, *, retry_after_s: float = 0.0) -> None:
        super().__init__(f"{code} {reason}: {message}")
        self.code = code
        self.reason = reason
        self.message = message
        self.retry_after_s = retry_after_s

    @property
    def is_passing(self) -> bool:
        """Whether the same request may well succeed later: a conflict, too many requests, a server in trouble."""
        return self.code in (409, 429) or self.code >= 500

    @property
    def is_of_webhook(self) -> bool:
        """Whether an admission webhook denied the request, so that the code means nothing but that."""
        return is_of_webhook(self.message)


class UnreachableError(Exception):
    """The API server did not answer in time, or not at all."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Resource:
    """A kind of object and where the API server keeps it. `group` is empty for the core API."""

    kind: str
    group: str
    version: str
    plural: str

    @property
    def api_version(self) -> str:
        """As manifests write it: v1, batch/v1."""
        return f"{self.group}/{self.version}" if self.group else self.version

    def path(self, namespace: str | None, name: str | None = None, subresource: str | None = None) -> str:
        """URL path of one object or, without a name, of all; without a namespace those of the whole cluster."""
        parts = ["apis", self.group, self.version] if self.group else ["api", self.version]
        if namespace is not None:
            parts += ["namespaces", quote(namespace, safe="")]
        parts.append(self.plural)
        parts += [quote(part, safe="") for part in (name, subresource) if part is not None]
        return "/" + "/".join(parts)


FINETUNES = Resource(kind="LoRAFineTune", group=names.GROUP, version="v1alpha1", plural="lorafinetunes")
JOBS = Resource(kind="Job", group="batch", version="v1", plural="jobs")
PODS = Resource(kind="Pod", group="", version="v1", plural="pods")
SERVICES = Resource(kind="Service", group="", version="v1", plural="services")
EVENTS = Resource(kind="Event", group="", version="v1", plural="events")
WORKLOADS = Resource(kind="Workload", group="kueue.x-k8s.io", version="v1beta2", plural="workloads")
"""Kueue's, where it is installed; an older one serves another version (`kueue.Kueue`)."""
LEASES = Resource(kind="Lease", group="coordination.k8s.io", version="v1", plural="leases")
BY_KIND = {resource.kind: resource for resource in (FINETUNES, JOBS, PODS, SERVICES, EVENTS)}


@dataclass(frozen=True, slots=True, kw_only=True)
class Chunk:
    """A part of a list, with the resourceVersion of the whole, and of how many bytes it came."""

    documents: list[Object]
    version: str
    size: int = 0


class _ChunkTooLargeError(Exception):
    """There is more in a chunk than is to be in memory at once."""


class Api:
    """A thin layer over the official client, whose typed objects would cost half as much CPU again."""

    def __init__(self, client: ApiClient, *, sleep: Callable[[float], Awaitable[None]] = asyncio.sleep) -> None:
        self._client = client
        self._sleep = sleep
        self.clock = ServerClock()
        self._read_limits = aiohttp.ClientTimeout(total=REQUEST_TIMEOUT_S, sock_connect=CONNECT_TIMEOUT_S)
        self._write_limits = aiohttp.ClientTimeout(total=WRITE_TIMEOUT_S, sock_connect=CONNECT_TIMEOUT_S)

    async def request(
        self,
        method: str,
        path: str,
        *,
        query: Mapping[str, str] | None = None,
        body: Mapping[str, Any] | None = None,
        content_type: str = "application/json",
    ) -> Object:
        """Send one request, and again where a busy server asks for it: it has done nothing then.

        Raises `ApiError` for an answer that is no success, `UnreachableError` for no answer.
        """
        return _parsed(await self._patiently(lambda: self._send(method, path, query, body, content_type)))

    async def read(self, path: str, query: Mapping[str, str]) -> tuple[Object, int]:
        """A chunk of a list, and of how many bytes it came; errors as of `request`, and `_ChunkTooLargeError`."""
        # However large one object is, it cannot come in smaller parts.
        most = LONGEST_LINE if query["limit"] == "1" else LARGEST_CHUNK
        data = await self._patiently(lambda: self._send("GET", path, query, None, "application/json", most_bytes=most))
        return _parsed(data), len(data)

    async def _patiently(self, send: Callable[[], Awaitable[bytes]]) -> bytes:
        for _ in range(MOST_PAUSES):
            try:
                return await send()
            except ApiError as error:
                is_brief = error.code == 429 and 0 < error.retry_after_s <= LONGEST_PAUSE_S
                if error.is_of_webhook or not is_brief:
                    raise
                await self._sleep(error.retry_after_s)
        return await send()

    async def _send(
        self,
        method: str,
        path: str,
        query: Mapping[str, str] | None,
        body: Mapping[str, Any] | None,
        content_type: str,
        *,
        most_bytes: int | None = None,
    ) -> bytes:
        limits = self._read_limits if method == "GET" else self._write_limits
        try:
            response = await self._open(method, path, query=query, body=body, content_type=content_type, limits=limits)
            data = await (response.read() if most_bytes is None else _limited(response, most_bytes))
        except _BROKEN as error:
            raise _unreachable(method, path, error) from error
        if not 200 <= response.status < 300:
            raise _api_error(response.status, data, response.headers.get("Retry-After"))
        return data

    async def _open(
        self,
        method: str,
        path: str,
        *,
        query: Mapping[str, str] | None,
        limits: aiohttp.ClientTimeout,
        body: Mapping[str, Any] | None = None,
        content_type: str = "application/json",
    ) -> aiohttp.ClientResponse:
        configuration = self._client.configuration
        headers = {
            "Accept": "application/json",
            # The API server would compress each chunk, which costs both sides more than it saves a cluster's network.
            "Accept-Encoding": "identity",
            "Content-Type": content_type,
            "User-Agent": USER_AGENT,
        }
        token = await authorization(configuration)
        if token is not None:
            headers["Authorization"] = token
        url = configuration.host + path + ("?" + urlencode(query) if query else "")
        answer = await self._client.call_api(method, url, headers, body, _request_timeout=limits)
        response: aiohttp.ClientResponse = answer.response
        self.clock.saw(response.headers.get("Date"))
        return response

    async def watch(
        self, resource: Resource, namespace: str | None, query: Mapping[str, str], *, silence_s: float
    ) -> AsyncGenerator[bytes, None]:
        """Yield the lines of a watch until the server ends it; an empty one first, when the server has begun.

        Raises `ApiError` for a refusal; `UnreachableError` where the stream breaks, brings nothing for `silence_s`, or
        a line that is longer than any object can be.
        """
        path = resource.path(namespace)
        limits = aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_TIMEOUT_S, sock_read=silence_s)
        try:
            response = await self._open("GET", path, query={**query, "watch": "true"}, limits=limits)
            async with response:
                if response.status != 200:
                    data = await response.read()
                    raise _api_error(response.status, data, response.headers.get("Retry-After"))
                logger.debug("watching %s", response.url.raw_path_qs)
                yield b""
                async for line in _lines(response.content):
                    yield line
        except _BROKEN as error:
            raise _unreachable("watch", path, error) from error

    async def get(self, resource: Resource, namespace: str, name: str) -> Object:
        """Read one object."""
        return await self.request("GET", resource.path(namespace, name))

    async def create(self, resource: Resource, namespace: str, manifest: Mapping[str, Any]) -> Object:
        """Create an object and return it as it is stored."""
        return await self.request("POST", resource.path(namespace), query=_MANAGER, body=manifest)

    async def merge_patch(self, resource: Resource, namespace: str, name: str, body: Mapping[str, Any]) -> Object:
        """Change some fields of an object and return the whole."""
        path = resource.path(namespace, name)
        return await self.request("PATCH", path, query=_MANAGER, body=body, content_type=MERGE_PATCH)

    async def replace_status(
        self, resource: Resource, namespace: str, name: str, manifest: Mapping[str, Any]
    ) -> Object:
        """Write the whole status; `metadata.resourceVersion` makes it a 409 where someone wrote in between."""
        return await self.request("PUT", resource.path(namespace, name, "status"), query=_MANAGER, body=manifest)

    async def delete(self, resource: Resource, namespace: str, name: str, uid: str) -> None:
        """Delete an object if it has that uid. An object that is gone, or another by the same name, is a success."""
        body = {"preconditions": {"uid": uid}, "propagationPolicy": "Background"}
        try:
            await self.request("DELETE", resource.path(namespace, name), body=body)
        except ApiError as error:
            if error.is_of_webhook or error.code not in (404, 409):
                raise
            # A conflict is another uid, or a change at the same moment, after which the object is still there.
            if error.code == 409 and await self._is_there(resource, namespace, name, uid):
                raise

    async def _is_there(self, resource: Resource, namespace: str, name: str, uid: str) -> bool:
        try:
            return bool((await self.get(resource, namespace, name))["metadata"]["uid"] == uid)
        except ApiError as error:
            if error.code != 404:
                raise
            return False

    async def list_chunks(
        self, resource: Resource, namespace: str | None, query: Mapping[str, str], *, most: int = MOST_IN_CHUNK
    ) -> AsyncGenerator[Chunk, None]:
        """List objects, as many at a time as come to some `CHUNK_BYTES` if they are as large as the last ones.

        There are at most `most` in a chunk, and never more than `LARGEST_CHUNK` bytes of several.
        """
        token, least = "", min(LEAST_IN_CHUNK, most)
        limit = least
        while True:
            page = {**query, "limit": str(limit), **({"continue": token} if token else {})}
            try:
                answer, size = await self.read(resource.path(namespace), page)
            except _ChunkTooLargeError:
                limit, least = max(1, limit // 4), 1
                continue
            metadata = answer.get("metadata") or {}
            documents = answer.pop("items", None) or []
            limit = min(most, max(least, CHUNK_BYTES * len(documents) // max(1, size)))
            yield Chunk(documents=documents, version=str(metadata.get("resourceVersion", "")), size=size)
            token = metadata.get("continue") or ""
            if not token:
                return


def _parsed(data: bytes) -> Object:
    """The answer. Raises `UnreachableError` for one that no API server gives, such as a proxy's page."""
    try:
        document = orjson.loads(data) if data else {}
    except orjson.JSONDecodeError:
        document = None
    if not isinstance(document, dict):
        raise UnreachableError(f"an answer is not a JSON object, so it is not the API server's: {data[:100]!r}")
    return document


async def _limited(response: aiohttp.ClientResponse, most_bytes: int) -> bytes:
    """The body. Raises `_ChunkTooLargeError` for a longer one, and `ValueError` if no object can be as long."""
    parts: list[bytes] = []
    size = 0
    async for data in response.content.iter_any():
        size += len(data)
        if size > most_bytes:
            response.close()
            if most_bytes < LONGEST_LINE:
                raise _ChunkTooLargeError
            raise ValueError(f"an object of more than {most_bytes} bytes")
        parts.append(data)
    return b"".join(parts)


async def _lines(stream: aiohttp.StreamReader) -> AsyncIterator[bytes]:
    """Whole lines; what the server did not end is dropped. Raises `ValueError` for one that is too long."""
    parts: list[bytes] = []
    size = 0
    async for data in stream.iter_any():
        first, *others = data.split(b"\n")
        parts.append(first)
        size += len(first)
        if size > LONGEST_LINE:
            raise ValueError(f"a line of more than {LONGEST_LINE} bytes")
        if others:
            yield b"".join(parts)
            for line in others[:-1]:
                yield line
            parts, size = [others[-1]], len(others[-1])


def _unreachable(method: str, path: str, error: Exception) -> UnreachableError:
    return UnreachableError(f"{method} {path}: {type(error).__name__} {error}".rstrip())


_BROKEN = (aiohttp.ClientError, TimeoutError, OSError, ValueError)
_MANAGER = {"fieldManager": USER_AGENT}


def _api_error(code: int, data: bytes, retry_after: str | None = None) -> ApiError:
    try:
        status = orjson.loads(data)
    except orjson.JSONDecodeError:
        status = {}
    if not isinstance(status, dict):
        status = {}
    text = status.get("message") or data[:300].decode(errors="replace")
    # A server under load names whole seconds; a date, which HTTP allows too, is used by none that we know.
    wait_s = min(int(retry_after), LONGEST_WAIT_S) if retry_after is not None and retry_after.isdecimal() else 0
    return ApiError(code, str(status.get("reason") or "Unknown"), str(text), retry_after_s=wait_s)
