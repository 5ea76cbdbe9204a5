"""Keeps a store as the API server has it: a watch brings news, and a list beside it every few minutes heals.

It does what client-go's Reflector does, on the operator's own client. What a watch loses, since a proxy keeps its bytes
or an object was deleted while the API server was away, the next list shows.
"""

import asyncio
import contextlib
import logging
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any

import orjson

from lora_operator.cluster.api import Api, ApiError, Resource, UnreachableError
from lora_operator.cluster.store import Key, Store

logger = logging.getLogger(__name__)

# The API server ends a watch after so long, with a bookmark shortly before.
WATCH_TIMEOUT_S = 600
# So often in a row the API server may refuse with what is no passing trouble, such as a right that is missing.
MOST_REFUSALS = 5
_GONE, _TOO_MANY = 410, 429
_BASE_S = 0.5
# A request that nobody answers costs nothing. A server that fails comes back at any moment; one that says that it has
# too much to do is given time.
_LONGEST_S, _LONGEST_FAILING_S, _LONGEST_BUSY_S = 2.0, 3.5, 30.0


class RelistError(Exception):
    """The watch cannot go on from where it is: only a list says what is there."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """What is followed, where it is kept, whom its news wakes, and the labels that select it; empty for all of it."""

    resource: Resource
    store: Store[Any]
    wake: Callable[[Key], None]
    selector: str = ""


class Lister:
    """Lists one kind of objects, in one namespace or in all: at the start, and every `list_interval_s`, jittered."""

    def __init__(
        self,
        api: Api,
        source: Source,
        namespace: str | None,
        *,
        list_interval_s: float,
        random: Callable[[], float],
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._api = api
        self._source = source
        self._namespace = namespace
        self._list_interval_s = list_interval_s
        self._random = random
        self._clock = clock
        self._sleep = sleep
        self._query: Mapping[str, str] = {"labelSelector": source.selector} if source.selector else {}
        self._failures = 0
        self._refusals = 0
        self.path = source.resource.path(namespace)
        self.plural = source.resource.plural
        self.heard_s: float | None = None
        """When a list, an event or a bookmark last came, by the clock; None before the first."""
        self.listed = asyncio.Event()
        """Set with the first whole list."""

    async def heal(self) -> None:
        """List beside the watch, forever. Where a list fails, the next one heals."""
        while True:
            await self._sleep(self._list_interval_s * (0.8 + 0.4 * self._random()))
            try:
                await self.list()
            except (ApiError, UnreachableError) as error:
                logger.warning("%s cannot be listed, and is again in some minutes: %s", self.path, error)

    async def list(self) -> str:
        """Make the store what a list says, and return its version; the watch may go on meanwhile.

        Raises `ApiError` or `UnreachableError`.
        """
        source, news, version = self._source, set[Key](), ""
        try:
            with source.store.listing(self._namespace) as listing:
                async for chunk in self._api.list_chunks(source.resource, self._namespace, self._query):
                    self.heard_s, version = self._clock(), chunk.version
                    news |= listing.put(chunk.documents, version)
                news |= listing.finish(version)
        finally:
            # To the next list, and to the watch, what a list brought that failed half-way is no news any more.
            self._wake(news)
        self.listed.set()
        return version

    def _wake(self, news: set[Key]) -> None:
        for owner in news:
            self._source.wake(owner)

    async def _back_off(self, error: Exception | None = None) -> None:
        """Wait, the longer the more often in a row, and as long as the API server asks for.

        Raises a refusal that has come too often.
        """
        asked_s, longest_s = 0.0, _LONGEST_S
        if isinstance(error, ApiError) and error.is_passing:
            asked_s = error.retry_after_s
            longest_s = _LONGEST_BUSY_S if error.code == _TOO_MANY or asked_s else _LONGEST_FAILING_S
        elif isinstance(error, ApiError) and error.code != _GONE:
            self._refusals += 1
            if self._refusals > MOST_REFUSALS:
                raise error
        delay_s = min(_BASE_S * 2.0**self._failures, longest_s) * (0.5 + self._random())
        self._failures = min(self._failures + 1, 10)
        await self._sleep(max(asked_s, delay_s))


class Reflector(Lister):
    """Follows one kind of objects: it watches from its lists on, and begins anew where that fails."""

    def __init__(
        self,
        api: Api,
        source: Source,
        namespace: str | None,
        *,
        silence_s: float,
        list_interval_s: float,
        random: Callable[[], float],
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        """A watch that brings nothing for `silence_s` is restarted."""
        super().__init__(
            api, source, namespace, list_interval_s=list_interval_s, random=random, clock=clock, sleep=sleep
        )
        self._silence_s = silence_s

    async def watch(self) -> None:
        """Follow, forever. Raises `ApiError` where the API server refuses again and again."""
        while True:
            try:
                version = await self.list()
                while True:
                    version = await self._watch(version)
            except (ApiError, UnreachableError, RelistError) as error:
                logger.info("%s is listed again: %s", self.path, error)
                await self._back_off(error)

    async def _watch(self, version: str) -> str:
        """Take in events until the stream ends; return the version from which to watch on.

        Raises `ApiError` for a refusal, `RelistError` where the API server or the stream makes no sense any more.
        """
        query = {
            **self._query,
            "resourceVersion": version,
            "allowWatchBookmarks": "true",
            "timeoutSeconds": str(WATCH_TIMEOUT_S),
        }
        before = version
        lines = self._api.watch(self._source.resource, self._namespace, query, silence_s=self._silence_s)
        try:
            async with contextlib.aclosing(lines):
                async for line in lines:
                    self._refusals = 0
                    if line:
                        version = self._take(line)
                        self.heard_s = self._clock()
        except UnreachableError as error:
            logger.debug("the watch of %s broke and continues from %s: %s", self.path, version, error)
        except ApiError as error:
            if not error.is_passing:
                raise
            # The version may still be good, and a list would add to the server's trouble.
            logger.info("%s is watched again from %s: %s", self.path, version, error)
            await self._back_off(error)
            return version
        if version == before:
            await self._back_off()  # a stream that brings nothing is not to be asked for at once again
        else:
            self._failures = 0
        return version

    def _take(self, line: bytes) -> str:
        """Take in one event; return its version."""
        kind, document, version = _read(line)
        source, owner = self._source, None
        if kind == "BOOKMARK":
            source.store.saw(version)
        elif kind == "DELETED":
            owner = source.store.remove(document)
        else:
            owner = source.store.put(document)
        if owner is not None:
            source.wake(owner)
        return version


def _read(line: bytes) -> tuple[str, Mapping[str, Any], str]:
    """Type, object and version of an event.

    Raises `RelistError` for one that is an error or makes no sense, `ApiError` where the API server has too much to do
    or is in trouble.
    """
    try:
        event = orjson.loads(line)
        kind, document = str(event["type"]), event["object"]
        if kind == "ERROR":
            code, reason, message = document.get("code"), str(document.get("reason")), str(document.get("message"))
            if isinstance(code, int) and (code == _TOO_MANY or code >= 500):
                raise ApiError(code, reason, message)
            raise RelistError(f"{code} {reason}: {message}")
        metadata = document["metadata"]
        if kind != "BOOKMARK":
            metadata["name"], metadata["uid"]
        return kind, document, str(metadata["resourceVersion"])
    except (orjson.JSONDecodeError, AttributeError, KeyError, TypeError) as error:
        raise RelistError(f"an event makes no sense: {type(error).__name__} {error}") from error
