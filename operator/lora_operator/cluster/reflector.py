"""Keeps a store as the API server has it: lists, watches from there, and begins anew where either fails.

It does what client-go's Reflector does, on the operator's own client; and it knows when it was last heard, and whether
what it hears is of the past. A list that names no version is as of a moment after its request, never of one before what
was seen by then. One that is comes from an API server that is behind, for a while; or etcd was restored from a backup,
and never catches up.
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
from lora_operator.cluster.cache import Key, Store, is_older
from lora_operator.cluster.listing import list_into

logger = logging.getLogger(__name__)

# The API server ends a watch after so long, with a bookmark shortly before.
WATCH_TIMEOUT_S = 600
# So often in a row the API server may refuse with what is no passing trouble, such as a right that is missing.
MOST_REFUSALS = 5
# Of the time after which a watch is taken for deaf, so much is spent on asking for the watch alone while the API server
# refuses it; then a list tells what is there.
UNSEEN_SHARE = 0.3
# And so much on a watch that is granted and brings nothing, as behind a proxy that keeps its bytes: then another such
# watch still leaves time for a list.
DEAF_SHARE = 0.45
_SURELY_MISSED = 2
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


class Reflector:
    """Follows one kind of objects, in one namespace or in all."""

    def __init__(
        self,
        api: Api,
        source: Source,
        namespace: str | None,
        *,
        silence_s: float,
        stale_s: float,
        random: Callable[[], float],
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        """A watch that brings nothing for `silence_s` is restarted; after `stale_s` of it the process is ended."""
        self._api = api
        self._source = source
        self._namespace = namespace
        self._silence_s = silence_s
        self._stale_s = stale_s
        self._random = random
        self._clock = clock
        self._sleep = sleep
        self._query: Mapping[str, str] = {"labelSelector": source.selector} if source.selector else {}
        self._failures = 0
        self._refusals = 0
        self._overloads = 0
        self._began_s = clock()
        self._heard_s: float | None = None
        self._brought_s: float | None = None
        # How many lists in a row brought what a silent watch had not, and whether the last one brought nothing.
        self._missed, self._quiet = 0, False
        self._refused_s: float | None = None  # since when the watch has been refused by a server in trouble
        self._behind_s: tuple[float, float] | None = None  # when a list was first behind, and when last
        self.path = source.resource.path(namespace)
        self.plural = source.resource.plural
        self.listed = asyncio.Event()
        """Set with the first whole list."""

    @property
    def silent_for_s(self) -> float:
        """Seconds since the last list, event or bookmark or, before the first one, since the beginning.

        That a watch was granted counts where a list has shown that there was nothing to bring.
        """
        return self._clock() - (self._began_s if self._heard_s is None else self._heard_s)

    @property
    def quiet_for_s(self) -> float | None:
        """Seconds since a watch last brought an event or a bookmark, or since it was known that there was nothing to
        bring; None before the first."""
        if self._quiet:
            return self.silent_for_s
        return None if self._brought_s is None else self._clock() - self._brought_s

    @property
    def behind_for_s(self) -> float | None:
        """For how many seconds each list has been of a time before what was seen; None where the last one was not."""
        return None if self._behind_s is None else self._behind_s[1] - self._behind_s[0]

    async def run(self) -> None:
        """Follow, forever. Raises `ApiError` where the API server refuses again and again."""
        while True:
            version = await self._fill()
            try:
                while True:
                    version = await self._patiently_watch(version)
            except (ApiError, RelistError) as error:
                logger.info("%s is listed again: %s", self.path, error)
                await self._back_off(error)

    async def _fill(self) -> str:
        """List until that works; return the version of the list."""
        while True:
            try:
                return await self.list()
            except (ApiError, UnreachableError) as error:
                logger.info("%s cannot be listed yet: %s", self.path, error)
                await self._back_off(error)

    async def list(self) -> str:
        """Make the store what a list says, and return its version; the watch may go on meanwhile.

        Raises `ApiError` or `UnreachableError`.
        """
        source, news, seen = self._source, set[Key](), self._source.store.version
        try:
            version = await list_into(
                source.store,
                self._api,
                source.resource,
                namespace=self._namespace,
                query=self._query,
                news=news,
                heard=self._heard,
            )
        finally:
            # To the next list, and to the watch, what a list brought that failed half-way is no news any more.
            for owner in news:
                source.wake(owner)
        self._refused_s = None
        self._compare(seen, version)
        self._judge_silence(news=bool(news))
        self.listed.set()
        return version

    def _judge_silence(self, *, news: bool) -> None:
        """Whether a watch that brings nothing is deaf, as a list shows.

        An API server sends a bookmark a minute only where the version has moved on since the watch began: that of a
        kind which nobody writes does so with etcd's notices of progress, every ten minutes by default. One list that
        brings something may have overtaken its event; two do not.
        """
        last_s = self._began_s if self._brought_s is None else self._brought_s
        if self._heard_s is not None and self._heard_s - last_s > DEAF_SHARE * self._stale_s:
            self._missed += news
            self._quiet = not news and self._missed < _SURELY_MISSED

    def _compare(self, seen: str, version: str) -> None:
        if not is_older(version, seen):
            self._behind_s = None
            return
        now_s = self._clock()
        if self._behind_s is None:
            logger.warning("the list of %s is as of version %s, and %s was seen before", self.path, version, seen)
        self._behind_s = (self._behind_s[0] if self._behind_s else now_s, now_s)

    def _heard(self) -> None:
        self._heard_s = self._clock()

    async def _patiently_watch(self, version: str) -> str:
        """A watch, and again from the same version where the API server is in trouble, which a list would add to."""
        while True:
            try:
                return await self._watch(version)
            except ApiError as error:
                if not error.is_passing or self._refused_for_s() > UNSEEN_SHARE * self._stale_s:
                    raise
                logger.info("%s is watched again from %s: %s", self.path, version, error)
                await self._back_off(error)

    def _refused_for_s(self) -> float:
        """Seconds since the first refusal in a row. A quiet watch may have been silent for long before that."""
        now_s = self._clock()
        if self._refused_s is None:
            self._refused_s = now_s
        return now_s - self._refused_s

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
        before, granted = version, False
        lines = self._api.watch(self._source.resource, self._namespace, query, silence_s=self._silence_s)
        try:
            async with contextlib.aclosing(lines):
                async for line in lines:
                    self._refusals, granted = 0, True
                    if line:
                        self._heard()
                        version = self._take(line)
                        self._brought_s, self._missed, self._quiet = self._heard_s, 0, False
                        self._forget_overload()
        except UnreachableError as error:
            logger.debug("the watch of %s broke and continues from %s: %s", self.path, version, error)
        except ApiError as error:
            if version == before:
                raise
            logger.info("the watch of %s was ended and continues from %s: %s", self.path, version, error)
            await self._back_off(error)
            return version
        if granted:
            self._forget_overload()
            if self._quiet:
                self._heard()
            elif self.silent_for_s > DEAF_SHARE * self._stale_s:
                raise RelistError(f"its watch has brought neither event nor bookmark for {self.silent_for_s:.0f} s")
        if version == before:
            await self._back_off()  # a stream that brings nothing is not to be asked for at once again
        else:
            self._failures = 0
        return version

    def _forget_overload(self) -> None:
        """The API server is out of trouble: not yet where all that a granted watch brings is a refusal."""
        self._overloads = 0
        self._refused_s = None

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

    async def _back_off(self, error: Exception | None = None) -> None:
        """Wait, the longer the more often in a row, and as long as the API server asks for.

        At most for half of what is left until the process would be ended, which would have it list all anew.
        Raises a refusal that has come too often.
        """
        if isinstance(error, ApiError) and error.is_passing:
            is_busy = error.code == _TOO_MANY or error.retry_after_s > 0
            longest_s = _LONGEST_BUSY_S if is_busy else _LONGEST_FAILING_S
            delay_s = max(error.retry_after_s, self._jittered_s(self._overloads, longest_s))
            self._overloads = min(self._overloads + 1, 10)
            left_s = self._stale_s - self.silent_for_s
            await self._sleep(min(delay_s, max(left_s / 2, _LONGEST_S)))
            return
        if isinstance(error, ApiError) and error.code != _GONE:
            self._refusals += 1
            if self._refusals > MOST_REFUSALS:
                raise error
        delay_s = self._jittered_s(self._failures, _LONGEST_S)
        self._failures = min(self._failures + 1, 10)
        await self._sleep(delay_s)

    def _jittered_s(self, times: int, longest_s: float) -> float:
        return min(_BASE_S * 2.0**times, longest_s) * (0.5 + self._random())


def _read(line: bytes) -> tuple[str, Mapping[str, Any], str]:
    """Type, object and version of an event.

    Raises `RelistError` for one that is an error or makes no sense, `ApiError` where the API server has too much to do
    or is in trouble: the version may still be good then, and a list would add to it.
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
