"""Kubernetes Events about the children of resources that wait: where the cluster says why a pod does not come up."""

import asyncio
import contextlib
import logging
from collections.abc import AsyncGenerator, Callable, Iterable
from dataclasses import dataclass, field
from datetime import UTC, datetime

from lora_operator.cluster.api import EVENTS, JOBS, Api, ApiError, Chunk, UnreachableError
from lora_operator.cluster.fair_slots import FairSlots
from lora_operator.cluster.store import Key
from lora_operator.views.jobs import FAILED_CREATE
from lora_operator.views.model import EventView, JobView, PodView
from lora_operator.views.observe import parse_event
from lora_operator.views.pods import has_ended, is_running, leader_first

logger = logging.getLogger(__name__)

MOST_OBJECTS = 2
MOST_EVENTS = 50
MOST_REFUSALS = 5000
# Whoever may create Events may make each as large as etcd takes it, and any number of them.
EVENTS_IN_CHUNK = 5
MOST_EVENT_BYTES = 2**20
MOST_REFUSAL_BYTES = 8 * 2**20
MOST_READS = 4
LONGEST_INTERVAL_S = 50.0
PATIENCE_S = 3.0
# A turn holds a worker, of which there are few: it waits for a read that has begun, and hardly for one that has not.
IN_LINE_S = 0.25
_SOON_S = 0.1
_LONG_AGO = datetime.fromtimestamp(0, UTC)


@dataclass(slots=True, kw_only=True)
class _Watched:
    """A resource whose children's Events are read: of a Job, or of pods. Times are monotonic."""

    since_s: float
    due_s: float = 0.0
    uids: tuple[str, ...] = ()
    of_job: bool = False
    is_read: bool = False
    events: tuple[EventView, ...] = ()
    place: asyncio.Task[None] | None = None
    has_begun: bool = False


@dataclass(slots=True, kw_only=True)
class _Refusals:
    """What Jobs of a namespace were answered last when they wanted pods, by the Job's uid, as of `read_at_s`."""

    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    read_at_s: float | None = None
    by_job: dict[str, tuple[EventView, ...]] = field(default_factory=dict)


class ChildEvents:
    """Reads Events for those resources only whose last plan asked for them, and the less often the longer they wait.

    A list of Events costs the API server a walk over all Events of the namespace, and a queue may be long. So nothing
    is read of what has just been made, which mostly comes up by itself; and Jobs without a pod, of which a quota may
    hold up a thousand, share one list for each namespace. A namespace's lists are read one after the other: what its
    users may have put into them is in memory only once. Whoever has to wait for that keeps the place in the line while
    the turn goes on without, and is woken once the Events are there: one namespace's line holds no workers.
    """

    def __init__(
        self,
        api: Api,
        *,
        interval_s: float,
        clock: Callable[[], float],
        wake: Callable[[Key], None] = lambda _: None,
    ) -> None:
        self._api = api
        self._interval_s = interval_s
        self._clock = clock
        self._wake = wake
        self._watched: dict[Key, _Watched] = {}
        self._refusals: dict[str, _Refusals] = {}
        self._slots = FairSlots(most=MOST_READS, most_of_namespace=1)

    def watch(self, key: Key, jobs: Iterable[JobView], pods: Iterable[PodView]) -> float | None:
        """From now on, read the Events of those children that Events alone can explain.

        Returns the seconds after which there is something to read; None where no Event explains anything, and all that
        the resource waits for comes by a watch: a queue of a thousand pods without a node costs nothing.
        """
        now, jobs = self._clock(), tuple(jobs)
        watched = self._watched.setdefault(key, _Watched(since_s=now))
        uids = tuple(unexplained(jobs, pods))
        if uids != watched.uids:
            _leave(watched)
            watched.uids, watched.of_job = uids, not {job.uid for job in jobs}.isdisjoint(uids)
            watched.due_s, watched.is_read = now + self._pause_s(0), False
        return max(watched.due_s - now, _SOON_S) if uids else None

    def has_read(self, key: Key) -> bool:
        """Whether the Events of the resource's children were asked for since it began to wait."""
        watched = self._watched.get(key)
        return watched is not None and watched.is_read

    def is_in_line(self, key: Key) -> bool:
        """Whether a read was due that has not come to its end; the resource is woken then."""
        watched = self._watched.get(key)
        return watched is not None and watched.place is not None

    def read_anew(self, key: Key) -> None:
        """Let the next look ask for them, however lately that was done."""
        watched = self._watched.get(key)
        if watched is not None:
            watched.due_s = self._clock()

    def forget(self, key: Key) -> None:
        """The resource waits no more; the answers to its namespace's Jobs go with the last one that waits there."""
        watched = self._watched.pop(key, None)
        if watched is not None:
            _leave(watched)
        if watched is not None and all(other.namespace != key.namespace for other in self._watched):
            self._refusals.pop(key.namespace, None)

    async def latest(self, key: Key) -> tuple[EventView, ...]:
        """The Events, read anew where it is time. Without an answer the old ones stay: they only explain."""
        watched = self._watched.get(key)
        if watched is None:
            return ()
        if watched.uids and watched.place is None and self._clock() >= watched.due_s:
            watched.has_begun = False
            watched.place = place = asyncio.create_task(self._read_in_line(key, watched))
            await asyncio.wait({place}, timeout=IN_LINE_S)
            if watched.has_begun:
                await asyncio.wait({place}, timeout=PATIENCE_S)
            if not place.done():
                place.add_done_callback(lambda done: None if done.cancelled() else self._wake(key))
        return watched.events

    async def _read_in_line(self, key: Key, watched: _Watched) -> None:
        """Read once it is the resource's turn."""
        try:
            watched.events = await self._read(key.namespace, watched)
        except (ApiError, UnreachableError, TimeoutError) as error:
            logger.debug("no Events of the children of %s: %s", key, str(error) or "no answer in time")
        except Exception:
            logger.exception("unexpected; no Events of the children of %s", key)
        now = self._clock()
        watched.is_read, watched.due_s, watched.place = True, now + self._pause_s(now - watched.since_s), None

    async def _read(self, namespace: str, watched: _Watched) -> tuple[EventView, ...]:
        if not watched.of_job:
            async with self._slots.slot(namespace), asyncio.timeout(PATIENCE_S):
                watched.has_begun = True
                return await read_events(self._api, namespace, watched.uids)
        refusals = await self._latest_refusals(namespace, watched)
        return tuple(event for uid in watched.uids for event in refusals.get(uid, ()))

    async def _latest_refusals(self, namespace: str, watched: _Watched) -> dict[str, tuple[EventView, ...]]:
        """Of a list that is at most half an interval old. Raises `ApiError` or `UnreachableError`."""
        known = self._refusals.setdefault(namespace, _Refusals())
        async with known.lock:
            now = self._clock()
            if known.read_at_s is None or now - known.read_at_s >= self._interval_s / 2:
                async with self._slots.slot(namespace), asyncio.timeout(PATIENCE_S):
                    watched.has_begun = True
                    known.by_job = await _list_refusals(self._api, namespace)
                known.read_at_s = now
            return known.by_job

    def _pause_s(self, waited_s: float) -> float:
        # A little less than the interval, so that a look that comes on time is never taken for one that came early.
        soonest_s = 0.9 * self._interval_s
        return max(soonest_s, min(waited_s / 4, LONGEST_INTERVAL_S))


def _leave(watched: _Watched) -> None:
    """What was to be read is wanted no more."""
    if watched.place is not None:
        watched.place.cancel()
        watched.place = None


async def _list_refusals(api: Api, namespace: str) -> dict[str, tuple[EventView, ...]]:
    """The latest by the Job's uid; of a namespace that is full of them, some."""
    found: dict[str, tuple[EventView, ...]] = {}
    query = {"fieldSelector": f"involvedObject.kind={JOBS.kind},reason={FAILED_CREATE}"}
    chunks = api.list_chunks(EVENTS, namespace, query)
    async for event in _bounded(chunks, most=MOST_REFUSALS, most_bytes=MOST_REFUSAL_BYTES):
        known = found.get(event.about_uid)
        if known is None or (known[0].last_seen or _LONG_AGO) <= (event.last_seen or _LONG_AGO):
            found[event.about_uid] = (event,)
    return found


async def read_events(api: Api, namespace: str, uids: Iterable[str]) -> tuple[EventView, ...]:
    """The Events about these objects, or some of them. Raises `ApiError` or `UnreachableError`."""
    events: list[EventView] = []
    for uid in uids:
        chunks = api.list_chunks(
            EVENTS, namespace, {"fieldSelector": f"involvedObject.uid={uid}"}, most=EVENTS_IN_CHUNK
        )
        events += [event async for event in _bounded(chunks, most=MOST_EVENTS, most_bytes=MOST_EVENT_BYTES)]
    return tuple(events)


async def _bounded(
    chunks: AsyncGenerator[Chunk, None], *, most: int, most_bytes: int
) -> AsyncGenerator[EventView, None]:
    """What the chunks hold, up to the one that makes it so many Events or bytes."""
    count = size = 0
    async with contextlib.aclosing(chunks):
        async for chunk in chunks:
            for event in map(parse_event, chunk.documents):
                yield event
            count, size = count + len(chunk.documents), size + chunk.size
            if count >= most or size >= most_bytes:
                return


def unexplained(jobs: Iterable[JobView], pods: Iterable[PodView]) -> list[str]:
    """Pods that a node has and does not start, that of node 0 first, or a Job none of whose pods waits: it may be
    refused another. What the scheduler says is in the pod itself."""
    waiting = [pod for pod in leader_first(pods) if not has_ended(pod) and not is_running(pod)]
    if waiting:
        return [pod.uid for pod in waiting if pod.node][:MOST_OBJECTS]
    latest = sorted(jobs, key=lambda job: (job.attempt, job.created_at), reverse=True)
    return [job.uid for job in latest][:1]
