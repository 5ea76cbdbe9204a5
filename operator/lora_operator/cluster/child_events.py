"""Kubernetes Events about the children of resources that wait: where the cluster says why a pod does not come up."""

import asyncio
import logging
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from lora_operator.cluster.api import EVENTS, Api, ApiError, UnreachableError
from lora_operator.cluster.cache import Key
from lora_operator.views.model import EventView, JobView, PodView
from lora_operator.views.names import Role
from lora_operator.views.observe import parse_event
from lora_operator.views.pods import has_ended, newest_first

logger = logging.getLogger(__name__)

MOST_OBJECTS = 2
MOST_EVENTS = 50
LONGEST_INTERVAL_S = 50.0
PATIENCE_S = 3.0


@dataclass(slots=True, kw_only=True)
class _Watched:
    """A resource whose children's Events are read. Times are of the monotonic clock."""

    since_s: float
    uids: tuple[str, ...] = ()
    read_at_s: float | None = None
    events: tuple[EventView, ...] = ()


class ChildEvents:
    """Reads Events for those resources only whose last plan asked for them, and the less often the longer they wait.

    A list of Events costs the API server a walk over all Events of the namespace, and a queue may be long.
    """

    def __init__(self, api: Api, *, interval_s: float, clock: Callable[[], float]) -> None:
        self._api = api
        self._interval_s = interval_s
        self._clock = clock
        self._watched: dict[Key, _Watched] = {}

    def watch(self, key: Key, jobs: Iterable[JobView], pods: Iterable[PodView]) -> float | None:
        """From the next look on, read the Events of those children that Events alone can explain.

        Returns the seconds after which there may be something new to read; None where no Event explains anything, and
        all that the resource waits for is told by a watch: a queue of a thousand pods without a node costs nothing.
        """
        watched = self._watched.setdefault(key, _Watched(since_s=self._clock()))
        uids = tuple(unexplained(jobs, pods))
        if uids != watched.uids:
            watched.uids, watched.read_at_s = uids, None
        return self._pause_s(self._clock() - watched.since_s) if uids else None

    def has_read(self, key: Key) -> bool:
        """Whether the Events of the resource's children were asked for since it began to wait."""
        watched = self._watched.get(key)
        return watched is not None and watched.read_at_s is not None

    def read_anew(self, key: Key) -> None:
        """Let the next look ask for them, however lately that was done."""
        watched = self._watched.get(key)
        if watched is not None:
            watched.read_at_s = None

    def forget(self, key: Key) -> None:
        """The resource waits no more."""
        self._watched.pop(key, None)

    async def latest(self, key: Key) -> tuple[EventView, ...]:
        """The Events, read anew where it is time. Without an answer the old ones stay: they only explain."""
        watched = self._watched.get(key)
        if watched is None:
            return ()
        now = self._clock()
        if watched.read_at_s is None or now - watched.read_at_s >= self._pause_s(now - watched.since_s):
            watched.read_at_s = now
            try:
                async with asyncio.timeout(PATIENCE_S):
                    watched.events = await read_events(self._api, key.namespace, watched.uids)
            except (ApiError, UnreachableError, TimeoutError) as error:
                logger.debug("no Events of the children of %s: %s", key, str(error) or "no answer in time")
        return watched.events

    def _pause_s(self, waited_s: float) -> float:
        # A little less than the interval, so that a look that comes on time is never taken for one that came early.
        soonest_s = 0.9 * self._interval_s
        return max(soonest_s, min(waited_s / 4, LONGEST_INTERVAL_S))


async def read_events(api: Api, namespace: str, uids: Iterable[str]) -> tuple[EventView, ...]:
    """The Events about these objects. Raises `ApiError` or `UnreachableError`."""
    events: list[EventView] = []
    for uid in uids:
        query = {"fieldSelector": f"involvedObject.uid={uid}", "limit": str(MOST_EVENTS)}
        answer = await api.request("GET", EVENTS.path(namespace), query=query)
        events += map(parse_event, answer.get("items") or ())
    return tuple(events)


def unexplained(jobs: Iterable[JobView], pods: Iterable[PodView]) -> list[str]:
    """A Job without a pod, and pods that a node has and does not start; the scheduler writes into the pod itself."""
    living = [pod for pod in newest_first(pods) if not has_ended(pod)]
    if living:
        return [pod.uid for pod in living if pod.node][:MOST_OBJECTS]
    latest = sorted(jobs, key=lambda job: (job.attempt, job.role is Role.TRAIN), reverse=True)
    return [job.uid for job in latest][:1]
