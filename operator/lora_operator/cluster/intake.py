"""What kopf lists and watches, taken into the cache as it arrives.

kopf makes a task for each object of a list, starts none before all lists have come, and reads each event with the
interpreter's own parser before it hands it on by a task and a queue of its own: over thousands of resources with their
Jobs and pods this takes hundreds of MiB and many seconds. Here lists and events go into the cache at once, and kopf is
shown what it needs to go on: that a list is empty, and bookmarks with the version from which on to watch.
"""

from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, cast

import aiohttp
import orjson

from lora_operator.cluster.api import Object, Resource
from lora_operator.cluster.cache import Key, Store
from lora_operator.cluster.carry_out import without_managed_fields


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """A kind that is followed, where it is kept, and whom an event of it wakes."""

    resource: Resource
    store: Store[Any]
    wake: Callable[[Key], None]


@dataclass(slots=True, kw_only=True)
class _Place:
    """Where the lists and events of one URL path go, and the list that is under way there."""

    source: Source
    namespace: str | None
    listed: bool = False
    uids: set[str] = field(default_factory=set)
    news: set[Key] = field(default_factory=set)


class Intake:
    """Takes lists and events, and wakes those LoRAFineTunes that they bring news of.

    Until each list has come once it wakes nobody: what is not known yet would look as if it were not there.
    """

    def __init__(
        self,
        sources: Iterable[Source],
        *,
        namespaces: Iterable[str],
        wake: Callable[[Key], None],
        took: Callable[[], None] = lambda: None,
    ) -> None:
        """`wake` is for the news of lists; `took` is told of each part of a list."""
        scopes: list[str | None] = list(namespaces) or [None]
        self._places = {
            source.resource.path(namespace): _Place(source=source, namespace=namespace)
            for source in sources
            for namespace in scopes
        }
        self._wake = wake
        self._took = took
        self._held: set[Key] = set()

    @property
    def complete(self) -> bool:
        """Whether each list has come once."""
        return all(place.listed for place in self._places.values())

    def follows(self, path: str) -> bool:
        """Whether what comes from this URL path is taken."""
        return path in self._places

    def take_list(self, path: str, query: Mapping[str, str], answer: Object) -> Object:
        """Take in an answer, one chunk of a list; return what is left of it for kopf."""
        place, metadata = self._places[path], answer.get("metadata") or {}
        store = place.source.store
        if "continue" not in query:
            self._tell(place.news)  # the list was cut, and what it brought will be no news again
            place.uids, place.news = set(), set()
        version = str(metadata.get("resourceVersion", ""))
        for document in answer.get("items") or ():
            place.uids.add(str(document["metadata"].get("uid", "")))
            owner = store.put(without_managed_fields(document), as_of=version)
            if owner is not None:
                place.news.add(owner)
        if not metadata.get("continue"):
            place.news |= store.prune(version, place.uids, place.namespace)
            changed, place.news, place.listed = place.news, set(), True
            self._tell(changed)
        self._took()
        return {**answer, "items": []}

    def _tell(self, changed: set[Key]) -> None:
        self._held |= changed
        if self.complete:
            for key in self._held:
                self._wake(key)
            self._held = set()

    def take_events(self, path: str, lines: Iterable[bytes]) -> Iterator[bytes]:
        """Take in events, one in a line; yield what is left of them for kopf, each line with its end."""
        version = ""
        for line in lines:
            taken = self._take_event(path, line)
            if taken is not None:
                version = taken
                continue
            if version:
                yield _bookmark(version)
                version = ""
            yield line + b"\n"
        if version:
            yield _bookmark(version)

    def _take_event(self, path: str, line: bytes) -> str | None:
        """The version of the object, or None where the line is for kopf: a bookmark, an error, or nonsense."""
        try:
            event = orjson.loads(line)
        except orjson.JSONDecodeError:
            return None
        if not isinstance(event, dict) or event.get("type") not in ("ADDED", "MODIFIED", "DELETED"):
            return None
        source, document = self._places[path].source, without_managed_fields(event["object"])
        owner = source.store.remove(document) if event["type"] == "DELETED" else source.store.put(document)
        if owner is not None:
            source.wake(owner)
        return str(document["metadata"].get("resourceVersion", ""))

    def response_class(self, base: type[aiohttp.ClientResponse]) -> type[aiohttp.ClientResponse]:
        """A response that gives lists and events to this intake."""

        async def start(response: aiohttp.ClientResponse, connection: Any) -> aiohttp.ClientResponse:
            await base.start(response, connection)
            if self._is_ours(response) and "watch" in response.url.query:
                taken = _TakenStream(response.content, lambda lines: self.take_events(response.url.path, lines))
                response.content = cast("aiohttp.StreamReader", taken)
            return response

        async def json(response: aiohttp.ClientResponse, **options: Any) -> Any:
            if self._is_ours(response) and "watch" not in response.url.query:
                return self.take_list(response.url.path, response.url.query, orjson.loads(await response.read()))
            return await base.json(response, **options)

        return type("IntakeResponse", (base,), {"start": start, "json": json})

    def _is_ours(self, response: aiohttp.ClientResponse) -> bool:
        return response.status == 200 and response.method == "GET" and self.follows(response.url.path)


class _TakenStream:
    """A stream of which whole lines are taken, and what is left of them is passed on; all else is the stream's own."""

    def __init__(self, stream: aiohttp.StreamReader, take: Callable[[list[bytes]], Iterator[bytes]]) -> None:
        self._stream = stream
        self._take = take

    async def iter_chunked(self, size: int) -> AsyncIterator[bytes]:
        rest: list[bytes] = []
        async for chunk in self._stream.iter_chunked(size):
            *lines, last = chunk.split(b"\n")
            if lines:
                lines[0] = b"".join((*rest, lines[0]))
                rest = []
                for left in self._take([line for line in lines if line]):
                    yield left
            rest.append(last)
        if any(rest):
            yield b"".join(rest)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def _bookmark(version: str) -> bytes:
    return orjson.dumps({"type": "BOOKMARK", "object": {"metadata": {"resourceVersion": version}}}) + b"\n"
