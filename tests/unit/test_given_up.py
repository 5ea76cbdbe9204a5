"""What a run that failed leaves behind: its Job is stopped, also one that lost its labels and is in no watch."""

from datetime import timedelta
from typing import Any

import pytest
from tests.unit.builders import NOW, condition_object, job_name
from tests.unit.turns import KEY, Object, World

from lora_operator.cluster.api import ApiError
from lora_operator.views.names import PREFLIGHT, TRAIN
from lora_operator.views.wording import instant


def given_up(ago: timedelta = timedelta(minutes=1), **changes: Any) -> Object:
    """The status of a run that the operator gave up so long ago."""
    return {
        "attempt": 1,
        "jobName": job_name(),
        "completionTime": instant(NOW - ago),
        "observedGeneration": 1,
        "conditions": [
            condition_object("Complete", "False", reason="PendingTimeout"),
            condition_object("Failed", "True", reason="PendingTimeout", message="x"),
        ],
        **changes,
    }


def deletions(world: World) -> list[str]:
    """What was to be deleted."""
    return [line.rpartition("/")[2] for line in world.server.asked if line.startswith("DELETE")]


@pytest.mark.parametrize("stage", [TRAIN, PREFLIGHT])
async def test_an_operator_that_is_started_after_a_verdict_stops_a_job_without_labels(stage: str) -> None:
    """The one before was killed between the verdict and the deletion."""
    status = given_up()
    if stage == PREFLIGHT:
        passed = condition_object("PreflightPassed", "False", reason="PendingTimeout", message="x")
        status = {**given_up(attempt=0), "conditions": [*status["conditions"], passed]}
    world = World(status=status, stage=stage)
    world.strip({}, "30", stage)
    world.cache.jobs.acknowledge(KEY)
    await world.turn()
    assert deletions(world) == [job_name(stage=stage)]


@pytest.mark.parametrize(
    ("status", "read"),
    [
        (given_up(), 1),
        (given_up(timedelta(days=2)), 0),
        (given_up(conditions=[condition_object("Complete", reason="Succeeded", message="ok")]), 0),
        (given_up(attempt=0), 0),
    ],
    ids=["it failed lately", "long ago", "it succeeded", "it never had a Job"],
)
async def test_only_a_run_that_failed_lately_has_a_job_that_is_not_known_read(status: Object, read: int) -> None:
    """Thousands of finished runs cost an operator's start nothing."""
    world = World(status=status)
    world.cache.jobs.mark_deleted(world.cache.jobs.places()[0], "job-1")
    world.server.job = None
    await world.turn()
    assert sum("/jobs/" in line for line in world.server.asked) == read
    assert deletions(world) == []


async def test_a_job_that_is_known_to_the_end_is_not_read_for_it() -> None:
    """It has ended by itself."""
    world = World(status=given_up())
    world.tell_job("30", status={"conditions": [condition_object("Failed", reason="BackoffLimitExceeded")]})
    await world.turn()
    assert not [line for line in world.server.asked if "/jobs/" in line]


async def test_a_deletion_that_meets_another_change_is_tried_again() -> None:
    """It is no precondition that failed: the Job goes on, and holds its GPUs."""
    world = World(status=given_up())
    request = world.server.request

    async def changed(method: str, path: str, query: Any = None, **details: Any) -> Object:
        if method == "DELETE":
            raise ApiError(409, "Conflict", "the object has been modified; please apply your changes to the latest")
        return await request(method, path, query, **details)

    world.server.request = changed  # type: ignore[method-assign, assignment]
    with pytest.raises(ApiError, match="modified"):
        await world.turn()
