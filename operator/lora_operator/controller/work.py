"""What runs beside kopf, and ends with it: lists, reflectors and, in the process that leads, the workers."""

import asyncio
import contextlib
import gc
import logging
import signal
from collections.abc import Callable, Iterator

from lora_operator.cluster.api import ApiError, UnreachableError
from lora_operator.cluster.lease import RELEASE_S, Election
from lora_operator.controller.checks import check_fields, wait_for_namespaces
from lora_operator.controller.operator import Operator
from lora_operator.controller.supervision import OperatorFailedError, run_together
from lora_operator.controller.workers import run_worker

logger = logging.getLogger(__name__)

WATCHDOG_INTERVAL_S = 1.0
_STOP_S = 5.0


def end_by_signal() -> None:
    """End this process as its kubelet would: kopf stops, cleans up, and is killed where that takes too long."""
    signal.raise_signal(signal.SIGTERM)


class Work:
    """All of it as one task. The first error, of it or of a handler, ends the process: kopf would go on."""

    def __init__(
        self, operator: Operator, election: Election, *, end_process: Callable[[], None] = end_by_signal
    ) -> None:
        self.operator = operator
        self.failure: Exception | None = None
        self._election = election
        self._end_process = end_process
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin."""
        self.operator.follow()
        self._task = asyncio.create_task(self._run(), name="operator")

    async def stop(self) -> None:
        """Finish what was begun, its writes and their Events, within reason, and give the Lease back."""
        operator, task = self.operator, self._task
        operator.queue.close()
        if task is None or task.done():
            return
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_STOP_S):
                await operator.queue.idle()
                await operator.poster.drained()
        task.cancel()
        await asyncio.wait({task}, timeout=RELEASE_S + _STOP_S)

    @contextlib.contextmanager
    def ends_process(self) -> Iterator[None]:
        """Whatever is raised within is the reason with which the process ends, unless it has one already."""
        try:
            yield
        except Exception as error:
            if self.failure is None:
                known = isinstance(error, OperatorFailedError)
                self.failure = error if known else OperatorFailedError(f"{type(error).__name__}: {error}")
                self._end_process()
            raise

    async def _run(self) -> None:
        operator = self.operator
        with contextlib.suppress(OperatorFailedError), self.ends_process():
            await run_together(
                {
                    "housekeeping": keep_house(operator),
                    "watchdog": _watch_over(operator),
                    **{f"list of {lister.path}": lister.heal() for lister in operator.listers},
                    **{f"watch of {reflector.path}": reflector.watch() for reflector in operator.reflectors},
                    "lead": self._lead_once_listed(),
                    **({"namespaces": wait_for_namespaces(operator)} if operator.left_out else {}),
                }
            )

    async def _lead_once_listed(self) -> None:
        await asyncio.gather(
            *(lister.fill() for lister in self.operator.finetune_listers.values()),
            *(reflector.listed.wait() for reflector in self.operator.reflectors),
        )
        # What was listed stays: the garbage collector need not walk over all of it again and again.
        gc.collect()
        gc.freeze()
        await lead(self.operator, self._election)


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
        await operator.events.close()
        await election.release()


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


def check_watches(operator: Operator) -> None:
    """Raise `OperatorFailedError` where kopf's watch is deaf: a restart begins another."""
    for lister in operator.finetune_listers.values():
        if lister.is_watch_deaf:
            raise OperatorFailedError(
                f"The watch of {lister.path} is deaf: two lists have shown what it does not bring"
            )


async def _watch_over(operator: Operator) -> None:
    """Show how long watches have been silent, forever; as `check_watches`."""
    while True:
        await asyncio.sleep(WATCHDOG_INTERVAL_S)
        operator.metrics.watch_heard(operator.last_heard())
        check_watches(operator)
