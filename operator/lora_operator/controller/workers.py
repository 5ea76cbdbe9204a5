"""The workers: each takes a key from the queue, has it reconciled, and puts it back with the delay that it asks for."""

import asyncio
import logging
import time

from lora_operator.cluster.api import ApiError, UnreachableError
from lora_operator.cluster.apply import TryAgainError
from lora_operator.cluster.store import Key, Stores
from lora_operator.controller import logs
from lora_operator.controller.metrics import Metrics
from lora_operator.controller.reconcile import Reconciler
from lora_operator.controller.supervision import OperatorFailedError
from lora_operator.controller.work_queue import WorkQueue
from lora_operator.model.wording import sentence

logger = logging.getLogger(__name__)


async def run_worker(queue: WorkQueue[Key], stores: Stores, reconciler: Reconciler, metrics: Metrics) -> None:
    """Work on one key after the other, forever. Raises `OperatorFailedError` where the credentials are refused."""
    while True:
        key = await queue.take()
        began_s = time.monotonic()
        finetune = stores.finetunes.get(key)
        with logs.turn(key, finetune.uid if finetune else ""):
            result = await _take_turn(queue, reconciler, key)
        metrics.reconciles.labels(result).inc()
        metrics.reconcile_seconds.observe(time.monotonic() - began_s)
        await asyncio.sleep(0)  # thousands of turns that wait for nothing would keep watches and probes waiting


async def _take_turn(queue: WorkQueue[Key], reconciler: Reconciler, key: Key) -> str:
    """Work on one LoRAFineTune, and put it back into the queue where it is to be looked at again; how it went."""
    try:
        wait_s = await reconciler.reconcile(key)
    except (ApiError, UnreachableError, TryAgainError) as error:
        refusal = error if isinstance(error, ApiError) else None
        if refusal is not None and refusal.code == 401 and await reconciler.is_locked_out(key):
            # Credentials are read at the start, and a service account's every minute: a restart reads everything again.
            raise OperatorFailedError(f"The API server no longer accepts the credentials: {refusal.message}") from error
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
