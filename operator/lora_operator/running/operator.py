"""An operator: its parts, as `make_operator` makes and wires them, and what they are to each other."""

import asyncio
import random
import signal
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from prometheus_client import CollectorRegistry

from lora_operator.cluster.api import Api
from lora_operator.cluster.cache import Cache, Key
from lora_operator.cluster.child_events import ChildEvents
from lora_operator.cluster.finetune_list import FineTuneList
from lora_operator.cluster.kueue import Kueue
from lora_operator.cluster.lease import Election
from lora_operator.cluster.post_events import EventPoster
from lora_operator.cluster.progress_poll import ProgressPoller, fetch_progress
from lora_operator.cluster.reflector import Reflector
from lora_operator.cluster.server_clock import wall_clock
from lora_operator.running.identity import Identity, own_identity
from lora_operator.running.metrics import Metrics
from lora_operator.running.object_metrics import ObjectCollector
from lora_operator.running.pacing import MOST_PROGRESS_PER_S, Pacing, shortest_interval_s
from lora_operator.running.priority import is_urgent
from lora_operator.running.reconcile import Reconciler
from lora_operator.running.self_check import SelfCheckError
from lora_operator.running.standby import drop_stored
from lora_operator.running.watch import sources_of
from lora_operator.running.work_queue import WorkQueue
from lora_operator.views.config import OperatorConfig
from lora_trainer.contract.progress import Progress

Clock = Callable[[], float]
Sleep = Callable[[float], Awaitable[None]]
Random = Callable[[], float]
JITTER: Random = random.Random().random  # noqa: S311 - jitter is no secret


def end_by_signal() -> None:
    """End this process as its kubelet would: kopf stops, cleans up, and kills it where that takes too long."""
    signal.raise_signal(signal.SIGTERM)


@dataclass(slots=True, kw_only=True)
class Operator:
    """All parts of one operator process; nothing of it runs by itself."""

    config: OperatorConfig
    api: Api
    cache: Cache
    kueue: Kueue
    queue: WorkQueue[Key]
    poller: ProgressPoller
    poster: EventPoster
    reconciler: Reconciler
    metrics: Metrics
    registry: CollectorRegistry
    election: Election | None
    clock: Clock
    sleep: Sleep
    random: Random
    end: Callable[[], None]
    namespaces: tuple[str, ...] = ()
    left_out: tuple[str, ...] = ()
    hindrance: str = ""
    lists: dict[str, FineTuneList] = field(default_factory=dict)
    """Of LoRAFineTunes, by namespace; by "" where all are followed."""
    reflectors: list[Reflector] = field(default_factory=list)
    task: asyncio.Task[None] | None = None
    failure: Exception | None = None
    working: bool = False

    def follow(self) -> None:
        """Make what lists or follows each kind, in each namespace or everywhere."""
        places = self.namespaces or (None,)
        finetunes = self.cache.finetunes
        self.lists = {
            place or "": FineTuneList(self.api, finetunes, place, wake=self.wake, clock=self.clock, sleep=self.sleep)
            for place in places
        }
        self.reflectors = [
            Reflector(
                self.api,
                source,
                place,
                silence_s=self.config.watch_inactivity_s,
                stale_s=self.config.watch_stale_s,
                random=self.random,
                clock=self.clock,
                sleep=self.sleep,
            )
            for source in sources_of(self.cache, self.kueue, self.wake)
            for place in places
        ]

    def take_in(self, kind: str | None, document: Mapping[str, Any]) -> None:
        """kopf's watch has brought a LoRAFineTune as it is, or as it was when it was deleted."""
        finetunes = self.cache.finetunes
        owner = finetunes.remove(document) if kind == "DELETED" else finetunes.put(document)
        beside = self.lists.get("") or self.lists.get(str(document["metadata"].get("namespace")))
        if beside is not None:
            beside.brought()
        if owner is not None:
            self.wake(owner)

    def fail(self, error: Exception) -> None:
        """End the process, with the first of the errors for which this is called as its reason."""
        if self.failure is None:
            self.failure = error
            self.end()

    def forget(self) -> None:
        """Drop what is kept of pods that a list of everything has shown to be gone."""
        self.poller.keep_only({pod.uid for pod in self.cache.pods})

    def trouble(self) -> str:
        """Why the process is of no use any more; empty where all is well."""
        for followed in self.followed:
            silence_s, behind_s = followed.silent_for_s, followed.behind_for_s
            if silence_s > self.config.watch_stale_s:
                return f"The watch of {followed.path} has brought neither event nor bookmark for {silence_s:.0f} s"
            if behind_s is not None and behind_s > self.config.stale_list_s:
                return (
                    f"The API server has been in the past for {behind_s:.0f} s, as the list of {followed.path} shows, "
                    "so etcd seems to have been restored: a restart reads everything again"
                )
        for beside in self.lists.values():
            if beside.deaf:
                return f"The watch of {beside.path} is deaf: two lists have shown what it does not bring"
        return ""

    @property
    def followed(self) -> list[FineTuneList | Reflector]:
        """Whatever lists a kind, in a namespace or everywhere."""
        return [*self.lists.values(), *self.reflectors]

    def unready(self) -> str:
        """Why runs are not looked after yet; empty where they are."""
        followed = self.followed
        if followed and all(one.listed.is_set() for one in followed):
            return ""
        return self.hindrance or "The first list of the cluster is not complete"

    def last_heard(self) -> dict[str, float]:
        """For each kind when its most silent watch last brought something, in seconds since 1970; 0 for never.

        Of LoRAFineTunes also when a list last showed that there was nothing to bring.
        """
        oldest: dict[str, float] = {}
        for followed in self.followed:
            quiet_s = followed.quiet_for_s
            heard_s = 0.0 if quiet_s is None else self._now_s() - quiet_s
            oldest[followed.plural] = min(oldest.get(followed.plural, heard_s), heard_s)
        return oldest

    def wake(self, key: Key, after_s: float = 0) -> None:
        """Have a run looked at. While this process stands by nobody would, and keys of deleted runs would pile up."""
        if self.working:
            self.queue.add_after(key, after_s)
        elif not self.unready():  # before the first lists are complete a run may only seem to be gone
            drop_stored(self.cache, key)

    def begin_work(self) -> None:
        """Have all runs looked at, and from now on those that there is news of; their series are shown."""
        self.working = True
        for key in {*self.cache.pods.owners_of_tombstones(), *self.cache.jobs.owners_of_tombstones()}:
            drop_stored(self.cache, key)
        for key in self.cache.finetunes.places():
            self.wake(key)
        if self.config.run_metrics:
            # Not before: of two processes that report the same runs, sums would count each run twice.
            self.registry.register(ObjectCollector(self.cache.finetunes, self._now_s))

    def leading(self) -> bool:
        """Whether this process is the one that works on runs."""
        return self.working and (self.election is None or self.election.leading)

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
    election: Election | None = None,
    clock: Clock = time.monotonic,
    sleep: Sleep = asyncio.sleep,
    random: Random = JITTER,
    fetch: Callable[[str], Awaitable[Progress]] = fetch_progress,
    end: Callable[[], None] = end_by_signal,
) -> Operator:
    """Make an operator for whatever API server, clock, chance and pods there are; without an election it leads.

    `end` ends the process that it is in.
    """
    registry = registry or CollectorRegistry()
    metrics = metrics or Metrics(registry)
    identity = identity or own_identity()
    cache, kueue = Cache(), Kueue()

    def wake(key: Key, after_s: float = 0) -> None:
        operator.wake(key, after_s)

    queue: WorkQueue[Key] = WorkQueue(
        base_s=config.retry_base_s,
        max_s=config.retry_max_s,
        random=random,
        is_urgent=lambda key: is_urgent(cache, key),
        group=lambda key: key.namespace,
        workers=config.workers,
    )
    poller = ProgressPoller(
        interval_s=lambda running: shortest_interval_s(config, running),
        timeout_s=config.progress_timeout_s,
        most_per_s=MOST_PROGRESS_PER_S,
        wake=wake,
        clock=clock,
        fetch=fetch,
    )
    poster = EventPoster(api, now=api.clock.now, instance=identity.name, hurried=lambda: queue.has_urgent)
    reconciler = Reconciler(
        api=api,
        cache=cache,
        kueue=kueue,
        config=config,
        poller=poller,
        events=ChildEvents(api, interval_s=config.pending_check_s, clock=clock, wake=wake),
        poster=poster,
        count=metrics.status_written,
        now=api.clock.now,
        pacing=Pacing(clock, config.status_delay_s),
        clock=clock,
    )
    operator = Operator(
        config=config,
        api=api,
        cache=cache,
        kueue=kueue,
        queue=queue,
        poller=poller,
        poster=poster,
        reconciler=reconciler,
        metrics=metrics,
        registry=registry,
        election=election,
        clock=clock,
        sleep=sleep,
        random=random,
        end=end,
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
) -> Election | None:
    """The candidate that the settings ask for; None where they want no election. Raises `SelfCheckError`."""
    if not config.leader_election:
        return None
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
