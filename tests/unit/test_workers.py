"""What a worker does, and says, when a turn fails."""

import asyncio
import logging
from typing import TYPE_CHECKING, Any, cast

import pytest
from prometheus_client import CollectorRegistry

from lora_operator.cluster.api import ApiError, UnreachableError
from lora_operator.cluster.apply import TryAgainError
from lora_operator.cluster.store import Key, Stores
from lora_operator.controller.metrics import Metrics
from lora_operator.controller.supervision import OperatorFailedError
from lora_operator.controller.work_queue import WorkQueue
from lora_operator.controller.workers import run_worker

if TYPE_CHECKING:
    from lora_operator.controller.reconcile import Reconciler

KEY = Key("team", "tone")


class Failing:
    """A reconciler whose turns fail one after the other, as told; then it is done."""

    def __init__(self, *errors: Exception, locked_out: bool = False) -> None:
        self.errors = list(errors)
        self.locked_out = locked_out
        self.done = asyncio.Event()

    async def reconcile(self, key: Key, *, failures: int = 0) -> float | None:
        """One turn."""
        if self.errors:
            raise self.errors.pop(0)
        self.done.set()
        return None

    async def is_locked_out(self, key: Key) -> bool:
        """What a read of its own says of the credentials."""
        return self.locked_out


async def work(reconciler: Failing) -> CollectorRegistry:
    """Let a worker go on until the turn that goes well."""
    registry = CollectorRegistry()
    queue: WorkQueue[Key] = WorkQueue(base_s=0.001, max_s=0.001, random=lambda: 1.0)
    queue.add(KEY)
    worker = asyncio.create_task(run_worker(queue, Stores(), cast("Reconciler", reconciler), Metrics(registry)))
    waiting = asyncio.create_task(reconciler.done.wait())
    await asyncio.wait({worker, waiting}, return_when=asyncio.FIRST_COMPLETED)
    tasks = [worker, waiting]
    for task in tasks:
        task.cancel()
    results = await asyncio.gather(*tasks, return_exceptions=True)
    if isinstance(results[0], OperatorFailedError):
        raise results[0]
    return registry


async def test_each_failure_is_one_line_with_its_code_how_often_and_when_it_is_tried_again(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Refused, unreachable, in between, and unforeseen; all are tried again."""
    errors = (
        ApiError(500, "InternalError", "etcd is away"),
        UnreachableError("no answer"),
        TryAgainError("busy"),
        RuntimeError("a bug"),
    )
    with caplog.at_level(logging.WARNING, "lora_operator"):
        registry = await work(Failing(*errors))
    stated: list[Any] = list(caplog.records)
    assert [(r.type, r.code if hasattr(r, "code") else None, r.failures) for r in stated] == [
        ("retry", 500, 1),
        ("retry", None, 2),
        ("retry", None, 3),
        ("retry", None, 4),
    ]
    assert all(r.retryInSeconds == 0.001 and r.finetune == KEY for r in stated)
    assert [r.levelname for r in stated] == ["WARNING", "WARNING", "WARNING", "ERROR"]
    total = "lora_operator_reconcile_total"
    assert [registry.get_sample_value(total, {"result": result}) for result in ("retry", "error")] == [3, 1]


async def test_a_turn_waits_as_long_as_the_server_asks_for(caplog: pytest.LogCaptureFixture) -> None:
    """However soon it would be tried again otherwise."""
    with caplog.at_level(logging.WARNING, "lora_operator"):
        await work(Failing(ApiError(429, "TooManyRequests", "slow down", retry_after_s=0.05)))
    (stated,) = list[Any](caplog.records)
    assert stated.retryInSeconds == 0.05


async def test_credentials_that_are_refused_end_the_process() -> None:
    """A restart reads them anew."""
    with pytest.raises(OperatorFailedError, match="no longer accepts the credentials: expired"):
        await work(Failing(ApiError(401, "Unauthorized", "expired"), locked_out=True))


async def test_a_webhook_that_answers_401_ends_no_process() -> None:
    """One tenant's webhook would stop the operator for all: a read, of which no webhook is asked, has to confirm it."""
    denial = ApiError(401, "Unauthorized", 'admission webhook "costs.example" denied the request: no budget')
    registry = await work(Failing(denial, denial))
    assert registry.get_sample_value("lora_operator_reconcile_total", {"result": "error"}) == 2


async def test_thousands_of_turns_that_wait_for_nothing_leave_the_loop_to_others() -> None:
    """After a start over finished runs watches and probes would not be served for seconds."""
    queue: WorkQueue[Key] = WorkQueue(base_s=1, max_s=1, random=lambda: 1.0)
    for number in range(1000):
        queue.add(Key("team", f"done-{number}"))
    reconciler, metrics = cast("Reconciler", Failing()), Metrics(CollectorRegistry())
    worker = asyncio.create_task(run_worker(queue, Stores(), reconciler, metrics))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert len(queue) > 900
    worker.cancel()
