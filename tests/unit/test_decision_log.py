"""One line for each decision that had an effect."""

import logging
from typing import Any

import pytest
from tests.unit.builders import CONFIG, NOW, make_finetune, make_job, running_pod, with_status
from tests.unit.deciding import decide

from lora_operator.controller.logs import DecisionLine
from lora_operator.model.objects import FineTune, Observed, Plan
from lora_trainer.spec.progress import Phase, Progress


def running(step: int, before: FineTune | None = None) -> tuple[FineTune, Plan]:
    """A run that trains, and the plan at that step."""
    finetune = before or make_finetune()
    observed = Observed(
        jobs=(make_job(),),
        pods=(running_pod(),),
        progress=Progress(phase=Phase.TRAINING, step=step, total_steps=9),
    )
    return finetune, decide(finetune, observed, CONFIG, NOW)


def line_of(caplog: pytest.LogCaptureFixture, finetune: FineTune, plan: Plan, *wrote: str, cut: bool = False) -> Any:
    """The record of a plan of which that was written; `cut`: a request failed then."""
    caplog.clear()
    with caplog.at_level(logging.DEBUG, "lora_operator.controller.logs"):
        try:
            with DecisionLine(finetune, plan) as line:
                for what in wrote:
                    line.wrote_status() if what == "status" else line.wrote("created", "Job", what)
                if cut:
                    raise OSError
        except OSError:
            pass
    (record,) = caplog.records
    return record


def test_a_change_of_state_is_reported_with_the_one_before_and_what_was_written(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """At INFO."""
    finetune, plan = running(1)
    record = line_of(caplog, finetune, plan, "j", "status")
    assert (record.levelname, record.reason, record.attempt) == ("INFO", "Training", 1)
    assert record.wrote == ["created Job/j", "status"]
    assert record.getMessage().startswith("Training: Step 1/9")


def test_nothing_but_progress_and_nothing_at_all_are_reported_at_debug(caplog: pytest.LogCaptureFixture) -> None:
    """A thousand runs would fill the log."""
    first, plan = running(1)
    on, further = running(2, with_status(first, plan.status))
    assert line_of(caplog, on, further, "status").levelname == "DEBUG"
    assert line_of(caplog, on, further).levelname == "DEBUG"
    again, same = running(2, with_status(on, {**further.status, "podName": "another"}))
    assert line_of(caplog, again, same, "status").levelname == "INFO"


def test_what_was_written_before_a_request_failed_is_reported_without_the_rest(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """The state was not changed, as far as anybody can read."""
    before = with_status(make_finetune(), decide(make_finetune(), Observed(), CONFIG, NOW).status)
    finetune, plan = running(1, before)
    assert line_of(caplog, finetune, plan, "j", "status").previous == "Pending"
    record = line_of(caplog, finetune, plan, "j", cut=True)
    assert record.levelname == "INFO"
    assert record.wrote == ["created Job/j"]
    assert record.previous == ""
