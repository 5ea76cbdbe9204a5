"""What is used up of `maxRetries`: what the table of the Job controller does not show, such as a view that is late."""

from typing import Any

import pytest
from tests.unit.builders import condition_object, ended_pod, finished_job, make_job, make_pod, minutes_ago, running_pod

from lora_operator.decide.ends import count_ends
from lora_operator.model.names import RETRIES_ANNOTATION
from lora_operator.model.objects import JobView, PodView

BY_INDEX = {"backoffLimitPerIndex": 2**31 - 1}
SHORT_OF_DISK = (condition_object("DisruptionTarget", reason="TerminationByKubelet"),)
DRAINED = (condition_object("DisruptionTarget", reason="EvictionByEvictionAPI"),)


def used(
    *jobs: JobView, pods: tuple[PodView, ...] = (), stored: object = None, nodes: int = 1, deletions: int = 0
) -> int:
    """What is used up."""
    status: dict[str, Any] = {} if stored is None else {"used": stored}
    return count_ends(status, jobs, pods, nodes=nodes, deletions=deletions).used


def job(failed: int = 0, before: int = 0, **changes: Any) -> JobView:
    """A Job that has counted so many failures, and began with so many retries used."""
    return make_job(status={"failed": failed}, annotations={RETRIES_ANNOTATION: str(before)}, **changes)


def failing(reason: str, failed: int, **changes: Any) -> JobView:
    """A Job that is to fail, and has counted the pods that live, too."""
    conditions = [condition_object("FailureTarget", reason=reason)]
    return make_job(status={"failed": failed, "conditions": conditions}, **changes)


@pytest.mark.parametrize(
    ("jobs", "pods", "wanted"),
    [
        pytest.param((job(2),), (), 2, id="what the Job has counted"),
        pytest.param((job(2, before=1),), (), 3, id="and what was used before it"),
        pytest.param((job(1),), (ended_pod(1),), 1, id="a pod that it has counted"),
        pytest.param((job(0),), (ended_pod(1),), 1, id="a pod that it is about to count"),
        pytest.param((job(0),), (ended_pod(143, deleting=True),), 0, id="not one that may be stopped with it"),
        pytest.param((job(0),), (ended_pod(65),), 0, id="not one that is no use to try again"),
        pytest.param((job(0),), (ended_pod(137, conditions=DRAINED),), 0, id="not one that was drained"),
        pytest.param((job(1),), (ended_pod(137, conditions=SHORT_OF_DISK),), 2, id="one that its node evicted"),
        pytest.param((job(0),), (ended_pod(1, job_uid=""),), 0, id="not one that no Job counts"),
        pytest.param((failing("DeadlineExceeded", 1),), (), 0, id="not what lives at the deadline"),
        pytest.param((failing("PodFailurePolicy", 1),), (), 0, id="nor with a final failure"),
        pytest.param((failing("BackoffLimitExceeded", 4),), (), 4, id="but all where there are too many"),
        pytest.param((finished_job(failed=2, stage="preflight"),), (), 2, id="those of a preflight that has passed"),
    ],
)
def test_what_a_job_of_one_pod_has_used(jobs: tuple[JobView, ...], pods: tuple[PodView, ...], wanted: int) -> None:
    """The larger of what the Job has counted and of what it is about to count."""
    assert used(*jobs, pods=pods) == wanted


def test_of_several_nodes_the_one_that_failed_most_counts() -> None:
    """By what its pods hand on, whichever is seen; and no less than what the Job's own count makes of a round."""
    two = job(spec=BY_INDEX)
    handed_on = make_pod(index=1, failures_before=2)
    assert used(two, pods=(running_pod(index=0), handed_on), nodes=2) == 2
    assert used(two, pods=(ended_pod(1, index=1, failures_before=2),), nodes=2) == 3
    assert used(two, pods=(ended_pod(76, index=1, failures_before=2),), nodes=2) == 2
    assert used(two, pods=(ended_pod(1, index=1, failures_before=1), make_pod(index=1, name="anew")), nodes=2) == 2
    assert used(job(5, spec=BY_INDEX), nodes=2) == 3
    assert used(failing("BackoffLimitExceeded", 4, spec=BY_INDEX), nodes=2) == 2
    assert used(job(5, stage="preflight"), nodes=2) == 5, "a preflight has one pod"


def test_a_node_that_waits_for_one_that_is_done_uses_retries() -> None:
    """No Job makes a pod again that has succeeded; what ended before then ended for another reason."""
    done = ended_pod(0, index=1, created_at=minutes_ago(40))
    before, after = (ended_pod(76, name=f"{n}", created_at=minutes_ago(n)) for n in (80, 20))
    two = make_job(spec=BY_INDEX, status={"succeeded": 1})
    assert used(two, pods=(before, after), nodes=2) == 0
    assert used(two, pods=(before, after, done), nodes=2) == 1


def test_what_was_told_once_is_not_taken_back() -> None:
    """Where a suspension or a deletion takes what it was told by; and each Job that somebody deleted is a retry."""
    assert used(job(1), stored=3) == 3
    assert used(stored=2, deletions=1) == 2
    assert used(deletions=2) == 2
    assert used(job(2), job(1, before=3, attempt=2), deletions=1) == 4


@pytest.mark.parametrize("odd", [-1, "3", None, 2**40, True, [1]])
def test_what_somebody_else_wrote_reads_as_absent(odd: object) -> None:
    """As everything that the status says."""
    assert used(job(1), stored=odd) == 1
