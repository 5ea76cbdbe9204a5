"""What a process does from its first turn on, and when it ends."""

import asyncio

import pytest
from tests.unit.builders import NAMESPACE
from tests.unit.test_standby import operator_with

from lora_operator.running import operate
from lora_operator.running.operator import Operator

USELESS = {"namespace": NAMESPACE, "useful": "false"}


def counted(operator: Operator) -> float | None:
    return operator.registry.get_sample_value("lorafinetune_gpu_seconds_total", USELESS)


@pytest.mark.parametrize("ends", [False, True])
async def test_what_is_counted_at_first_is_shown_once_a_scrape_has_seen_0_or_the_process_ends(
    monkeypatch: pytest.MonkeyPatch, *, ends: bool
) -> None:
    """And what is counted later, at once."""
    monkeypatch.setattr(operate, "FIRST_SCRAPE_S", 3600.0 if ends else 0.05)
    operator = operator_with()
    operator.metrics.runs.begin_at_zero([NAMESPACE])
    leading = asyncio.create_task(operate.lead(operator))
    try:
        await asyncio.sleep(0)  # until it waits for the first of its parts
        assert operator.working
        operator.metrics.runs._add(operator.metrics.runs.gpu_seconds.labels(*USELESS.values()).inc, 7)
        assert counted(operator) == 0.0
        await (operate._wind_down(operator) if ends else asyncio.sleep(0.2))
        assert counted(operator) == 7.0
        operator.metrics.runs._add(operator.metrics.runs.gpu_seconds.labels(*USELESS.values()).inc, 2)
        assert counted(operator) == 9.0
    finally:
        leading.cancel()
        await asyncio.wait({leading})
