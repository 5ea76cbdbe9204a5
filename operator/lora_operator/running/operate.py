"""The running operator: its parts run side by side, are watched over, and are stopped in order."""

import asyncio
import contextlib
import gc
import http
import logging
import signal
from collections.abc import AsyncIterator

import aiohttp
import kopf
from kubernetes.aio.client.api_client import ApiClient
from prometheus_client import CollectorRegistry, disable_created_metrics

from lora_operator.cluster.api import Api, ApiError, UnreachableError
from lora_operator.cluster.lease import RELEASE_S, Election
from lora_operator.cluster.login import kopf_session, load_configuration
from lora_operator.cluster.reflector import Reflector
from lora_operator.running.health import make_application, serving
from lora_operator.running.identity import own_identity
from lora_operator.running.metrics import Metrics, count_requests
from lora_operator.running.operator import Operator, make_election, make_operator
from lora_operator.running.prepare import prepare, wait_for_namespaces
from lora_operator.running.self_check import check_definition, check_fields
from lora_operator.running.supervision import OperatorFailedError, end_within, run_together
from lora_operator.running.watch import kopf_settings, register
from lora_operator.running.workers import run_worker
from lora_operator.views.config import OperatorConfig

logger = logging.getLogger(__name__)

WATCHDOG_INTERVAL_S = 1.0
_STOP_S = 5.0


@contextlib.asynccontextmanager
async def _operator(config: OperatorConfig) -> AsyncIterator[tuple[Operator, Election, aiohttp.TraceConfig]]:
    disable_created_metrics()
    registry = CollectorRegistry()
    metrics = Metrics(registry)
    counting = count_requests(metrics)
    configuration = await load_configuration([counting])
    async with ApiClient(configuration) as client:
        api, identity = Api(client), own_identity()
        election = make_election(config, api, identity)
        operator = make_operator(config, api, metrics=metrics, registry=registry, identity=identity)
        metrics.queue_depth.set_function(lambda: len(operator.queue))
        metrics.leader.set_function(lambda: float(operator.working and election.leading))
        yield operator, election, counting


async def operate(config: OperatorConfig) -> None:
    """Run until SIGTERM or SIGINT. Raises where the operator cannot start or go on; the text is for a person."""
    # Lists make and drop documents by the hundred, which Python's own threshold takes for garbage: twice the CPU.
    gc.set_threshold(10_000, 20, 50)
    stop = asyncio.Event()
    _stop_on_signal(stop)
    async with _operator(config) as (operator, election, counting):
        application = make_application(operator.registry, ready=operator.unready)
        async with serving(application, config.http_port):
            working = asyncio.create_task(_work(operator, election, counting, stop), name="operator")
            stopping = asyncio.create_task(stop.wait(), name="stop")
            await asyncio.wait({working, stopping}, return_when=asyncio.FIRST_COMPLETED)
            stopping.cancel()
            if not working.done():
                logger.info("stopping")
                await _wind_down(operator)
                working.cancel()
                await asyncio.wait({working}, timeout=RELEASE_S + _STOP_S)
            elif not working.cancelled():
                failure = working.exception()
                if failure is not None:
                    end_within(_STOP_S, failure)
                working.result()


async def _work(operator: Operator, election: Election, counting: aiohttp.TraceConfig, stop: asyncio.Event) -> None:
    await prepare(operator, election)
    operator.follow()
    parts = {
        "housekeeping": keep_house(operator),
        **{f"list of {reflector.path}": reflector.heal() for reflector in operator.reflectors},
        "watchdog": _watch_over(operator),
        "framework": _run_kopf(operator, counting, stop),
        **{f"watch of {reflector.path}": _follow(operator, reflector) for reflector in operator.reflectors},
        "lead": _lead_once_listed(operator, election),
        **({"namespaces": wait_for_namespaces(operator)} if operator.left_out else {}),
    }
    await run_together(parts)


async def keep_house(operator: Operator) -> None:
    """Drop what belongs to nobody any more, forever.

    Raises `OperatorFailedError` when Kueue came, went or was exchanged, as its watch is begun at the start alone, and
    `NoDefinitionError` when an older definition took the place of ours.
    """
    while True:
        await operator.sleep(operator.config.resync_interval_s)
        operator.forget()
        try:
            await check_fields(operator.api)
            if await operator.kueue.has_changed(operator.api):
                raise OperatorFailedError("Kueue was installed, removed or exchanged: a restart takes note of it")
        except (ApiError, UnreachableError) as error:
            logger.warning("what the cluster has is asked again in some minutes: %s", error)


async def _lead_once_listed(operator: Operator, election: Election) -> None:
    for reflector in operator.reflectors:
        await reflector.listed.wait()
    # What was listed stays: the garbage collector need not walk over all of it again and again.
    gc.collect()
    gc.freeze()
    await lead(operator, election)


async def lead(operator: Operator, election: Election) -> None:
    """Work on runs, as long as the Lease is held."""
    await election.acquire()
    operator.begin_work()
    logger.info("ready to work on %d LoRAFineTunes", len(operator.stores.finetunes))
    queue, reconciler = operator.queue, operator.reconciler
    parts = {
        "event poster": operator.poster.run(),
        "lease": election.keep(),
        **{
            f"worker {number}": run_worker(queue, operator.stores, reconciler, operator.metrics)
            for number in range(operator.config.workers)
        },
    }
    try:
        await run_together(parts)
    finally:
        await operator.poller.close()
        await election.release()


async def _wind_down(operator: Operator) -> None:
    """Take no more work, and finish what was begun: its writes and their Events, within reason."""
    operator.queue.close()
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(_STOP_S):
            await operator.queue.idle()
            await operator.poster.drained()


async def _follow(operator: Operator, reflector: Reflector) -> None:
    """Follow a kind. Raises `NoDefinitionError` where the definition is gone, and as the reflector does."""
    try:
        await reflector.watch()
    except ApiError as error:
        if error.code == http.HTTPStatus.NOT_FOUND:
            await check_definition(operator.api)
        raise


async def _run_kopf(operator: Operator, counting: aiohttp.TraceConfig, stop: asyncio.Event) -> None:
    """Run kopf until a part of it fails for good."""

    async def log_in() -> kopf.AiohttpSession:
        return await kopf_session(await load_configuration([counting]))

    registry = kopf.OperatorRegistry()
    register(registry, log_in)
    tasks = await kopf.spawn_tasks(
        registry=registry,
        settings=kopf_settings(),
        clusterwide=not operator.namespaces,
        namespaces=operator.namespaces,
    )
    # kopf has taken the signals, but would wait for the workers' tasks, which are not its own.
    _stop_on_signal(stop)
    try:
        # Not by kopf.run_tasks, which in the end cancels every task that began after it: the workers, whose end would
        # then be reported instead of the reason.
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            task.result()
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _watch_over(operator: Operator) -> None:
    """End the process, by raising, when a watch is deaf, or brings the past."""
    while True:
        await asyncio.sleep(WATCHDOG_INTERVAL_S)
        operator.metrics.watch_heard(operator.last_heard())


def _stop_on_signal(stop: asyncio.Event) -> None:
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
