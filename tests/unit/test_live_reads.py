"""What is read in the same turn before an end without proof: neither lost labels nor other pods hide a success."""

from typing import Any

import pytest
from tests.unit.builders import NAMESPACE, NOW, UID, condition_object, job_name, make_job_object, make_summary
from tests.unit.turns import KEY, Object, World, pod_at

from lora_operator.cluster.api import JOBS
from lora_operator.cluster.cache import Key
from lora_operator.views.names import CONTROLLER_UID_LABEL, QUEUE_LABEL
from lora_operator.views.wording import instant
from lora_trainer.contract.exit_codes import ExitCode

JOB = "job-1"
ATTEMPTED = {"attempt": 1, "jobName": job_name(), "conditions": []}
FAILED = {"failed": 1, "conditions": [condition_object("Failed", reason="BackoffLimitExceeded")]}
SUCCEEDED = {"succeeded": 1, "conditions": [condition_object("Complete")]}


def ended(code: int, message: str = "") -> Object:
    """The state of a trainer that has ended."""
    return {"terminated": {"exitCode": code, "reason": "Error", "message": message, "finishedAt": instant(NOW)}}


def unlabelled_success(**changes: Any) -> Object:
    """A pod with a verified result that no watch of ours shows: all its labels but the Job controller's are gone."""
    pod = pod_at("29", phase="Succeeded", state=ended(0, make_summary().to_message()), **changes)
    pod["metadata"]["labels"] = {CONTROLLER_UID_LABEL: pod["metadata"]["ownerReferences"][0]["uid"]}
    return pod


async def test_a_success_of_an_attempt_that_nobody_noted_is_found_without_labels() -> None:
    """The operator made its Job and was killed before the status; then somebody took the labels off both."""
    world = World(status=ATTEMPTED)
    world.cache.jobs.mark_deleted(Key(NAMESPACE, job_name()), JOB)
    world.cache.jobs.acknowledge(KEY)
    done = make_job_object(attempt=2, uid="job-2", status=SUCCEEDED, version="80")
    done["metadata"]["labels"] = {}
    world.server.job, world.server.conflict = done, True
    world.server.pods = [unlabelled_success(attempt=2, job_uid="job-2")]
    await world.turn()
    assert world.condition("Complete")["status"] == "True"


def bare(world: World, attempt: int = 1) -> None:
    """The Job of this attempt has lost its labels, is in no watch, and gets them back by a patch."""
    (known,) = world.cache.jobs
    world.cache.jobs.mark_deleted(Key(NAMESPACE, known.name), known.uid)
    world.cache.jobs.acknowledge(KEY)
    job = make_job_object(attempt=attempt, version="80")
    world.server.patched = make_job_object(attempt=attempt, version="81")
    world.server.job = {**job, "metadata": {**job["metadata"], "labels": {}}}


def held(status: Object | None = None) -> World:
    """A run in a queue that its user holds."""
    world = World(spec={"suspend": True}, status=status)
    metadata = {**world.server.finetune["metadata"], "labels": {QUEUE_LABEL: "gpus"}, "resourceVersion": "8"}
    world.server.finetune = {**world.server.finetune, "metadata": metadata}
    world.cache.finetunes.put(world.server.finetune)
    return world


async def test_a_held_run_is_said_to_have_no_job_of_its_next_attempt_after_a_live_read_alone() -> None:
    """The first is gone, and the second, of which no status tells, has lost its labels."""
    world = held(status=ATTEMPTED)
    bare(world, attempt=2)
    await world.turn()
    assert [job.attempt for job in world.cache.jobs.of(KEY, UID)] == [2]


async def test_nothing_is_read_for_a_held_run_of_whose_status_all_is_stored_that_can_be() -> None:
    """The definition in the cluster is older, and lacks a field: what is written again and again is no news."""
    world = held()
    world.cache.jobs.remove(world.server.job or {})
    world.server.job, world.server.unknown = None, "observedGeneration"
    await world.turn()
    assert f"GET {JOBS.path(NAMESPACE, job_name())}" in world.server.asked
    asked = len(world.server.asked)
    await world.turn()
    assert len(world.server.asked) == asked


@pytest.mark.parametrize(
    "uncounted",
    [
        {"state": ended(1), "conditions": (condition_object("DisruptionTarget", reason="TerminationByKubelet"),)},
        {"state": ended(ExitCode.TERMINATED)},
        {"state": ended(75)},
    ],
    ids=["evicted", "deleted", "failed"],
)
async def test_a_pod_that_counts_for_something_else_hides_no_success(uncounted: dict[str, Any]) -> None:
    """As many pods are known as the Job counts, and the one that succeeded is not among them."""
    world = World(status=ATTEMPTED)
    world.tell_job("30", status=SUCCEEDED)
    world.cache.pods.put(pod_at("21", name="first", phase="Failed", **uncounted))
    world.server.pods = [unlabelled_success(name="second")]
    await world.turn()
    assert world.condition("Complete")["status"] == "True"


async def test_a_pod_that_the_job_does_not_count_stands_for_no_failure() -> None:
    """The reason of the run is that of the pod that failed, not of one that was evicted."""
    world = World(status=ATTEMPTED)
    world.tell_job(
        "30", status={"failed": 1, "conditions": [condition_object("Failed", reason="BackoffLimitExceeded")]}
    )
    evicted = (condition_object("DisruptionTarget", reason="TerminationByKubelet"),)
    world.cache.pods.put(pod_at("21", name="first", phase="Failed", state=ended(143), conditions=evicted))
    failed = pod_at("29", name="second", phase="Failed", state=ended(70))
    failed["metadata"]["labels"] = {CONTROLLER_UID_LABEL: JOB}
    world.server.pods = [failed]
    await world.turn()
    assert "second" in [pod.name for pod in world.cache.pods.of(KEY, UID)]
    assert world.condition("Failed")["status"] == "True"
