"""When a status is written at once, and when it waits."""

import dataclasses
from typing import Any

import pytest
from tests.unit.builders import CONFIG, condition_object

from lora_operator.cluster.cache import Key
from lora_operator.running.pacing import Pacing, delay_s, paced, shortest_interval_s
from lora_trainer.contract.reasons import Reason

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


@pytest.mark.parametrize(
    ("before", "after", "waits_s"),
    [
        (NOTHING, status(), 1.0),
        (DEFAULT, status(), 1.0),
        (NOTHING, status(Reason.QUEUED), 1.0),
        (NOTHING, status(Reason.UNSCHEDULABLE), 0.0),
        (NOTHING, status(Reason.CONFIG_INVALID, value="False"), 0.0),
        (BEFORE, {**BEFORE, "conditions": status(Reason.TRAINING, "Step 4")["conditions"]}, 60.0),
        (BEFORE, {**BEFORE, "advice": [{"code": "LowMemory"}]}, 60.0),
        (BEFORE, {**BEFORE, "conditions": status(Reason.EVALUATING)["conditions"]}, 0.0),
        (BEFORE, {**BEFORE, "conditions": status(Reason.TRAINING, value="False")["conditions"]}, 0.0),
        (BEFORE, {**BEFORE, "conditions": status(Reason.OOM_KILLED)["conditions"]}, 3.0),
        (BEFORE, {**BEFORE, "conditions": status(Reason.OOM_KILLED, value="False")["conditions"]}, 0.0),
        (BEFORE, {**BEFORE, "conditions": status(Reason.RESTARTING)["conditions"]}, 0.0),
        (status(Reason.OOM_KILLED), status(Reason.DATASET_INVALID), 0.0),
        (BEFORE, {**BEFORE, "progress": {"step": 4}}, 0.0),
        (BEFORE, {**BEFORE, "observedGeneration": 2}, 0.0),
        (BEFORE, {**BEFORE, "retries": {"OOMKilled": 2}}, 0.0),
        (BEFORE, {**BEFORE, "runSeconds": 5}, 0.0),
        (BEFORE, {**BEFORE, "attempt": 2, "jobName": "tone-2"}, 0.0),
        (BEFORE, {**BEFORE, "podName": "tone-1-x"}, 0.0),
        (BEFORE, {**BEFORE, "conditions": [*BEFORE["conditions"], condition_object("CheckpointSaved")]}, 0.0),
    ],
)
def test_only_sentences_wait_and_the_first_status_for_the_scheduler_or_the_queue(
    before: Status, after: Status, waits_s: float
) -> None:
    """What counts, what ended, and each new reason are written at once."""
    assert delay_s(before, after, wanted_for_s=0, placed=False, longest_s=60) == waits_s
    assert delay_s(before, after, wanted_for_s=0.25, placed=False, longest_s=60) == max(0, waits_s - 0.25)
    assert delay_s(before, after, wanted_for_s=61, placed=False, longest_s=60) == 0


def test_the_scheduler_s_word_ends_the_wait_for_it() -> None:
    """A pod that has a node, or finds none, is news enough."""
    assert delay_s(NOTHING, status(), wanted_for_s=0, placed=True, longest_s=60) == 0


def test_what_is_left_by_a_rounding_error_is_no_wait() -> None:
    """A timer of a fraction of a picosecond fires at the same time again, and again."""
    begun_s, now_s = 0.1, 1.1
    waited_s = now_s - begun_s - 2**-53
    assert 0 < 1.0 - waited_s < 1e-12
    assert delay_s(NOTHING, status(), wanted_for_s=waited_s, placed=False, longest_s=60) == 0


def test_no_wait_is_longer_than_is_set() -> None:
    """Neither for the scheduler nor for other sentences."""
    other = {**BEFORE, "conditions": status(Reason.TRAINING, "Step 4")["conditions"]}
    waits = [
        delay_s(*pair, wanted_for_s=0, placed=False, longest_s=0.5) for pair in ((NOTHING, status()), (BEFORE, other))
    ]
    assert waits == [0.5, 0.5]


def test_a_wait_begins_when_a_status_is_first_wanted_and_ends_with_its_writing() -> None:
    """News that change the sentence again and again do not put it off for ever."""
    now = [100.0]
    pacing, key = Pacing(lambda: now[0], 60), Key("team", "tone")
    sentences = [
        {**BEFORE, "conditions": status(Reason.TRAINING, message)["conditions"]} for message in ("Step 4", "Step 5")
    ]
    assert pacing.delay_s(key, BEFORE, sentences[0], placed=True) == 60
    now[0] += 40
    assert pacing.delay_s(key, BEFORE, sentences[1], placed=True) == 20
    now[0] += 20
    assert pacing.delay_s(key, BEFORE, sentences[1], placed=True) == 0
    pacing.forget(key)
    assert pacing.delay_s(key, BEFORE, sentences[1], placed=True) == 60


@pytest.mark.parametrize(
    ("running", "interval_s"), [(0, 15), (1, 15), (270, 15), (360, 20), (900, 50), (9000, 450), (100_000, 450)]
)
def test_all_trainings_together_report_at_most_18_times_a_second(running: int, interval_s: float) -> None:
    """Below the time after which silence is taken for a stall, though: no training is stopped for being one of many."""
    config = dataclasses.replace(CONFIG, progress_interval_s=15, stall_timeout_s=1800)
    assert shortest_interval_s(config, running) == interval_s


def test_what_is_decided_knows_the_interval() -> None:
    """Few runs are asked as often as is set."""
    config = dataclasses.replace(CONFIG, progress_interval_s=15, stall_timeout_s=1800)
    assert paced(config, running=5) is config
    assert paced(config, running=900) == dataclasses.replace(config, progress_interval_s=50)
