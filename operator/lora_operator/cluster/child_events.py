"""Kubernetes Events about the children of resources that wait: where the cluster says why a pod does not come up."""

import asyncio
import contextlib
import logging
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass, field
from datetime import UTC, datetime

from lora_operator.cluster.api import EVENTS, Api, ApiError, UnreachableError
from lora_operator.cluster.store import Key
from lora_operator.model.objects import EventView, JobView, PodView
from lora_operator.model.observe import parse_event
from lora_operator.model.pods import has_ended, is_running, leader_first

logger = logging.getLogger(__name__)

MOST_OBJECTS = 2
# Whoever may create Events may make each as large as etcd takes it, any number of them, and each with a reason of its
# own.
MOST_EVENTS = 5000
MOST_BYTES = 8 * 2**20
MOST_REASONS = 20
MOST_READS = 4
PATIENCE_S = 10.0
_LONG_AGO = datetime.fromtimestamp(0, UTC)

Found = dict[str, tuple[EventView, ...]]
"""Events by the uid of the object that they are about."""


@dataclass(slots=True, kw_only=True)
class _Waiting:
    """A resource that waits for something that the Events of these objects may explain. `due_s` is of the loop."""

    uids: tuple[str, ...]
    due_s: float
    is_read: bool = False
    events: tuple[EventView, ...] = ()


@dataclass(slots=True, kw_only=True)
class _Namespace:
    """All that wait in a namespace, and the task that reads for them."""

    waiting: dict[Key, _Waiting] = field(default_factory=dict)
    task: asyncio.Task[None] | None = None


class ChildEvents:
    """Reads the Events of each namespace in which a resource waits for what only they can explain, in one list for all.

    A list costs the API server a walk over all Events of the namespace, and a queue may be long. So there is none
    sooner than every `interval_s`, nor for what has just been made, which mostly comes up by itself. No turn waits for
    one: a resource is woken where its Events have changed.
    """

    def __init__(self, api: Api, *, interval_s: float, wake: Callable[[Key], None]) -> None:
        self._api = api
        self._interval_s = interval_s
        self._wake = wake
        self._namespaces: dict[str, _Namespace] = {}
        self._reads = asyncio.Semaphore(MOST_READS)

    def watch(self, key: Key, jobs: Iterable[JobView], pods: Iterable[PodView]) -> bool:
        """From now on, read the Events of those children that Events alone can explain; whether there are such.

        Of others all comes by a watch: a queue of a thousand pods without a node costs nothing.
        """
        uids = tuple(unexplained(jobs, pods))
        known = self._known(key)
        if known is not None and known.uids == uids:
            return True
        self.forget(key)
        if uids:
            namespace = self._namespaces.setdefault(key.namespace, _Namespace())
            due_s = asyncio.get_running_loop().time() + self._interval_s
            namespace.waiting[key] = _Waiting(uids=uids, due_s=due_s)
            namespace.task = namespace.task or asyncio.create_task(self._follow(key.namespace, namespace))
        return bool(uids)

    def latest(self, key: Key) -> tuple[EventView, ...]:
        """The Events as they were read last. Where that failed the old ones stay: they only explain."""
        known = self._known(key)
        return known.events if known is not None else ()

    def has_read(self, key: Key) -> bool:
        """Whether the Events of the resource's children were asked for since it began to wait."""
        known = self._known(key)
        return known is not None and known.is_read

    def forget(self, key: Key) -> None:
        """The resource waits no more; what is known of its namespace goes with the last one that waits there."""
        namespace = self._namespaces.get(key.namespace)
        if namespace is None:
            return
        namespace.waiting.pop(key, None)
        if not namespace.waiting:
            self._drop(key.namespace)

    async def close(self) -> None:
        """Read no more."""
        for name in tuple(self._namespaces):
            self._drop(name)

    def _known(self, key: Key) -> _Waiting | None:
        namespace = self._namespaces.get(key.namespace)
        return namespace.waiting.get(key) if namespace is not None else None

    def _drop(self, name: str) -> None:
        task = self._namespaces.pop(name).task
        if task is not None:
            task.cancel()

    async def _follow(self, name: str, namespace: _Namespace) -> None:
        """Read whenever somebody is due. After a list all are due together, and whoever comes later is so later."""
        clock = asyncio.get_running_loop().time
        while True:
            due_s = min(waiting.due_s for waiting in namespace.waiting.values())
            if due_s > clock():
                await asyncio.sleep(due_s - clock())
                continue
            asked = dict(namespace.waiting)
            found = await self._read(name, {uid for waiting in asked.values() for uid in waiting.uids})
            for key, waiting in asked.items():
                before = waiting.is_read, waiting.events
                waiting.is_read, waiting.due_s = True, clock() + self._interval_s
                if found is not None:
                    waiting.events = tuple(event for uid in waiting.uids for event in found.get(uid, ()))
                if (waiting.is_read, waiting.events) != before and namespace.waiting.get(key) is waiting:
                    self._wake(key)

    async def _read(self, name: str, uids: Collection[str]) -> Found | None:
        """What a list has; None where there was no answer in time."""
        try:
            async with self._reads, asyncio.timeout(PATIENCE_S):
                return await read_events(self._api, name, uids)
        except (ApiError, UnreachableError, TimeoutError) as error:
            logger.debug("no Events of namespace %s: %s", name, str(error) or "no answer in time")
        except Exception:
            logger.exception("unexpected; no Events of namespace %s", name)
        return None


async def read_events(api: Api, namespace: str, uids: Collection[str]) -> Found:
    """The latest Event of each kind about these objects; of a namespace that is full of Events, some.

    Raises `ApiError` or `UnreachableError`.
    """
    found: dict[str, dict[str, EventView]] = {uid: {} for uid in uids}
    count = size = 0
    async with contextlib.aclosing(api.list_chunks(EVENTS, namespace, {"fieldSelector": "type=Warning"})) as chunks:
        async for chunk in chunks:
            for event in map(parse_event, chunk.documents):
                _keep_latest(found.get(event.about_uid), event)
            count, size = count + len(chunk.documents), size + chunk.size
            if count >= MOST_EVENTS or size >= MOST_BYTES:
                break
    return {uid: tuple(events.values()) for uid, events in found.items()}


def _keep_latest(events: dict[str, EventView] | None, event: EventView) -> None:
    if events is None:
        return
    known = events.get(event.reason)
    if known is None:
        if len(events) < MOST_REASONS:
            events[event.reason] = event
    elif (known.last_seen or _LONG_AGO) <= (event.last_seen or _LONG_AGO):
        events[event.reason] = event


def unexplained(jobs: Iterable[JobView], pods: Iterable[PodView]) -> list[str]:
    """Pods that a node has and does not start, that of node 0 first, or a Job none of whose pods waits: it may be
    refused another. What the scheduler says is in the pod itself."""
    waiting = [pod for pod in leader_first(pods) if not has_ended(pod) and not is_running(pod)]
    if waiting:
        return [pod.uid for pod in waiting if pod.node][:MOST_OBJECTS]
    latest = sorted(jobs, key=lambda job: (job.attempt, job.created_at), reverse=True)
    return [job.uid for job in latest][:1]
