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
from lora_operator.cluster.reflector import Reflector, Source
from lora_operator.cluster.server_clock import wall_clock
from lora_operator.running.liveness import WatchLiveness
from lora_operator.running.metrics import Metrics
from lora_operator.running.object_metrics import ObjectCollector
from lora_operator.running.own_pod import own_identity, own_namespace
from lora_operator.running.pacing import Pacing, shortest_interval_s
from lora_operator.running.reconcile import Reconciler
from lora_operator.running.resync import Resync
from lora_operator.running.run_limit import RunLimit
from lora_operator.running.self_check import SelfCheckError
from lora_operator.running.urgency import NEW, rank_of
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
        self.liveness = WatchLiveness(config.namespaces, clock=time.monotonic, wall_clock=time.time)
        # Jitter needs no secrecy.
        self.queue: WorkQueue[Key] = WorkQueue(
            base_s=config.retry_base_s,
            max_s=config.retry_max_s,
            random=random.Random().random,  # noqa: S311 - jitter is no secret
            rank=lambda key: rank_of(self.cache, key),
            group=lambda key: key.namespace,
        )
        self.run_limit = RunLimit(config.most_unfinished_runs_per_namespace, self.cache, self.queue.add)
        self.poller = ProgressPoller(
            interval_s=lambda running: shortest_interval_s(config, running),
            timeout_s=config.progress_timeout_s,
            wake=self.wake,
            clock=time.monotonic,
        )
        self.poster = EventPoster(
            self.api, now=self.api.clock.now, instance=socket.gethostname(), hurried=self._hurried
        )
        self.resync = Resync(
            self.api,
            self.cache,
            self.kueue,
            namespaces=config.namespaces,
            interval_s=config.resync_interval_s,
            wake=self.wake,
        )
        self.reconciler = Reconciler(
            api=self.api,
            cache=self.cache,
            kueue=self.kueue,
            config=config,
            poller=self.poller,
            events=ChildEvents(self.api, interval_s=config.pending_check_s, clock=time.monotonic),
            poster=self.poster,
            observer=metrics,
            now=self.api.clock.now,
            hurried=self._hurried,
            over_limit=self.run_limit.exceeded_by,
            written=self.run_limit.update,
            pacing=Pacing(time.monotonic, config.status_delay_s),
        )
        self.election = self._make_election()
        self.namespaces: tuple[str, ...] = config.namespaces
        self.left_out: tuple[str, ...] = ()
        self.hindrance = ""
        self.listed = asyncio.Event()
        self._paths_listed: set[str] = set()
        self.working = False

    def trouble(self) -> str:
        """Why the process is of no use any more; empty where all is well."""
        silence_s, path = self.liveness.silent_for_s()
        if self.hindrance:
            return ""
        if silence_s > self.config.watch_stale_s:
            return f"The watch of {path} has brought neither event nor bookmark for {silence_s:.0f} s"
        return ""

    def unready(self) -> str:
        """Why runs are not looked after yet; empty where they are."""
        if not self.listed.is_set():
            return self.hindrance or "The first list of the cluster is not complete"
        return "" if self.liveness.all_heard else "Not every watch has begun"

    def reflector(self, source: Source, namespace: str | None) -> Reflector:
        """What follows a kind in a namespace, or everywhere."""
        return Reflector(
            self.api,
            source,
            namespace,
            silence_s=self.config.watch_inactivity_s,
            heard=self.liveness.heard,
            listed=self._list_came,
            random=random.Random().random,  # noqa: S311 - jitter is no secret
        )

    def _list_came(self, path: str, seen: str, version: str) -> None:
        self.resync.compare(path, seen, version)
        self._paths_listed.add(path)
        if self._paths_listed >= self.liveness.paths:
            self.listed.set()

    def wake(self, key: Key, after_s: float = 0) -> None:
        """Have a run looked at. While this process stands by nobody would, and keys of deleted runs would pile up."""
        if self.working:
            self.run_limit.update(key)
            self.queue.add_after(key, after_s)

    def begin_work(self) -> None:
        """Have all runs looked at, and from now on those that there is news of; their series are shown."""
        self.working = True
        for key in self.cache.finetunes.places():
            self.wake(key)
        if self.config.run_metrics:
            # Not before: of two processes that report the same runs, sums would count each run twice.
            self.registry.register(ObjectCollector(self.cache.finetunes))

    def leading(self) -> bool:
        """Whether this process is the one that works on runs."""
        return self.working and (self.election is None or self.election.leading)

    def _hurried(self) -> bool:
        return self.queue.is_waiting(NEW)

    def _make_election(self) -> Election | None:
        config = self.config
        if not config.leader_election:
            return None
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
