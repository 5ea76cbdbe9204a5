"""What is read in the same turn before an end without proof: neither lost labels nor other pods hide a success."""

from typing import Any

import pytest
from tests.unit.builders import NAMESPACE, NOW, UID, condition_object, job_name, make_job_object, make_summary
from tests.unit.turns import KEY, Object, World, pod_at

from lora_operator.cluster.cache import Key
from lora_operator.views.names import CONTROLLER_UID_LABEL
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
