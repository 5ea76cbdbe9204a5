"""B1, B19 and B22: Jobs that somebody deletes, that vanish with their results, and that somebody else changes."""

from functools import partial

import pytest
from tests.component.cluster_acts import finish_deletion
from tests.component.documents import Object, succeeded
from tests.component.patience import eventually
from tests.component.stage import Stage, gone
from tests.faults.one_run import Run, begin

from lora_operator.views.names import SUSPEND_ANNOTATION, child_labels


def _delete_job(run: Run, policy: str) -> None:
    (job,) = run.jobs
    path = run.stage.path("jobs", job["metadata"]["name"])
    run.stage.api.delete(f"{path}?propagationPolicy={policy}")
    if policy != "Foreground":
        eventually(lambda: gone(run.stage.api, path), "the Job is gone")


def _wishes(stage: Stage, path: str, held: str) -> bool:
    return bool(stage.api.get(path)["metadata"]["annotations"][SUSPEND_ANNOTATION] == held)


@pytest.mark.fault("B1")
def test_a_job_deleted_while_its_pod_waits_is_the_next_attempt(shared: Stage) -> None:
    """A Warning says so, and deletions count against maxRetries: the second one ends a run with maxRetries 1."""
    run = begin(shared, "b1-pending", maxRetries=1)
    first = run.job()
    run.wait("PodsReady", "False", "VolumeNotReady")
    _delete_job(run, "Background")
    second = run.job(2)
    assert first["metadata"]["name"] in run.wait_event("JobRecreated")
    assert second["metadata"]["name"] in run.wait_told("Accepted", second["metadata"]["name"])
    assert run.status["attempt"] == 2
    _delete_job(run, "Background")
    verdict = run.wait("Failed", "True", "BackoffLimitExceeded")
    assert "deleted 2 times" in verdict["message"]
    assert "to pause a run, set spec.suspend to true instead" in verdict["message"]
    assert run.jobs == []


@pytest.mark.fault("B1")
@pytest.mark.parametrize("policy", ["Background", "Foreground", "Orphan"])
def test_a_job_deleted_under_a_running_pod_is_followed_when_the_pod_has_stopped(shared: Stage, policy: str) -> None:
    """However it was deleted: never two writers; with --cascade=orphan the sentence says how to stop the pod."""
    run = begin(shared, f"b1-{policy.lower()}")
    pod = run.running_pod()
    (job,) = run.jobs
    _delete_job(run, policy)
    run.wait_state("Restarting")
    if policy == "Orphan":
        name = pod["metadata"]["name"]
        run.wait_told("Complete", f"kubectl delete pod {name} stops it")
        shared.api.delete(shared.path("pods", name))
    eventually(lambda: run.pods[0]["metadata"].get("deletionTimestamp"), "the pod is told to stop")
    run.be_looked_at()
    assert [j["metadata"]["uid"] for j in run.jobs if j["metadata"]["uid"] != job["metadata"]["uid"]] == []
    finish_deletion(shared, pod)
    second = run.job(2)
    follower = eventually(lambda: next((p for p in run.pods if _is_of(p, second)), None), "it has a pod")
    shared.run_pod(follower)
    run.wait("PodsReady", "True")
    run.wait_event("JobRecreated")
    assert run.status["attempt"] == 2
    assert run.status["jobName"] == second["metadata"]["name"]


@pytest.mark.fault("B1")
def test_a_job_deleted_after_the_end_changes_nothing(shared: Stage) -> None:
    """The verdict stays as it was written, and no Job is made."""
    run = begin(shared, "b1-done")
    pod = run.running_pod()
    shared.end_pod(pod, 0, succeeded())
    run.wait("Complete", "True")
    before = _without_generation(run.status)
    _delete_job(run, "Background")
    eventually(lambda: not run.pods, "the pod is gone, too")
    run.be_looked_at()
    assert run.jobs == []
    assert _without_generation(run.status) == before


@pytest.mark.fault("B19")
def test_a_job_that_vanished_with_its_pod_before_the_result_was_read_is_tried_again(stage: Stage) -> None:
    """A foreign time to live takes both while no operator runs: the next attempt finds and verifies what is published.

    That it does not train again is the trainer's part.
    """
    operator = stage.start()
    run = begin(stage, "b19")
    pod = run.running_pod()
    (job,) = run.jobs
    operator.kill()
    path = stage.path("jobs", job["metadata"]["name"])
    stage.api.patch(path, {"spec": {"ttlSecondsAfterFinished": 0}})
    stage.end_pod(pod, 0, succeeded())
    eventually(lambda: gone(stage.api, path) and not run.pods, "the cluster has taken Job and pod away")
    stage.start()
    assert job["metadata"]["name"] in run.wait_event("JobRecreated")
    second = run.running_pod()
    stage.end_pod(second, 0, succeeded())
    run.wait("Complete", "True")
    assert run.status["attempt"] == 2


@pytest.mark.fault("B19")
def test_a_result_that_only_a_pod_still_tells_is_the_verdict(stage: Stage) -> None:
    """The Job is gone and its pod is left: its summary proves the success, and no second Job is made."""
    operator = stage.start()
    run = begin(stage, "b19-pod")
    pod = run.running_pod()
    operator.kill()
    stage.end_pod(pod, 0, succeeded())
    _delete_job(run, "Orphan")
    stage.start()
    run.wait("Complete", "True", "Succeeded")
    assert run.status["artifact"]["uri"] == "pvc://adapters/tone/tone-abcde"
    assert run.jobs == []


@pytest.mark.fault("B22")
def test_labels_and_annotations_that_others_put_on_the_job_are_left_there(stage: Stage) -> None:
    """Kueue, Argo and people annotate Jobs: the operator writes nothing at all."""
    operator = stage.start()
    run = begin(stage, "b22")
    run.running_pod()
    writes = _writes_at_rest(run)
    path = stage.path("jobs", run.job()["metadata"]["name"])
    theirs = {"labels": {"team": "search", "kueue.x-k8s.io/podset": "main"}, "annotations": {"seen-by": "audit"}}
    stage.api.patch(path, {"metadata": theirs})
    stage.api.patch(f"{path}/status", {"status": {"ready": 1}})
    run.be_looked_at(writes=False)
    assert operator.writes() == writes
    metadata = stage.api.get(path)["metadata"]
    assert metadata["labels"].items() >= theirs["labels"].items()
    assert metadata["annotations"].items() >= theirs["annotations"].items()


@pytest.mark.fault("B22")
def test_a_job_that_has_lost_its_labels_is_still_the_runs(stage: Stage) -> None:
    """No watch shows it any more: no second one is made, not by the next operator either, and the run goes on."""
    stage.start(resyncIntervalSeconds=1)
    run = begin(stage, "b22-bare", suspend=True)
    run.wait("Suspended", "True", "SuspendedByUser")
    job = run.job()
    path = stage.path("jobs", job["metadata"]["name"])
    # A Job without any label gets those of its pod template.
    stage.api.patch(path, {"metadata": {"labels": {**dict.fromkeys(child_labels("", "", 1)), "team": "search"}}})
    run.be_looked_at()
    stage.operators[-1].kill()
    stage.start(resyncIntervalSeconds=1)
    run.be_looked_at()
    run.change(suspend=False)
    stage.end_pod(run.running_pod(), 0, succeeded())
    run.wait("Complete", "True", "Succeeded")
    assert [other["metadata"]["uid"] for other in stage.objects("jobs")] == [job["metadata"]["uid"]]
    labels = stage.api.get(path)["metadata"]["labels"]
    assert not labels.keys() & child_labels("", "", 1).keys(), "nobody puts back what others took off"


@pytest.mark.fault("B22")
def test_a_job_that_somebody_suspends_and_changes_is_told_of_and_not_fought_over(stage: Stage) -> None:
    """SuspendedExternally in the status, no write to the Job; its template as others left it when they resume it."""
    operator = stage.start()
    run = begin(stage, "b22-held")
    first = run.running_pod()
    path = stage.path("jobs", run.job()["metadata"]["name"])
    stage.api.patch(path, {"spec": {"suspend": True}})
    told = run.wait("Suspended", "True", "SuspendedExternally")
    assert run.job()["metadata"]["name"] in told["message"]
    finish_deletion(stage, first)
    eventually(lambda: not run.pods, "the pod is gone")
    # As Kueue does it: a template can be changed once the Job counts as never started.
    stage.api.patch(f"{path}/status", {"status": {"startTime": None}})
    held = stage.api.patch(path, {"spec": {"template": {"spec": {"nodeSelector": {"pool": "spot"}}}}})
    writes = _writes_at_rest(run)
    run.be_looked_at(writes=False)
    assert stage.api.get(path)["metadata"]["generation"] == held["metadata"]["generation"]
    assert operator.writes() == writes
    stage.api.patch(path, {"spec": {"suspend": False}})
    second = run.running_pod(other_than=first)
    assert second["spec"]["nodeSelector"] == {"pool": "spot"}
    run.wait("Suspended", "False", "NotSuspended")
    assert len(run.jobs) == 1


@pytest.mark.fault("B22")
def test_the_users_own_wish_outlives_what_others_do_to_the_job(stage: Stage) -> None:
    """spec.suspend holds the run, and somebody resumes the Job: that is told, with the remedy, and not undone."""
    stage.start()
    run = begin(stage, "b22-wish", suspend=True)
    run.wait("Suspended", "True", "SuspendedByUser")
    path = stage.path("jobs", run.job()["metadata"]["name"])
    stage.api.patch(path, {"spec": {"suspend": False}})
    told = run.wait("Suspended", "False")
    assert "somebody else resumed the Job" in told["message"]
    assert "set spec.suspend to false and then to true" in told["message"]
    _writes_at_rest(run)
    assert stage.api.get(path)["spec"]["suspend"] is False
    run.change(suspend=False)
    eventually(partial(_wishes, stage, path, "false"), "the operator has seen the wish")
    run.change(suspend=True)
    run.wait("Suspended", "True", "SuspendedByUser")


def _without_generation(status: Object) -> Object:
    conditions = [{**condition, "observedGeneration": 0} for condition in status["conditions"]]
    return {**status, "observedGeneration": 0, "conditions": conditions}


def _is_of(pod: Object, job: Object) -> bool:
    return bool(pod["metadata"]["ownerReferences"][0]["uid"] == job["metadata"]["uid"])


def _writes_at_rest(run: Run) -> float:
    """Writes of the operator so far, once there are no more of them though it looks at the run."""
    operator = run.stage.operators[-1]

    def still() -> float | None:
        before = operator.writes()
        run.be_looked_at(writes=False)
        return before if operator.writes() == before else None

    return eventually(still, "the operator is at rest")
