"""Operators in memory: the real shell on the model's API server, with a network that can fail."""

import asyncio
import copy
import enum
import random
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, cast

import kopf
from prometheus_client import CollectorRegistry
from tests.model.server import Happening, Object, Server, labels_of
from tests.model.virtual_loop import VirtualLoop

from lora_operator.cluster.api import Api, ApiError, UnreachableError
from lora_operator.cluster.lease import Election
from lora_operator.cluster.server_clock import ServerClock
from lora_operator.cluster.store import Store, Stores
from lora_operator.controller.handlers import bring
from lora_operator.controller.identity import Identity
from lora_operator.controller.metrics import Metrics
from lora_operator.controller.operator import make_operator
from lora_operator.controller.supervision import OperatorFailedError, run_together
from lora_operator.controller.work import Work, check_watches, keep_house, lead
from lora_operator.model import names
from lora_operator.model.config import OperatorConfig
from lora_trainer.spec.progress import Progress

BEGINNING = datetime(2026, 3, 1, 12, 0, 0, tzinfo=UTC)
REQUEST_TIMEOUT_S = 30.0
# A leader that has lost its Lease ends sooner, but what it has sent may still be under way for so long.
LAG_S = REQUEST_TIMEOUT_S
WATCHDOG_S = 30.0
WATCHED = ("lorafinetunes", "jobs", "pods", "workloads")
_BRING = cast("Callable[..., Coroutine[Any, Any, None]]", bring)
"""What kopf calls, with as much of its arguments as it takes."""
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

    def __init__(self, network: Network, operator: "ModelOperator", clock: ServerClock) -> None:
        self._network = network
        self._operator = operator
        self.clock = clock

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


class ModelElection(Election):
    """The Lease comes at once, after hours or never, as the model says, and is kept for life."""

    def __init__(self) -> None:
        self._led = asyncio.Event()

    @property
    def leading(self) -> bool:
        """Whether the Lease is this operator's."""
        return self._led.is_set()

    def win(self) -> None:
        """It has got the Lease."""
        self._led.set()

    async def acquire(self) -> None:
        """Wait for it."""
        await self._led.wait()

    async def keep(self) -> None:
        """Nobody takes it away."""
        await asyncio.Event().wait()

    async def release(self) -> None:
        """Whoever dies holds it no more."""


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
        self.lags = False
        self.deaf: set[str] = set()
        self._heard = dict.fromkeys(WATCHED, 0)
        self._life: asyncio.Task[None] | None = None
        self._election = ModelElection()

        async def fetch(ip: str) -> Progress:
            await asyncio.sleep(0)
            return answers(ip)

        def now() -> datetime:
            return BEGINNING + timedelta(seconds=loop.time() + skew_s)

        self._operator = make_operator(
            config,
            ModelApi(network, self, ServerClock(now, loop.time)),
            metrics=METRICS,
            registry=CollectorRegistry(),
            identity=Identity(name=f"operator-{number}"),
            clock=loop.time,
            random=random.Random(number).random,  # noqa: S311 - jitter is no secret
            fetch=fetch,
        )
        self._memo = kopf.Memo(work=Work(self._operator, self._election, end_process=self.kill))

    @property
    def stores(self) -> Stores:
        """What it knows of the cluster."""
        return self._operator.stores

    # -- life

    def start(self) -> None:
        """Begin as a process does: list, then watch and work; until a part fails, or somebody kills it."""
        self._life = self.network.loop.create_task(self._live())

    async def _live(self) -> None:
        operator = self._operator
        try:
            await operator.kueue.discover(operator.api)
            operator.follow()
            for lister in operator.listers:
                await lister.list()  # it is the model that brings what a watch would
            for plural in WATCHED:
                self.relist(plural)
            self.network.server.listeners.append(self._hear_soon)
            parts = {
                **{f"list of {lister.path}": lister.heal() for lister in operator.listers},
                "house": keep_house(operator),
                "watchdog": self._watch_over(),
                "lead": lead(operator, self._election),
            }
            await run_together(parts)
        except (ApiError, UnreachableError, OperatorFailedError):
            pass  # a real process ends with a sentence, and whoever runs it starts it again
        finally:
            self._forget()

    async def _watch_over(self) -> None:
        """As seldom as the model's hours allow."""
        while True:
            await asyncio.sleep(WATCHDOG_S)
            check_watches(self._operator)

    @property
    def has_lease(self) -> bool:
        """Whether it works on runs, or will as soon as it has listed them, and nobody has taken the Lease from it."""
        return self._election.leading and not self.lags

    def lead(self) -> None:
        """It has got the Lease."""
        self._election.win()

    def lag(self) -> None:
        """Another has got the Lease, and this one has yet to find that out."""
        self.lags = True
        self.network.loop.call_later(LAG_S, self.kill)

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
        """As kopf and the reflectors do; theirs is a running loop."""
        loop, operator = self.network.loop, self._operator
        if plural == "lorafinetunes":
            loop.create_task(_BRING(event={"type": kind, "object": document}, memo=self._memo))
            return
        store: Store[Any] = getattr(operator.stores, plural)
        owner = store.remove(document) if kind == "DELETED" else store.put(document)
        if owner is not None:
            loop.call_soon(operator.wake, owner)


def _is_selected(plural: str, document: Object) -> bool:
    """Whether the operator's watch of a kind is of such an object."""
    return plural not in {"jobs", "pods"} or labels_of(document).get(names.MANAGED_BY_LABEL) == names.MANAGED_BY
