"""Hearing the watches: each answer, event and bookmark is a sign of life, and silence for too long is not."""

from collections.abc import Callable, Iterable
from types import SimpleNamespace

import aiohttp

from lora_operator.cluster.api import FINETUNES, JOBS, PODS, Resource
from lora_operator.running.metrics import Metrics

WATCHED = (FINETUNES, JOBS, PODS)


class WatchLiveness:
    """When each watch was last heard. A watch is named by the URL path of what it watches."""

    def __init__(
        self, namespaces: Iterable[str], *, clock: Callable[[], float], wall_clock: Callable[[], float]
    ) -> None:
        self._clock = clock
        self._wall_clock = wall_clock
        self._everywhere: list[str | None] = list(namespaces) or [None]
        self._places = self._everywhere
        self._resources: dict[str, str] = {}
        for resource in WATCHED:
            self.expect(resource)
        self._heard: dict[str, tuple[float, float]] = {}
        self._began_s = clock()

    def leave_out(self, namespaces: Iterable[str]) -> None:
        """Of all namespaces these are not watched."""
        left = set(namespaces)
        self._places = [place for place in self._everywhere if place not in left]
        self._resources = {}
        for resource in WATCHED:
            self.expect(resource)

    def expect(self, resource: Resource) -> None:
        """Another kind is watched."""
        self._resources |= {resource.path(place): resource.plural for place in self._places}

    def begin(self) -> None:
        """The watches begin now: what went before, such as the wait for the definition, was no silence of theirs."""
        self._began_s = self._clock()

    def heard(self, path: str) -> None:
        """A watch gave a sign of life."""
        if path in self._resources:
            self._heard[path] = (self._clock(), self._wall_clock())

    @property
    def paths(self) -> set[str]:
        """Of each watch the URL path of what it watches."""
        return set(self._resources)

    @property
    def all_heard(self) -> bool:
        """Whether every watch has been heard at least once."""
        return len(self._heard) == len(self._resources)

    def silent_for_s(self) -> tuple[float, str]:
        """Seconds of silence of the watch that has been silent longest, and its path."""
        now = self._clock()
        silences = ((now - self._heard.get(path, (self._began_s, 0.0))[0], path) for path in self._resources)
        return max(silences)

    def last_heard(self) -> list[tuple[str, float]]:
        """For each resource the wall clock's time when its most silent watch was last heard; 0 for never."""
        oldest: dict[str, float] = {}
        for path, resource in self._resources.items():
            timestamp_s = self._heard.get(path, (0.0, 0.0))[1]
            oldest[resource] = min(oldest.get(resource, timestamp_s), timestamp_s)
        return list(oldest.items())


def count_requests(metrics: Metrics) -> aiohttp.TraceConfig:
    """Counts every request of a session."""

    async def answered(_: aiohttp.ClientSession, __: SimpleNamespace, end: aiohttp.TraceRequestEndParams) -> None:
        metrics.requests.labels(_verb(end.method, end.url.query_string), str(end.response.status)).inc()

    async def unanswered(
        _: aiohttp.ClientSession, __: SimpleNamespace, end: aiohttp.TraceRequestExceptionParams
    ) -> None:
        metrics.requests.labels(_verb(end.method, end.url.query_string), "error").inc()

    trace = aiohttp.TraceConfig()
    trace.on_request_end.append(answered)
    trace.on_request_exception.append(unanswered)
    return trace


def _verb(method: str, query: str) -> str:
    if "watch=true" in query:
        return "watch"
    return {"POST": "create", "PUT": "update", "PATCH": "patch", "DELETE": "delete"}.get(method.upper(), "get")
