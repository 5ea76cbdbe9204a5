"""What runs beside kopf: lists, reflectors, the watchdog and, in the process that leads, the workers."""

import asyncio
import contextlib
import gc
import logging

from lora_operator.cluster.lease import RELEASE_S
from lora_operator.running.operator import Operator
from lora_operator.running.prepare import wait_for_namespaces
from lora_operator.running.resync import resync
from lora_operator.running.supervision import OperatorFailedError, run_together
from lora_operator.running.workers import run_worker

logger = logging.getLogger(__name__)

WATCHDOG_INTERVAL_S = 1.0
_STOP_S = 5.0


def start(operator: Operator) -> None:
    """Begin; whatever ends by itself ends the process."""

    def ended(task: asyncio.Task[None]) -> None:
        error = None if task.cancelled() else task.exception()
        if isinstance(error, Exception):
            operator.fail(error)

    operator.follow()
    operator.task = asyncio.create_task(_work(operator), name="operator")
    operator.task.add_done_callback(ended)


async def stop(operator: Operator) -> None:
    """Take no more work, finish what was begun, its writes and their Events, within reason, and give the Lease back."""
    operator.queue.close()
    task = operator.task
    if task is None or task.done():
        return
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(_STOP_S):
            await operator.queue.idle()
            await operator.poster.drained()
    task.cancel()
    await asyncio.wait({task}, timeout=RELEASE_S + _STOP_S)


async def _work(operator: Operator) -> None:
    parts = {
        "resync": resync(
            operator.api,
            operator.kueue,
            operator.followed,
            interval_s=operator.config.resync_interval_s,
            after=operator.forget,
        ),
        "watchdog": _watch_over(operator),
        **{f"watch of {reflector.path}": reflector.run() for reflector in operator.reflectors},
        "lead": _lead_once_listed(operator),
        **({"namespaces": wait_for_namespaces(operator)} if operator.left_out else {}),
    }
    await run_together(parts)


async def _lead_once_listed(operator: Operator) -> None:
    await asyncio.gather(
        *(beside.fill() for beside in operator.lists.values()),
        *(reflector.listed.wait() for reflector in operator.reflectors),
    )
    # What was listed stays: the garbage collector need not walk over all of it again and again.
    gc.collect()
    gc.freeze()
    await lead(operator)


async def lead(operator: Operator) -> None:
    """Work on runs, with leader election as long as the lease is held."""
    election = operator.election
    if election is not None:
        await election.acquire()
    operator.begin_work()
    logger.info("ready to work on %d LoRAFineTunes", len(operator.cache.finetunes))
    queue, reconciler = operator.queue, operator.reconciler
    parts = {
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


async def _watch_over(operator: Operator) -> None:
    """End the process, by raising, when a watch is deaf, or brings the past."""
    while True:
        await asyncio.sleep(WATCHDOG_INTERVAL_S)
        operator.metrics.watch_heard(operator.last_heard())
        trouble = operator.trouble()
        if trouble:
            raise OperatorFailedError(trouble)
