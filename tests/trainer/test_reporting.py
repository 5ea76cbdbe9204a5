"""What people see of a training while it goes on."""

import logging

import pytest

from lora_trainer.distributed.reports import Reporter
from lora_trainer.model.device import Device
from lora_trainer.train.callbacks import Step
from lora_trainer.train.reporting import ReportingCallback


def step(number: int, total: int) -> Step:
    """A step that was taken."""
    return Step(
        number=number,
        total=total,
        epoch=0.5,
        loss=2.0,
        learning_rate=1e-4,
        gradient_norm=1.0,
        tokens=100,
        rows=4,
        fill=0.5,
        seconds=20.0,
        tokens_per_second=5.0,
        remaining_seconds=20.0 * (total - number),
    )


@pytest.mark.parametrize(("seconds_a_step", "wanted"), [(0.1, [1, 500, 1000]), (20.0, [1, 4, 7, 10])])
def test_a_long_run_is_never_silent_for_long(
    cpu: Device, caplog: pytest.LogCaptureFixture, seconds_a_step: float, wanted: list[int]
) -> None:
    """Twenty lines are enough for a short run; those of 10,000 slow steps would be hours apart."""
    now = [0.0]
    narrator = ReportingCallback(Reporter(None), cpu, clock=lambda: now[0])
    with caplog.at_level(logging.INFO):
        for number in range(1, wanted[-1] + 1):
            now[0] += seconds_a_step
            narrator.stepped(step(number, 10_000))
    assert [record.getMessage().split("/")[0] for record in caplog.records] == [f"step {number}" for number in wanted]


def test_steps_that_fp16_scales_down_are_no_bad_ones(cpu: Device, monkeypatch: pytest.MonkeyPatch) -> None:
    """An alert counts the bad ones."""
    reporter, seen = Reporter(None), []
    monkeypatch.setattr(reporter, "progress", lambda counters, **_: seen.append(counters))
    narrator = ReportingCallback(reporter, cpu)
    for number, bad in enumerate([False, False, True], start=1):
        narrator.left_out(number, bad=bad)
    assert [(counters.left_out, counters.scaled_down) for counters in seen] == [(0, 1), (0, 2), (1, 2)]
