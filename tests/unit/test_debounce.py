"""When a status is written at once, and when it waits."""

import dataclasses
from typing import Any

import pytest
from tests.unit.builders import CONFIG, condition_object

from lora_operator.cluster.store import Key
from lora_operator.controller.debounce import Debounce, is_urgent, progress_interval_s
from lora_trainer.spec.reasons import Reason

Status = dict[str, Any]


def status(reason: Reason = Reason.PENDING, message: str = "", value: str = "Unknown", **changes: Any) -> Status:
    opposite = {"Unknown": "Unknown", "False": "True"}[value]
    conditions = [
        condition_object(kind, holds, reason=reason.value, message=message)
        for kind, holds in (("Complete", value), ("Failed", opposite))
    ]
    return {"observedGeneration": 1, "jobName": "tone-1", "attempt": 1, "conditions": conditions, **changes}


BEFORE = status(Reason.TRAINING, "Step 3", progress={"step": 3}, retries={"OOMKilled": 1})
NOTHING: Status = {}
DEFAULT: Status = {"conditions": [condition_object("Accepted", "Unknown", reason="Pending")]}


REFUSED = [condition_object("Accepted", "False", reason="AdmissionDenied")]


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (BEFORE, {**BEFORE, "conditions": status(Reason.TRAINING, value="False")["conditions"]}),
        (NOTHING, status(Reason.CONFIG_INVALID, value="False")),
        (status(Reason.OOM_KILLED), status(Reason.OOM_KILLED, value="False")),
        (BEFORE, {**BEFORE, "progress": {"step": 4}}),
        (BEFORE, {**BEFORE, "retries": {"OOMKilled": 2}}),
        (BEFORE, {**BEFORE, "runSeconds": 5}),
        (BEFORE, {**BEFORE, "attempt": 2, "jobName": "tone-2"}),
        (NOTHING, {**status(), "conditions": REFUSED}),
        (BEFORE, {**BEFORE, "conditions": REFUSED}),
    ],
)
def test_an_end_a_count_progress_and_a_refusal_are_written_at_once(before: Status, after: Status) -> None:
    """What a crash, or the deletion of a pod, might take away is stored before anything else."""
    assert is_urgent(before, after)


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (NOTHING, status()),
        (DEFAULT, status()),
        (NOTHING, status(Reason.UNSCHEDULABLE)),
        (BEFORE, {**BEFORE, "conditions": status(Reason.TRAINING, "Step 4")["conditions"]}),
        (BEFORE, {**BEFORE, "conditions": status(Reason.EVALUATING)["conditions"]}),
        (BEFORE, {**BEFORE, "advice": [{"code": "LowMemory"}]}),
        (BEFORE, {**BEFORE, "podName": "tone-1-x"}),
        (BEFORE, {**BEFORE, "observedGeneration": 2}),
        (BEFORE, {**BEFORE, "retries": {"OOMKilled": 2}, "conditions": status(Reason.OOM_KILLED)["conditions"]}),
        ({**BEFORE, "conditions": REFUSED}, {**BEFORE, "conditions": [*REFUSED, condition_object("PodsReady")]}),
    ],
)
def test_what_others_will_soon_say_more_of_waits(before: Status, after: Status) -> None:
    """The first status for the scheduler or the queue, a failure for the Job, and sentences for each other."""
    assert not is_urgent(before, after)


def test_a_wait_begins_when_a_status_is_first_wanted_and_ends_with_its_writing() -> None:
    """News that change the sentence again and again do not put it off for ever."""
    now = [100.0]
    debounce, key = Debounce(lambda: now[0], 2), Key("team", "tone")
    sentences = [
        {**BEFORE, "conditions": status(Reason.TRAINING, message)["conditions"]} for message in ("Step 4", "Step 5")
    ]
    assert debounce.wait_s(key, BEFORE, sentences[0]) == 2
    now[0] += 1.5
    assert debounce.wait_s(key, BEFORE, sentences[1]) == 0.5
    assert debounce.wait_s(key, BEFORE, {**BEFORE, "progress": {"step": 4}}) == 0
    now[0] += 0.5
    assert debounce.wait_s(key, BEFORE, sentences[1]) == 0
    debounce.forget(key)
    assert debounce.wait_s(key, BEFORE, sentences[1]) == 2


def test_what_is_left_by_a_rounding_error_is_no_wait() -> None:
    """A timer of a fraction of a picosecond fires at the same time again, and again."""
    now = [0.1]
    debounce, key = Debounce(lambda: now[0], 1), Key("team", "tone")
    debounce.wait_s(key, NOTHING, status())
    now[0] = 1.1 - 2**-51
    assert 0 < 0.1 + 1 - now[0] < 1e-12
    assert debounce.wait_s(key, NOTHING, status()) == 0


@pytest.mark.parametrize(
    ("running", "interval_s"), [(0, 15), (1, 15), (270, 15), (360, 20), (900, 50), (9000, 450), (100_000, 450)]
)
def test_all_trainings_together_report_at_most_18_times_a_second(running: int, interval_s: float) -> None:
    """Below the time after which silence is taken for a stall, though: no training is stopped for being one of many."""
    config = dataclasses.replace(CONFIG, progress_interval_s=15, stall_timeout_s=1800)
    assert progress_interval_s(config, running) == interval_s
