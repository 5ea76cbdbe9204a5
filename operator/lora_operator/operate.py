"""The running operator: every part made and wired, watched over, and stopped."""

import asyncio
import contextlib
import logging
import random
import signal
import socket
import time
from collections.abc import AsyncIterator, Coroutine
from datetime import UTC, datetime
from typing import Any

import aiohttp
import kopf
from kubernetes.aio.client.api_client import ApiClient
from prometheus_client import CollectorRegistry, disable_created_metrics

from lora_operator import logs
from lora_operator.api import Api, ApiError, UnreachableError
from lora_operator.cache import Cache, Key
from lora_operator.carry_out import TryAgainError
from lora_operator.child_events import ChildEvents
from lora_operator.config import OperatorConfig
from lora_operator.health import make_application, serving
from lora_operator.liveness import WatchLiveness, count_requests
from lora_operator.login import load_configuration, watch_session
from lora_operator.metrics import Metrics
from lora_operator.object_metrics import ObjectCollector
from lora_operator.post_events import EventPoster
from lora_operator.progress_poll import ProgressPoller
from lora_operator.reconcile import Reconciler
from lora_operator.resync import Resync
from lora_operator.self_check import check
from lora_operator.watch import operator_settings, register
from lora_operator.wording import sentence
from lora_operator.work_queue import WorkQueue

logger = logging.getLogger(__name__)

WATCHDOG_INTERVAL_S = 1.0
_STOP_S = 5.0


class OperatorFailedError(Exception):
    """A part that must run has ended, or a watch is deaf: the process ends, and whoever runs it starts it again."""


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
            namespaces=config.namespaces,
            interval_s=config.resync_interval_s,
            wake=self.queue.add,
        )
        self.reconciler = Reconciler(
            api=self.api,
            cache=self.cache,
            config=config,
            poller=self.poller,
            events=ChildEvents(self.api, interval_s=config.pending_check_s, clock=time.monotonic),
            poster=self.poster,
            observer=metrics,
            now=_now,
        )
        self.filled = False

    def trouble(self) -> str:
        """Why the process is of no use any more; empty where all is well."""
        silence_s, path = self.liveness.silent_for_s()
        if silence_s > self.config.watch_stale_s:
            return f"The watch of {path} has brought neither event nor bookmark for {silence_s:.0f} s"
        return ""

    def unready(self) -> str:
        """Why runs are not looked after yet; empty where they are."""
        if not self.filled:
            return "The first list of the cluster is not complete"
        return "" if self.liveness.all_heard else "Not every watch has begun"


@contextlib.asynccontextmanager
async def _operator(config: OperatorConfig) -> AsyncIterator[tuple[Operator, aiohttp.TraceConfig]]:
    disable_created_metrics()
    registry = CollectorRegistry()
    metrics = Metrics(registry)
    counting = count_requests(metrics)
    configuration = await load_configuration([counting])
    async with ApiClient(configuration) as client:
        operator = Operator(config, client, metrics, registry)
        metrics.queue_depth.set_function(lambda: len(operator.queue))
        registry.register(ObjectCollector(operator.cache.finetunes))
        yield operator, counting


async def operate(config: OperatorConfig) -> None:
    """Run until SIGTERM or SIGINT. Raises where the operator cannot start or go on; the text is for a person."""
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
                working.cancel()
                await asyncio.wait({working}, timeout=_STOP_S)
            elif not working.cancelled():
                working.result()


async def _work(operator: Operator, counting: aiohttp.TraceConfig, stop: asyncio.Event) -> None:
    await _answering(operator)
    for key in await operator.resync.fill():
        operator.queue.add(key)
    operator.filled = True
    parts = {
        "timers": operator.queue.run_timers(),
        "event poster": operator.poster.run(),
        "resync": operator.resync.run(lambda: _after_resync(operator)),
        "watchdog": _watch_over(operator),
        "watches": _run_kopf(operator, counting, stop),
        **{f"worker {number}": _run_worker(operator) for number in range(operator.config.workers)},
    }
    logger.info("ready to work on %d LoRAFineTunes", len(operator.cache.finetunes))
    try:
        await _run_together(parts)
    finally:
        await operator.poller.close()


async def _run_together(parts: dict[str, Coroutine[Any, Any, None]]) -> None:
    """Run parts that never end by themselves; the first that does ends all, with the reason."""
    tasks = {asyncio.create_task(part, name=name) for name, part in parts.items()}
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        ended = done.pop()
        error = None if ended.cancelled() else ended.exception()
        if isinstance(error, OperatorFailedError):
            raise error
        raise OperatorFailedError(f"The {ended.get_name()} ended: {error or 'without a reason'}") from error
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _answering(operator: Operator) -> None:
    """Check the cluster, once it answers; an API server may be later than its operator."""
    deadline_s = time.monotonic() + operator.config.watch_stale_s
    told = False
    while True:
        try:
            await check(operator.api, operator.config.namespaces)
        except UnreachableError as error:
            if time.monotonic() > deadline_s:
                raise OperatorFailedError(f"The API server does not answer: {error}") from error
            if not told:
                logger.warning("waiting for the API server: %s", error)
                told = True
            await asyncio.sleep(operator.config.retry_base_s)
        else:
            return


async def _run_worker(operator: Operator) -> None:
    while True:
        key = await operator.queue.take()
        began_s = time.monotonic()
        finetune = operator.cache.finetunes.get(key)
        with logs.turn(key, finetune.uid if finetune else ""):
            result = await _take_turn(operator, key)
        operator.metrics.reconciles.labels(result).inc()
        operator.metrics.reconcile_seconds.observe(time.monotonic() - began_s)


async def _take_turn(operator: Operator, key: Key) -> str:
    """Work on one LoRAFineTune, and put it back into the queue where it is to be looked at again; how it went."""
    queue = operator.queue
    try:
        wait_s = await operator.reconciler.reconcile(key, failures=queue.failures(key))
    except (ApiError, UnreachableError, TryAgainError) as error:
        refusal = error if isinstance(error, ApiError) else None
        if refusal is not None and refusal.code == 401:
            # Credentials are read at the start, and a service account's every minute: a restart reads all anew.
            raise OperatorFailedError(f"The API server accepts the credentials no more: {refusal.message}") from error
        delay_s = queue.failed(key, at_least_s=refusal.retry_after_s if refusal else 0.0)
        fields = logs.about(
            key,
            type="retry",
            code=refusal.code if refusal else None,
            reason=refusal.reason if refusal else "",
            retryInSeconds=round(delay_s, 3),
            failures=queue.failures(key),
        )
        logger.warning("tried again in %.1f s: %s", delay_s, sentence(str(error)), extra=fields)
        return "error" if refusal is not None and not refusal.is_passing else "retry"
    except Exception:
        delay_s = queue.failed(key)
        fields = logs.about(key, type="retry", retryInSeconds=round(delay_s, 3), failures=queue.failures(key))
        logger.exception("unexpected; tried again in %.1f s", delay_s, extra=fields)
        return "error"
    queue.done(key, requeue_after_s=wait_s)
    return "success"


async def _run_kopf(operator: Operator, counting: aiohttp.TraceConfig, stop: asyncio.Event) -> None:
    """Run kopf's watches until one fails for good."""

    async def log_in() -> kopf.AiohttpSession:
        configuration = await load_configuration()
        return await watch_session(configuration, operator.liveness.response_class(), counting)

    registry = kopf.OperatorRegistry()
    register(registry, operator.cache, operator.queue.add, log_in)
    ours = asyncio.all_tasks()
    tasks = await kopf.spawn_tasks(
        registry=registry,
        settings=operator_settings(),
        clusterwide=not operator.config.namespaces,
        namespaces=operator.config.namespaces,
    )
    # kopf has taken the signals, but would wait for the workers' tasks, which are not its own.
    _stop_on_signal(stop)
    await kopf.run_tasks(tasks, ignored=ours)


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
