"""The parts of an operator, made and wired together; nothing of it runs yet."""

import asyncio
import random
import socket
import time

from kubernetes.aio.client.api_client import ApiClient
from prometheus_client import CollectorRegistry

from lora_operator.cluster.api import Api
from lora_operator.cluster.cache import Cache, Key
from lora_operator.cluster.child_events import ChildEvents
from lora_operator.cluster.kueue import Kueue
from lora_operator.cluster.lease import Election
from lora_operator.cluster.post_events import EventPoster
from lora_operator.cluster.progress_poll import ProgressPoller
from lora_operator.cluster.reflector import Reflector
from lora_operator.cluster.server_clock import wall_clock
from lora_operator.running.metrics import Metrics
from lora_operator.running.object_metrics import ObjectCollector
from lora_operator.running.own_pod import own_identity, own_namespace
from lora_operator.running.pacing import MOST_PROGRESS_PER_S, Pacing, shortest_interval_s
from lora_operator.running.reconcile import Reconciler
from lora_operator.running.self_check import SelfCheckError
from lora_operator.running.standby import drop_stored
from lora_operator.running.urgency import NEW, rank_of
from lora_operator.running.watch import sources_of
from lora_operator.running.work_queue import WorkQueue
from lora_operator.views.config import OperatorConfig


class Operator:
    """All parts of one operator process."""

    def __init__(
        self, config: OperatorConfig, client: ApiClient, metrics: Metrics, registry: CollectorRegistry
    ) -> None:
        self.config = config
        self.cache = Cache()
        self.metrics = metrics
        self.registry = registry
        self.api = Api(client)
        self.kueue = Kueue()
        # Jitter needs no secrecy.
        self.queue: WorkQueue[Key] = WorkQueue(
            base_s=config.retry_base_s,
            max_s=config.retry_max_s,
            random=random.Random().random,  # noqa: S311 - jitter is no secret
            rank=lambda key: rank_of(self.cache, key),
            group=lambda key: key.namespace,
            workers=config.workers,
        )
        self.poller = ProgressPoller(
            interval_s=lambda running: shortest_interval_s(config, running),
            timeout_s=config.progress_timeout_s,
            most_per_s=MOST_PROGRESS_PER_S,
            wake=self.wake,
            clock=time.monotonic,
        )
        self.poster = EventPoster(
            self.api, now=self.api.clock.now, instance=socket.gethostname(), hurried=self._hurried
        )
        self.reconciler = Reconciler(
            api=self.api,
            cache=self.cache,
            kueue=self.kueue,
            config=config,
            poller=self.poller,
            events=ChildEvents(self.api, interval_s=config.pending_check_s, clock=time.monotonic, wake=self.wake),
            poster=self.poster,
            count=metrics.runs.observe,
            now=self.api.clock.now,
            pacing=Pacing(time.monotonic, config.status_delay_s),
        )
        self.election = self._make_election()
        self.namespaces: tuple[str, ...] = config.namespaces
        self.left_out: tuple[str, ...] = ()
        self.hindrance = ""
        self.reflectors: list[Reflector] = []
        self.working = False

    def follow(self) -> None:
        """Make what follows each kind, in each namespace or everywhere."""
        self.reflectors = [
            Reflector(
                self.api,
                source,
                place,
                silence_s=self.config.watch_inactivity_s,
                stale_s=self.config.watch_stale_s,
                random=random.Random().random,  # noqa: S311 - jitter is no secret
            )
            for source in sources_of(self.cache, self.kueue, self.wake)
            for place in self.namespaces or (None,)
        ]

    def forget(self) -> None:
        """Drop what is kept of pods, and of namespaces, that a list of everything has shown to be gone."""
        self.poller.keep_only({pod.uid for pod in self.cache.pods})
        self.metrics.runs.keep({place.namespace for place in self.cache.finetunes.places()}, self._now_s())

    def trouble(self) -> str:
        """Why the process is of no use any more; empty where all is well."""
        for reflector in self.reflectors:
            silence_s, behind_s = reflector.silent_for_s, reflector.behind_for_s
            if silence_s > self.config.watch_stale_s:
                return f"The watch of {reflector.path} has brought neither event nor bookmark for {silence_s:.0f} s"
            if behind_s is not None and behind_s > self.config.stale_list_s:
                return (
                    f"The API server has been in the past for {behind_s:.0f} s, as the list of {reflector.path} shows, "
                    "so etcd seems to have been restored: a restart reads everything again"
                )
        return ""

    def unready(self) -> str:
        """Why runs are not looked after yet; empty where they are."""
        if self.reflectors and all(reflector.listed.is_set() for reflector in self.reflectors):
            return ""
        return self.hindrance or "The first list of the cluster is not complete"

    def last_heard(self) -> dict[str, float]:
        """For each kind when its most silent watch last brought something, in seconds since 1970; 0 for never."""
        oldest: dict[str, float] = {}
        for reflector in self.reflectors:
            quiet_s = reflector.quiet_for_s
            heard_s = 0.0 if quiet_s is None else self._now_s() - quiet_s
            oldest[reflector.plural] = min(oldest.get(reflector.plural, heard_s), heard_s)
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
        places = self.cache.finetunes.places()
        self.metrics.runs.begin_at_zero({place.namespace for place in places})
        for key in places:
            self.wake(key)
        if self.config.run_metrics:
            # Not before: of two processes that report the same runs, sums would count each run twice.
            self.registry.register(ObjectCollector(self.cache.finetunes, self._now_s))

    def leading(self) -> bool:
        """Whether this process is the one that works on runs."""
        return self.working and self.election.leading

    def _now_s(self) -> float:
        """Seconds since 1970 by the API server's clock, as Prometheus and the status' times have it."""
        return self.api.clock.now().timestamp()

    def _hurried(self) -> bool:
        return self.queue.is_waiting(NEW)

    def _make_election(self) -> Election:
        config = self.config
        namespace = config.lease_namespace or own_namespace()
        if not namespace:
            raise SelfCheckError(
                "leaseNamespace is empty and this process is in no pod, so that nothing says where the Lease is: set it"
            )
        return Election(
            self.api,
            namespace=namespace,
            name=config.lease_name,
            identity=own_identity(),
            duration_s=config.lease_duration_s,
            renew_deadline_s=config.renew_deadline_s,
            retry_s=config.retry_period_s,
            clock=time.monotonic,
            sleep=asyncio.sleep,
            random=random.Random().random,  # noqa: S311 - jitter is no secret
            now=wall_clock,
        )
