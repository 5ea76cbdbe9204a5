"""Operators in memory: the real shell on the model's API server, with a network that can fail."""

import asyncio
import copy
import enum
import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from prometheus_client import CollectorRegistry
from tests.model.server import Happening, Object, Server, labels_of
from tests.model.virtual_loop import VirtualLoop

from lora_operator.cluster.api import Api, ApiError, UnreachableError
from lora_operator.cluster.cache import Cache, Key, Store
from lora_operator.cluster.child_events import ChildEvents
from lora_operator.cluster.kueue import Kueue
from lora_operator.cluster.post_events import EventPoster
from lora_operator.cluster.progress_poll import ProgressPoller
from lora_operator.cluster.reflector import Reflector
from lora_operator.running.metrics import Metrics
from lora_operator.running.pacing import MOST_PROGRESS_PER_S, Pacing
from lora_operator.running.reconcile import Reconciler
from lora_operator.running.resync import resync
from lora_operator.running.standby import drop_stored
from lora_operator.running.supervision import OperatorFailedError, run_together
from lora_operator.running.urgency import rank_of
from lora_operator.running.watch import sources_of
from lora_operator.running.work_queue import WorkQueue
from lora_operator.running.workers import run_worker
from lora_operator.views import names
from lora_operator.views.config import OperatorConfig
from lora_trainer.contract.progress import Progress

BEGINNING = datetime(2026, 3, 1, 12, 0, 0, tzinfo=UTC)
REQUEST_TIMEOUT_S = 30.0
# A leader that has lost its Lease ends sooner, but what it has sent may still be under way for so long.
LAG_S = REQUEST_TIMEOUT_S
WATCHED = ("lorafinetunes", "jobs", "pods", "workloads")
METRICS = Metrics(CollectorRegistry())


class Fault(enum.Enum):
    """What becomes of a request."""

    CONFLICT = 409
    TOO_MANY = 429
    BROKEN = 500
    UNAVAILABLE = 503
    LOST = "it never arrives, and is given up"
    ANSWER_LOST = "it is carried out, and its answer never arrives"
    SLOW = "it arrives a while later"
    CRASH_BEFORE = "the operator dies before it is sent"
    CRASH_AFTER = "it is carried out, and the operator has died"
    MEANWHILE = "something else happens first"
    OVERTAKEN = "something else happens before its answer arrives, and the watches bring it"


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """One request of an operator as the server got it. `error` is the code of a refusal, 0 for a success."""

    operator: int
    method: str
    path: str
    body: Mapping[str, Any] | None
    answer: Object
    error: int = 0

    def __repr__(self) -> str:
        status = (self.body or {}).get("status", self.body)
        return f"operator {self.operator}: {self.method} {self.path} -> {self.error or 'done'}: {status}"

    @property
    def writes(self) -> bool:
        """Whether it was to change something."""
        return self.method != "GET"


class Network:
    """Between operators and server. Faults wait for the next request that fits; `requests` is all that arrived."""

    def __init__(self, server: Server, loop: VirtualLoop) -> None:
        self.server = server
        self.loop = loop
        self.requests: list[Request] = []
        self.faults: list[tuple[Fault, str]] = []
        self.meanwhile: Callable[[], None] = lambda: None

    async def carry(self, operator: "ModelOperator", method: str, path: str, body: Any, query: Any) -> Object:
        """Bring a request to the server, or what the next fault wants."""
        await asyncio.sleep(0)
        fault = self._next_fault(method)
        if isinstance(fault, Fault) and isinstance(fault.value, int):
            reason = "Conflict" if fault is Fault.CONFLICT else "Trouble"
            raise ApiError(fault.value, reason, "injected", retry_after_s=2.0 if fault is Fault.TOO_MANY else 0.0)
        if fault is Fault.MEANWHILE:
            self.meanwhile()
        if fault is Fault.SLOW:
            await asyncio.sleep(REQUEST_TIMEOUT_S / 2)
        if fault is Fault.CRASH_BEFORE:
            await operator.die()
        if fault is Fault.LOST:
            await asyncio.sleep(REQUEST_TIMEOUT_S)
            raise UnreachableError("lost")
        answer = self._deliver(operator, method, path, body, query)
        if fault is Fault.CRASH_AFTER:
            await operator.die()
        if fault is Fault.ANSWER_LOST:
            await asyncio.sleep(REQUEST_TIMEOUT_S)
            raise UnreachableError("the answer was lost")
        if fault is Fault.OVERTAKEN:
            answer = copy.deepcopy(answer)
            self.meanwhile()
            await asyncio.sleep(0.01)
        await asyncio.sleep(0)
        return answer

    def _next_fault(self, method: str) -> Fault | None:
        for number, (fault, wanted) in enumerate(self.faults):
            if wanted in ("", method):
                del self.faults[number]
                return fault
        return None

    def _deliver(self, operator: "ModelOperator", method: str, path: str, body: Any, query: Any) -> Object:
        try:
            answer = self.server.handle(method, path, body, query)
        except ApiError as error:
            self.requests.append(
                Request(operator=operator.number, method=method, path=path, body=body, answer={}, error=error.code)
            )
            raise
        self.requests.append(Request(operator=operator.number, method=method, path=path, body=body, answer=answer))
        return answer


class ModelApi(Api):
    """The operator's API at its lowest seam."""

    def __init__(self, network: Network, operator: "ModelOperator") -> None:
        self._network = network
        self._operator = operator

    async def read(self, path: str, query: Mapping[str, str]) -> tuple[Object, int]:
        """The same."""
        return await self.request("GET", path, query=query), 1

    async def request(
        self,
        method: str,
        path: str,
        *,
        query: Mapping[str, str] | None = None,
        body: Mapping[str, Any] | None = None,
        content_type: str = "application/json",
    ) -> Object:
        """As the real one, over the model's network."""
        return await self._network.carry(self._operator, method, path, body, query)


class ModelPoller(ProgressPoller):
    """Asks the trainers of the model."""

    answers: Callable[[str], Progress]

    async def _fetch(self, ip: str) -> Progress:
        await asyncio.sleep(0)
        return self.answers(ip)


class ModelOperator:
    """One operator process. It hears of changes at once, unless `deaf` to a kind of objects, and until it dies.

    One that does not lead hears of everything, too, and works once it does. One that another has taken the Lease from
    lags: it goes on for a while, and hears nothing of what the other says of the runs.
    """

    def __init__(
        self,
        number: int,
        network: Network,
        config: OperatorConfig,
        answers: Callable[[str], Progress],
        *,
        skew_s: float = 0.0,
    ) -> None:
        loop = network.loop
        self.number = number
        self.skew_s = skew_s
        self.network = network
        self.alive = True
        self.leads = False
        self.lags = False
        self.cache = Cache()
        self.api = ModelApi(network, self)
        self.kueue = Kueue()
        self.deaf: set[str] = set()
        self._heard = dict.fromkeys(WATCHED, 0)
        self._life: asyncio.Task[None] | None = None
        self._led = asyncio.Event()

        def now() -> datetime:
            return BEGINNING + timedelta(seconds=loop.time() + skew_s)

        self.queue: WorkQueue[Key] = WorkQueue(
            base_s=config.retry_base_s,
            max_s=config.retry_max_s,
            clock=loop.time,
            random=random.Random(number).random,  # noqa: S311 - jitter is no secret
            rank=lambda key: rank_of(self.cache, key),
            group=lambda key: key.namespace,
            workers=config.workers,
        )
        self.poller = ModelPoller(
            interval_s=lambda _: config.progress_interval_s,
            timeout_s=2.0,
            most_per_s=MOST_PROGRESS_PER_S,
            wake=self.wake,
            clock=loop.time,
        )
        self.poller.answers = answers
        self.poster = EventPoster(self.api, now=now, instance=f"operator-{number}")
        self.reconciler = Reconciler(
            api=self.api,
            cache=self.cache,
            kueue=self.kueue,
            config=config,
            poller=self.poller,
            events=ChildEvents(self.api, interval_s=config.pending_check_s, clock=loop.time, wake=self.wake),
            poster=self.poster,
            count=METRICS.runs.observe,
            now=now,
            pacing=Pacing(loop.time, config.status_delay_s),
            clock=loop.time,
        )
        self.workers = config.workers
        self.resync_interval_s = config.resync_interval_s

    # -- life

    def start(self) -> None:
        """Begin as a process does: list, then watch and work; until a part fails, or somebody kills it."""
        self._life = self.network.loop.create_task(self._live())

    async def _live(self) -> None:
        try:
            await self.kueue.discover(self.api)
            reflectors = self._reflectors()
            for reflector in reflectors:
                await reflector.list()
            for plural in WATCHED:
                self.relist(plural)
            self.network.server.listeners.append(self._hear_soon)
            parts = {
                "resync": resync(
                    self.api, self.kueue, reflectors, interval_s=self.resync_interval_s, after=lambda: None
                ),
                "lead": self._lead(),
            }
            await run_together(parts)
        except (ApiError, UnreachableError, OperatorFailedError):
            pass  # a real process ends with a sentence, and whoever runs it starts it again
        finally:
            self._forget()
            await self.poller.close()

    async def _lead(self) -> None:
        """As a process does that has got the Lease, at once or after hours."""
        await self._led.wait()
        self.leads = True
        for key in {*self.cache.pods.owners_of_tombstones(), *self.cache.jobs.owners_of_tombstones()}:
            drop_stored(self.cache, key)
        for key in self.cache.finetunes.places():
            self.wake(key)
        parts = {"timers": self.queue.run_timers(), "event poster": self.poster.run()}
        workers = {
            f"worker {number}": run_worker(self.queue, self.cache, self.reconciler, METRICS)
            for number in range(self.workers)
        }
        await run_together({**parts, **workers})

    @property
    def has_lease(self) -> bool:
        """Whether it works on runs, or will as soon as it has listed them, and nobody has taken the Lease from it."""
        return self._led.is_set() and not self.lags

    def lead(self) -> None:
        """It has got the Lease."""
        self._led.set()

    def lag(self) -> None:
        """Another has got the Lease, and this one has yet to find that out."""
        self.lags = True
        self.network.loop.call_later(LAG_S, self.kill)

    def wake(self, key: Key, after_s: float = 0) -> None:
        """Have a run looked at; while it does not lead, nobody would: as `parts.Operator` does."""
        if self.leads:
            self.queue.add_after(key, after_s)
        else:
            drop_stored(self.cache, key)

    def _reflectors(self) -> list[Reflector]:
        """Of which lists are wanted alone: a watch is brought by the model."""
        return [
            Reflector(
                self.api, source, None, silence_s=1.0, stale_s=150, random=lambda: 0.5, clock=self.network.loop.time
            )
            for source in sources_of(self.cache, self.kueue, self.wake)
        ]

    def _forget(self) -> None:
        self.alive = False
        listeners = self.network.server.listeners
        if self._hear_soon in listeners:
            listeners.remove(self._hear_soon)

    def kill(self) -> None:
        """SIGKILL: what it was about to do stays undone, and what it knew is lost."""
        self._forget()
        if self._life is not None:
            self._life.cancel()

    async def die(self) -> None:
        """Kill itself, in the middle of a request."""
        self.network.loop.call_soon(self.kill)
        await asyncio.Event().wait()

    # -- watches

    def _hear_soon(self, happening: Happening) -> None:
        deaf = self.deaf | {"lorafinetunes"} if self.lags else self.deaf
        if happening.plural in WATCHED and happening.plural not in deaf:
            self.network.loop.call_soon(self.hear, happening.plural)

    def hear(self, plural: str, most: int = 1_000_000) -> None:
        """Take in up to so many of the changes that the watch of a kind has not brought yet, in their order."""
        log = self.network.server.log
        while self.alive and most > 0 and self._heard[plural] < len(log):
            happening = log[self._heard[plural]]
            self._heard[plural] += 1
            if happening.plural == plural:
                most -= 1
                self.take_in(happening)

    def miss(self, plural: str) -> None:
        """Everything that the watch of a kind has not brought yet is lost."""
        self._heard[plural] = len(self.network.server.log)

    def relist(self, plural: str) -> None:
        """A watch that begins anew tells of all that is there, and of nothing that is gone."""
        self.miss(plural)
        for document in self.network.server.all(plural):
            if _is_selected(plural, document):
                self._keep(plural, "MODIFIED", document)

    def take_in(self, happening: Happening) -> None:
        """What a watch brings of a change.

        To one with a selector, what has lost its label is gone, and what had none was never there. A deletion brings
        the object as it was before, as of the version of the change (cache_watcher.go of Kubernetes 1.34).
        """
        plural, document, before = happening.plural, happening.document, happening.before
        if happening.type != "DELETED" and _is_selected(plural, document):
            self._keep(plural, happening.type, document)
        elif before is not None and _is_selected(plural, before):
            version = document["metadata"]["resourceVersion"]
            self._keep(plural, "DELETED", {**before, "metadata": {**before["metadata"], "resourceVersion": version}})

    def _keep(self, plural: str, kind: str, document: Object) -> None:
        """As the reflector does."""
        store: Store[Any] = getattr(self.cache, {"lorafinetunes": "finetunes"}.get(plural, plural))
        owner = store.remove(document) if kind == "DELETED" else store.put(document)
        if owner is not None:
            self.wake(owner)


def _is_selected(plural: str, document: Object) -> bool:
    """Whether the operator's watch of a kind is of such an object."""
    return plural not in {"jobs", "pods"} or labels_of(document).get(names.MANAGED_BY_LABEL) == names.MANAGED_BY
