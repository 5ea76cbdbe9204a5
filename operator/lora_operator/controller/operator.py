"""An operator: its parts, as `make_operator` makes and wires them, and what they are to each other."""

import asyncio
import random
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from prometheus_client import CollectorRegistry

from lora_operator.cluster.api import FINETUNES, Api
from lora_operator.cluster.child_events import ChildEvents
from lora_operator.cluster.finetune_lister import FineTuneLister
from lora_operator.cluster.kueue import Kueue
from lora_operator.cluster.lease import Election
from lora_operator.cluster.post_events import EventPoster
from lora_operator.cluster.progress_poll import ProgressPoller, fetch_progress
from lora_operator.cluster.reflector import Lister, Reflector, Source
from lora_operator.cluster.server_clock import wall_clock
from lora_operator.cluster.store import Key, Stores
from lora_operator.controller.checks import SelfCheckError
from lora_operator.controller.debounce import MOST_PROGRESS_PER_S, Debounce, progress_interval_s
from lora_operator.controller.identity import Identity, own_identity
from lora_operator.controller.metrics import Metrics
from lora_operator.controller.object_metrics import ObjectCollector
from lora_operator.controller.priority import is_urgent
from lora_operator.controller.reconcile import Reconciler
from lora_operator.controller.refusals import Refusals
from lora_operator.controller.watch import sources_of
from lora_operator.controller.work_queue import WorkQueue
from lora_operator.model.config import OperatorConfig
from lora_trainer.spec.progress import Progress

Clock = Callable[[], float]
Sleep = Callable[[float], Awaitable[None]]
Random = Callable[[], float]
JITTER: Random = random.Random().random  # noqa: S311 - jitter is no secret
# A new Job, its pod and what the scheduler says of that come within a moment: one pass serves all.
SETTLE_S = 0.1


@dataclass(slots=True, kw_only=True)
class Operator:
    """All parts of one operator process; nothing of it runs by itself."""

    config: OperatorConfig
    api: Api
    stores: Stores
    kueue: Kueue
    queue: WorkQueue[Key]
    poller: ProgressPoller
    events: ChildEvents
    poster: EventPoster
    reconciler: Reconciler
    metrics: Metrics
    registry: CollectorRegistry
    clock: Clock
    sleep: Sleep
    random: Random
    namespaces: tuple[str, ...] = ()
    left_out: tuple[str, ...] = ()
    hindrance: str = ""
    finetune_listers: Mapping[str, FineTuneLister] = field(default_factory=dict)
    """By namespace; by "" where there is one for all."""
    reflectors: Sequence[Reflector] = ()
    working: bool = False

    def follow(self) -> None:
        """Make what lists LoRAFineTunes and what follows the other kinds, in each namespace or everywhere."""
        places = self.namespaces or (None,)
        finetunes = Source(resource=FINETUNES, store=self.stores.finetunes, wake=self.wake)
        self.finetune_listers = {
            place or "": FineTuneLister(
                self.api,
                finetunes,
                place,
                list_interval_s=self.config.resync_interval_s,
                random=self.random,
                clock=self.clock,
                sleep=self.sleep,
            )
            for place in places
        }
        self.reflectors = [
            Reflector(
                self.api,
                source,
                place,
                silence_s=self.config.watch_inactivity_s,
                list_interval_s=self.config.resync_interval_s,
                random=self.random,
                clock=self.clock,
                sleep=self.sleep,
            )
            for source in sources_of(self.stores, self.kueue, self.wake_soon)
            for place in places
        ]

    @property
    def listers(self) -> Sequence[Lister]:
        """Of each kind, in each namespace or everywhere."""
        return [*self.finetune_listers.values(), *self.reflectors]

    def take_in(self, kind: str | None, document: Mapping[str, Any]) -> None:
        """kopf's watch has brought a LoRAFineTune as it is or, of the kind DELETED, as it was at last."""
        store, listers = self.stores.finetunes, self.finetune_listers
        owner = store.remove(document) if kind == "DELETED" else store.put(document)
        lister = listers.get("") or listers.get(document["metadata"]["namespace"])
        if lister is not None:
            lister.brought()
        if owner is not None:
            self.wake(owner)

    def forget(self) -> None:
        """Drop what is kept of pods that a list of everything has shown to be gone."""
        self.poller.keep_only({pod.uid for pod in self.stores.pods})

    def unready(self) -> str:
        """Why runs are not looked after yet; empty where they are."""
        if self.listers and all(lister.listed.is_set() for lister in self.listers):
            return ""
        return self.hindrance or "The first list of the cluster is not complete"

    def last_heard(self) -> dict[str, float]:
        """For each kind when its most silent watch last brought something, in seconds since 1970; 0 for never."""
        oldest: dict[str, float] = {}
        for lister in self.listers:
            heard_s = 0.0 if lister.heard_s is None else self._now_s() - (self.clock() - lister.heard_s)
            oldest[lister.plural] = min(oldest.get(lister.plural, heard_s), heard_s)
        return oldest

    def wake(self, key: Key) -> None:
        """Have a run looked at. While this process stands by nobody would, and keys of deleted runs would pile up."""
        if self.working:
            self.queue.add(key)
        else:
            self.stores.forget_gone(key)

    def wake_soon(self, key: Key) -> None:
        """Have a run looked at once the rest of what its children tell has come, too."""
        if self.working:
            self.queue.add_after(key, SETTLE_S)
        else:
            self.wake(key)

    def begin_work(self) -> None:
        """Have all runs looked at, and from now on those that there is news of; their series are shown."""
        self.working = True
        for key in self.stores.finetunes.places():
            self.wake(key)
        if self.config.run_metrics:
            # Not before: of two processes that report the same runs, sums would count each run twice.
            self.registry.register(ObjectCollector(self.stores.finetunes, self._now_s))

    def _now_s(self) -> float:
        """Seconds since 1970 by the API server's clock, as Prometheus and the status' times have it."""
        return self.api.clock.now().timestamp()


def make_operator(
    config: OperatorConfig,
    api: Api,
    *,
    metrics: Metrics | None = None,
    registry: CollectorRegistry | None = None,
    identity: Identity | None = None,
    clock: Clock = time.monotonic,
    sleep: Sleep = asyncio.sleep,
    random: Random = JITTER,
    fetch: Callable[[str], Awaitable[Progress]] = fetch_progress,
) -> Operator:
    """Make an operator for whatever API server, clock, chance and pods there are."""
    registry = registry or CollectorRegistry()
    metrics = metrics or Metrics(registry)
    identity = identity or own_identity()
    stores, kueue = Stores(), Kueue()

    def wake(key: Key) -> None:
        operator.wake(key)

    queue: WorkQueue[Key] = WorkQueue(
        base_s=config.retry_base_s,
        max_s=config.retry_max_s,
        random=random,
        is_urgent=lambda key: is_urgent(stores, key),
        group=lambda key: key.namespace,
        workers=config.workers,
    )
    poller = ProgressPoller(
        interval_s=lambda running: progress_interval_s(config, running),
        timeout_s=config.progress_timeout_s,
        most_per_s=MOST_PROGRESS_PER_S,
        wake=wake,
        clock=clock,
        fetch=fetch,
    )
    poster = EventPoster(api, now=api.clock.now, instance=identity.name, hurried=lambda: queue.has_urgent)
    events = ChildEvents(api, interval_s=config.pending_check_s, wake=wake)
    reconciler = Reconciler(
        api=api,
        stores=stores,
        kueue=kueue,
        config=config,
        poller=poller,
        events=events,
        poster=poster,
        count=metrics.status_written,
        now=api.clock.now,
        refusals=Refusals(clock, pause_s=config.retry_max_s, long_pause_s=config.resync_interval_s),
        debounce=Debounce(clock, config.status_delay_s),
    )
    operator = Operator(
        config=config,
        api=api,
        stores=stores,
        kueue=kueue,
        queue=queue,
        poller=poller,
        events=events,
        poster=poster,
        reconciler=reconciler,
        metrics=metrics,
        registry=registry,
        clock=clock,
        sleep=sleep,
        random=random,
        namespaces=config.namespaces,
    )
    return operator


def make_election(
    config: OperatorConfig,
    api: Api,
    identity: Identity,
    *,
    clock: Clock = time.monotonic,
    sleep: Sleep = asyncio.sleep,
    random: Random = JITTER,
) -> Election:
    """The candidate for the Lease that the settings name. Raises `SelfCheckError` where nothing says where it is."""
    namespace = config.lease_namespace or identity.namespace
    if not namespace:
        raise SelfCheckError(
            "leaseNamespace is empty and this process is in no pod, so that nothing says where the Lease is: set it"
        )
    return Election(
        api,
        namespace=namespace,
        name=config.lease_name,
        identity=identity.name,
        duration_s=config.lease_duration_s,
        renew_deadline_s=config.renew_deadline_s,
        retry_s=config.retry_period_s,
        clock=clock,
        sleep=sleep,
        random=random,
        now=wall_clock,
    )
