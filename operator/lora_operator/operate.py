"""The running operator: every part made and wired, watched over, and stopped."""

import asyncio
import contextlib
import gc
import http
import logging
import random
import signal
import socket
import time
from collections.abc import AsyncIterator, Sequence
from datetime import UTC, datetime
from typing import Any

import aiohttp
import kopf
from kubernetes.aio.client.api_client import ApiClient
from prometheus_client import CollectorRegistry, disable_created_metrics

from lora_operator.api import FINETUNES, JOBS, PODS, Api, ApiError, Resource, UnreachableError
from lora_operator.cache import Cache, Key, Store
from lora_operator.child_events import ChildEvents
from lora_operator.config import OperatorConfig
from lora_operator.health import make_application, serving
from lora_operator.kueue import Kueue
from lora_operator.lease import Election
from lora_operator.list_intake import ListIntake
from lora_operator.liveness import WatchLiveness, count_requests
from lora_operator.login import load_configuration, watch_session
from lora_operator.metrics import Metrics
from lora_operator.object_metrics import ObjectCollector
from lora_operator.own_pod import own_identity, own_namespace
from lora_operator.post_events import EventPoster
from lora_operator.progress_poll import ProgressPoller
from lora_operator.reconcile import Reconciler
from lora_operator.resync import Resync
from lora_operator.self_check import (
    NoDefinitionError,
    SelfCheckError,
    can_look_after,
    check_definition,
    check_lease,
    check_rights,
    rights_used,
)
from lora_operator.supervision import OperatorFailedError, end_within, run_together
from lora_operator.transitions import result_of
from lora_operator.watch import operator_settings, register
from lora_operator.work_queue import WorkQueue
from lora_operator.workers import run_worker

logger = logging.getLogger(__name__)

WATCHDOG_INTERVAL_S = 1.0
REVIEW_INTERVAL_S = 30.0
_STOP_S = 5.0
_DEFINITION_S = 5.0


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
        )
        self.poller = ProgressPoller(
            interval_s=config.progress_interval_s,
            timeout_s=config.progress_timeout_s,
            wake=self.queue.add,
            clock=time.monotonic,
        )
        self.poster = EventPoster(self.api, now=_now, instance=socket.gethostname())
        self.resync = Resync(
            self.api,
            self.cache,
            self.kueue,
            namespaces=config.namespaces,
            interval_s=config.resync_interval_s,
            wake=self.queue.add,
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
            now=_now,
        )
        self.election = self._make_election()
        self.namespaces: Sequence[str] = config.namespaces
        self.left_out: Sequence[str] = ()
        self.hindrance = ""
        self.filled = False
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
        if not self.filled:
            return self.hindrance or "The first list of the cluster is not complete"
        return "" if self.liveness.all_heard else "Not every watch has begun"

    def intake(self) -> ListIntake:
        """What takes the lists of kopf's watches."""
        cache, kueue = self.cache, self.kueue
        stores: list[tuple[Resource, Store[Any]]] = [
            (FINETUNES, cache.finetunes),
            (JOBS, cache.jobs),
            (PODS, cache.pods),
        ]
        if kueue.served:
            stores.append((kueue.workloads, cache.workloads))
        return ListIntake(stores, namespaces=self.namespaces, wake=self.queue.add)

    def leading(self) -> bool:
        """Whether this process is the one that works on runs."""
        return self.working and (self.election is None or self.election.leading)

    def patience(self, key: Key) -> int:
        """How well a run can wait when all are to be looked at: least one that is new, best one that has ended."""
        finetune = self.cache.finetunes.get(key)
        if finetune is None or result_of(finetune.status):
            return 2
        return 1 if finetune.status.get("jobName") else 0

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
            now=_now,
        )


@contextlib.asynccontextmanager
async def _operator(config: OperatorConfig) -> AsyncIterator[tuple[Operator, aiohttp.TraceConfig]]:
    disable_created_metrics()
    registry = CollectorRegistry()
    metrics = Metrics(registry)
    counting = count_requests(metrics)
    configuration = await load_configuration([counting])
    async with ApiClient(configuration) as client:
        operator = Operator(config, client, metrics, registry)
        # Of a process that stands by, every run waits: that says nothing.
        metrics.queue_depth.set_function(lambda: len(operator.queue) if operator.working else 0)
        metrics.leader.set_function(lambda: float(operator.leading()))
        yield operator, counting


async def operate(config: OperatorConfig) -> None:
    """Run until SIGTERM or SIGINT. Raises where the operator cannot start or go on; the text is for a person."""
    # Lists make and drop documents by the hundred, which Python's own threshold takes for garbage: twice the CPU.
    gc.set_threshold(50_000, 20, 50)
    stop = asyncio.Event()
    _stop_on_signal(stop)
    async with _operator(config) as (operator, counting):
        application = make_application(operator.registry, healthy=operator.trouble, ready=operator.unready)
        async with serving(application, config.http_port):
            working = asyncio.create_task(_work(operator, counting, stop), name="operator")
            stopping = asyncio.create_task(stop.wait(), name="stop")
            await asyncio.wait({working, stopping}, return_when=asyncio.FIRST_COMPLETED)
            stopping.cancel()
            if not working.done():
                logger.info("stopping")
                await _wind_down(operator)
                working.cancel()
                await asyncio.wait({working}, timeout=_STOP_S)
            elif not working.cancelled():
                failure = working.exception()
                if failure is not None:
                    end_within(_STOP_S, failure)
                working.result()


async def _work(operator: Operator, counting: aiohttp.TraceConfig, stop: asyncio.Event) -> None:
    for key in await _first_list(operator):
        operator.queue.add(key)
    # What was listed stays: the garbage collector need not walk over all of it again and again.
    gc.collect()
    gc.freeze()
    operator.hindrance, operator.filled = "", True
    parts = {
        "resync": operator.resync.run(lambda: _after_resync(operator)),
        "watchdog": _watch_over(operator),
        "watches": _run_kopf(operator, counting, stop),
        "lead": _lead(operator),
        **({"namespaces": _wait_for_namespaces(operator)} if operator.left_out else {}),
    }
    await run_together(parts)


async def _lead(operator: Operator) -> None:
    """Work on runs, with leader election as long as the lease is held; until then everything waits in the queue."""
    election = operator.election
    if election is not None:
        await election.acquire()
    operator.working = True
    # Of two processes that tell of the same runs, sums would count each run twice.
    operator.registry.register(ObjectCollector(operator.cache.finetunes))
    logger.info("ready to work on %d LoRAFineTunes", len(operator.cache.finetunes))
    queue, reconciler = operator.queue, operator.reconciler
    queue.sort(operator.patience)
    parts = {
        "timers": queue.run_timers(),
        "event poster": operator.poster.run(),
        **({"lease": election.keep()} if election is not None else {}),
        **{
            f"worker {number}": run_worker(queue, operator.cache, reconciler, operator.metrics)
            for number in range(operator.config.workers)
        },
    }
    try:
        await run_together(parts)
    finally:
        await operator.poller.close()
        if election is not None:
            await election.release()


async def _wind_down(operator: Operator) -> None:
    """Take no more work, and finish what was begun: its writes and their Events, within reason."""
    operator.queue.close()
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(_STOP_S):
            await operator.queue.idle()
            await operator.poster.drained()


async def _first_list(operator: Operator) -> set[Key]:
    """Check the cluster and list it, once it answers; an API server may be later than its operator, or busy."""
    deadline_s = time.monotonic() + operator.config.watch_stale_s
    told = False
    while True:
        try:
            await check_definition(operator.api)
            await _find_out(operator)
            if operator.election is not None:
                await check_lease(operator.api, operator.election.namespace, operator.election.name)
            return await operator.resync.fill()
        except NoDefinitionError as error:
            if not operator.hindrance:
                logger.error("waiting: %s", error)
            operator.hindrance = str(error)
            await asyncio.sleep(min(operator.config.retry_max_s, _DEFINITION_S))
        except (ApiError, UnreachableError) as error:
            if isinstance(error, ApiError) and not error.is_passing:
                raise
            if time.monotonic() > deadline_s:
                raise OperatorFailedError(f"The API server does not answer: {error}") from error
            if not told:
                logger.warning("waiting for the API server: %s", error)
                told = True
            await asyncio.sleep(operator.config.retry_base_s)


async def _find_out(operator: Operator) -> None:
    """Whether there is Kueue, and which namespaces can be looked after."""
    kueue, config = operator.kueue, operator.config
    await kueue.discover(operator.api)
    rights = rights_used(kueue=kueue.served)
    operator.left_out = await check_rights(operator.api, config.namespaces, rights)
    operator.namespaces = [namespace for namespace in config.namespaces if namespace not in operator.left_out]
    operator.resync.leave_out(operator.left_out)
    operator.liveness.leave_out(operator.left_out)
    operator.metrics.left_out(operator.left_out)
    if kueue.served:
        operator.liveness.expect(kueue.workloads)


async def _wait_for_namespaces(operator: Operator) -> None:
    """End the process, by raising, when a namespace that was left out can be looked after: a restart takes it up."""
    rights = rights_used(kueue=operator.kueue.served)
    while True:
        await asyncio.sleep(min(operator.config.resync_interval_s, REVIEW_INTERVAL_S))
        for namespace in operator.left_out:
            with contextlib.suppress(ApiError, UnreachableError):
                if await can_look_after(operator.api, namespace, rights):
                    raise OperatorFailedError(f"Namespace {namespace} can be looked after now: a restart takes it up")


async def _run_kopf(operator: Operator, counting: aiohttp.TraceConfig, stop: asyncio.Event) -> None:
    """Run kopf's watches until one fails for good."""

    response_class = operator.intake().response_class(operator.liveness.response_class())

    async def log_in() -> kopf.AiohttpSession:
        return await watch_session(await load_configuration(), response_class, counting)

    registry = kopf.OperatorRegistry()
    register(registry, operator.cache, operator.kueue, operator.queue, log_in)
    tasks = await kopf.spawn_tasks(
        registry=registry,
        settings=operator_settings(inactivity_s=operator.config.watch_inactivity_s),
        clusterwide=not operator.namespaces,
        namespaces=operator.namespaces,
    )
    # kopf has taken the signals, but would wait for the workers' tasks, which are not its own.
    _stop_on_signal(stop)
    try:
        # Not by kopf.run_tasks, which in the end cancels every task that began after it: the workers, whose end would
        # then be told instead of the reason.
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            if getattr(task.exception(), "status", None) == http.HTTPStatus.NOT_FOUND:
                await check_definition(operator.api)
            task.result()
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _watch_over(operator: Operator) -> None:
    """End the process, by raising, when a watch is deaf."""
    while True:
        await asyncio.sleep(WATCHDOG_INTERVAL_S)
        operator.metrics.watch_heard(operator.liveness.last_heard())
        trouble = operator.trouble()
        if trouble:
            raise OperatorFailedError(trouble)


def _after_resync(operator: Operator) -> None:
    operator.poller.keep_only({pod.uid for pod in operator.cache.pods})


def _stop_on_signal(stop: asyncio.Event) -> None:
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)


def _now() -> datetime:
    return datetime.now(UTC)
