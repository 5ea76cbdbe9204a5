"""B1, B19 and B22: Jobs that somebody deletes, that vanish with their results, and that somebody else changes."""

from functools import partial

import pytest
from tests.component.cluster_acts import finish_deletion
from tests.component.documents import Object, succeeded
from tests.component.patience import eventually
from tests.component.stage import Stage, gone
from tests.faults.moments import Kept
from tests.faults.one_run import Run, begin
from tests.faults.seen import Sees, kept, remember, saw

from lora_operator.model.names import NAME_LABEL, SUSPEND_ANNOTATION, UID_LABEL
from lora_trainer.spec.reasons import Reason


def _delete_job(run: Run, policy: str) -> None:
    (job,) = run.jobs
    path = run.stage.path("jobs", job["metadata"]["name"])
    run.stage.api.delete(f"{path}?propagationPolicy={policy}")
    if policy != "Foreground":
        eventually(lambda: gone(run.stage.api, path), "the Job is gone")


def _wishes(stage: Stage, path: str, held: str) -> bool:
    return bool(stage.api.get(path)["metadata"]["annotations"][SUSPEND_ANNOTATION] == held)


def test_a_job_deleted_while_its_pod_waits_is_the_next_attempt(shared: Stage) -> None:
    """A Warning says so, and deletions count against maxRetries: the second one ends a run with maxRetries 1."""
    run = begin(shared, "b1-pending", maxRetries=1)
    first = run.job()
    run.wait("PodsReady", "False", "VolumeNotReady")
    _delete_job(run, "Background")
    second = run.job(2)
    saw(
        Sees(
            conditions={"Accepted": ("True", None)},
            says=(second["metadata"]["name"],),
            event=("Warning", Reason.JOB_RECREATED),
            status=("attempt",),
        ),
        run,
    )
    assert first["metadata"]["name"] in run.wait_event("JobRecreated")
    assert run.status["attempt"] == 2
    _delete_job(run, "Background")
    saw(
        Sees(
            conditions={"Failed": ("True", Reason.BACKOFF_LIMIT_EXCEEDED)},
            says=("deleted 2 times", "to pause a run, set spec.suspend to true instead"),
        ),
        run,
    )
    ended = remember(run)
    run.be_looked_at()
    kept(Kept.VERDICT, ended)
    assert run.jobs == []


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
        saw(Sees(state=Reason.RESTARTING, says=(f"kubectl delete pod {name}",)), run)
        shared.api.delete(shared.path("pods", name))
    eventually(lambda: run.pods[0]["metadata"].get("deletionTimestamp"), "the pod is stopped")
    run.be_looked_at()
    kept(Kept.ONE_WRITER, remember(run))
    assert [j["metadata"]["uid"] for j in run.jobs if j["metadata"]["uid"] != job["metadata"]["uid"]] == []
    finish_deletion(shared, pod)
    second = run.job(2)
    follower = eventually(lambda: next((p for p in run.pods if _is_of(p, second)), None), "it has a pod")
    shared.run_pod(follower)
    run.wait("PodsReady", "True")
    run.wait_event("JobRecreated")
    assert run.status["attempt"] == 2
    assert run.status["jobName"] == second["metadata"]["name"]
    kept(Kept.ONE_JOB, remember(run))


def test_a_job_deleted_after_the_end_changes_nothing(shared: Stage) -> None:
    """The verdict stays as it was written, and no Job is made."""
    run = begin(shared, "b1-done")
    pod = run.running_pod()
    shared.end_pod(pod, 0, succeeded())
    run.wait("Complete", "True")
    before, ended = _without_generation(run.status), remember(run)
    _delete_job(run, "Background")
    eventually(lambda: not run.pods, "the pod is gone, too")
    run.be_looked_at()
    kept(Kept.VERDICT, ended)
    assert run.jobs == []
    assert _without_generation(run.status) == before


def test_a_job_that_vanished_with_its_pod_before_the_result_was_read_is_tried_again(stage: Stage) -> None:
    """A foreign time to live takes both while no operator runs: the next attempt finds and verifies what is published.

    That it does not train again is the trainer's part.
    """
    operator = stage.start()
    run = begin(stage, "b19")
    pod = run.running_pod()
    (job,) = run.jobs
    before = remember(run)
    operator.kill()
    path = stage.path("jobs", job["metadata"]["name"])
    stage.api.patch(path, {"spec": {"ttlSecondsAfterFinished": 0}})
    stage.end_pod(pod, 0, succeeded())
    eventually(lambda: gone(stage.api, path) and not run.pods, "the cluster has taken Job and pod away")
    stage.start()
    saw(Sees(says=(job["metadata"]["name"],), event=("Warning", Reason.JOB_RECREATED)), run)
    run.running_pod()
    kept(Kept.ENDS_WELL, before)
    kept(Kept.ONE_JOB, before)
    assert run.status["attempt"] == 2


def test_a_result_of_a_pod_whose_job_was_deleted_before_it_counted_it_proves_nothing(stage: Stage) -> None:
    """The pod that a deleted Job leaves for a while ends well: the next attempt verifies what it published."""
    stage.start()
    run = begin(stage, "b19-pod")
    pod = run.running_pod()
    _delete_job(run, "Background")
    eventually(lambda: run.pods[0]["metadata"].get("deletionTimestamp"), "the pod is stopped")
    stage.end_pod(pod, 0, succeeded())
    run.wait_event("JobRecreated")
    assert run.condition("Complete")["status"] == "Unknown"
    run.job(2)


def test_a_result_of_a_pod_that_a_deleted_job_has_adopted_proves_nothing(shared: Stage) -> None:
    """The Job controller takes any pod of the template's labels for the Job's own."""
    run = begin(shared, "b19-forged")
    pod = run.running_pod()
    _forge(shared, run, pod)
    _delete_job(run, "Foreground")
    run.wait_state("Restarting")
    run.be_looked_at()
    assert run.condition("Complete")["status"] == "Unknown"
    finish_deletion(shared, pod)
    run.job(2)


def test_a_result_of_a_pod_that_a_job_has_adopted_is_not_what_it_counted(shared: Stage) -> None:
    """The Job succeeds by its own pod, which leaves no summary: what the other one says is not that pod's."""
    run = begin(shared, "b19-beside")
    pod = run.running_pod()
    _forge(shared, run, pod)
    shared.end_pod(pod, 0, "")
    saw(Sees(conditions={"Failed": ("True", Reason.RESULT_UNKNOWN), "Complete": ("False", Reason.RESULT_UNKNOWN)}), run)


def _forge(stage: Stage, run: Run, pod: Object) -> None:
    """Have the run's Job adopt a pod that ended with the summary of an adapter that nobody trained."""
    job = run.job()
    labels = {**job["spec"]["template"]["metadata"]["labels"], **pod["metadata"]["labels"]}
    spec = {"containers": [{"name": "trainer", "image": "registry.example/other"}]}
    name = f"{job['metadata']['name']}-0-forged"
    forged = stage.api.post(stage.path("pods"), {"metadata": {"name": name}, "spec": spec})
    stage.end_pod(forged, 0, succeeded())
    # As a living pod it would be one too many for the Job controller, which deletes it.
    stage.api.patch(stage.path("pods", name), {"metadata": {"labels": labels}})
    owners = f"{name} has an owner"
    eventually(lambda: stage.api.get(stage.path("pods", name))["metadata"].get("ownerReferences"), owners)


def test_a_result_of_a_pod_whose_job_nobody_has_seen_end_proves_nothing(stage: Stage) -> None:
    """Whoever may create pods could claim one: the next attempt finds and verifies what is published."""
    operator = stage.start()
    run = begin(stage, "b19-alone")
    pod = run.running_pod()
    operator.kill()
    stage.end_pod(pod, 0, succeeded())
    _delete_job(run, "Orphan")
    stage.start()
    run.wait_event("JobRecreated")
    assert run.condition("Complete")["status"] == "Unknown"
    run.job(2)


def test_labels_and_annotations_that_others_put_on_the_job_are_left_there(stage: Stage) -> None:
    """Kueue, Argo and people annotate Jobs: the operator writes nothing at all."""
    stage.start(statusDelaySeconds=0.01)
    run = begin(stage, "b22")
    run.running_pod()
    _writes_at_rest(run)
    path = stage.path("jobs", run.job()["metadata"]["name"])
    theirs = {"labels": {"team": "search", "kueue.x-k8s.io/podset": "main"}, "annotations": {"seen-by": "audit"}}
    stage.api.patch(path, {"metadata": theirs})
    stage.api.patch(f"{path}/status", {"status": {"ready": 1}})
    before = remember(run)
    run.be_looked_at(writes=False)
    run.be_looked_at(writes=False)
    for what in (Kept.NO_WRITES, Kept.OTHERS_MARKS, Kept.JOBS):
        kept(what, before)
    metadata = stage.api.get(path)["metadata"]
    assert metadata["labels"].items() >= theirs["labels"].items()
    assert metadata["annotations"].items() >= theirs["annotations"].items()


def test_a_job_whose_labels_are_taken_off_again_and_again_stays_the_runs(stage: Stage) -> None:
    """They are put back each time, and pods without them, or with another run's, are read as the Job's own."""
    stage.start(resyncIntervalSeconds=1)
    run = begin(stage, "b22-bare", suspend=True)
    run.wait("Suspended", "True", "SuspendedByUser")
    job = run.job()
    path = stage.path("jobs", job["metadata"]["name"])
    ours = {key: value for key, value in job["metadata"]["labels"].items() if key.startswith("lora-operator.io/")}
    before = remember(run)
    for _ in range(3):
        _strip(stage, path, ours)
        theirs = remember(run)
        eventually(lambda: ours.items() <= stage.api.get(path)["metadata"]["labels"].items(), "they are put back")
        run.be_looked_at()
        saw(Sees(nothing=True), since=before)
        kept(Kept.OTHERS_MARKS, theirs)
        assert stage.api.get(path)["metadata"]["labels"]["team"] == "search"
    run.change(suspend=False)
    (pod,) = stage.wait_pods(job, 1)
    named = stage.path("pods", pod["metadata"]["name"])
    stage.api.patch(named, {"metadata": {"labels": {NAME_LABEL: "another", UID_LABEL: "another"}}})
    stage.operators[-1].kill()
    stage.start(resyncIntervalSeconds=1)
    stage.run_pod(pod)
    _strip(stage, named, ours)
    stage.end_pod(pod, 0, succeeded())
    run.wait("Complete", "True")
    before = remember(run)
    kept(Kept.ENDS_WELL, before)
    kept(Kept.ONE_JOB, before)
    assert [other["metadata"]["uid"] for other in stage.objects("jobs")] == [job["metadata"]["uid"]]


def _strip(stage: Stage, path: str, labels: Object) -> None:
    """Take labels off; a Job without any gets those of its pod template, so that one of somebody else's stays."""
    stage.api.patch(path, {"metadata": {"labels": {**dict.fromkeys(labels), "team": "search"}}})


def test_a_job_that_somebody_suspends_and_changes_is_reported_and_not_fought_over(stage: Stage) -> None:
    """SuspendedExternally in the status, no write to the Job; its template as others left it when they resume it."""
    stage.start(statusDelaySeconds=0.01)
    run = begin(stage, "b22-held")
    first = run.running_pod()
    path = stage.path("jobs", run.job()["metadata"]["name"])
    stage.api.patch(path, {"spec": {"suspend": True}})
    saw(
        Sees(conditions={"Suspended": ("True", Reason.SUSPENDED_EXTERNALLY)}, says=(run.job()["metadata"]["name"],)),
        run,
    )
    finish_deletion(stage, first)
    eventually(lambda: not run.pods, "the pod is gone")
    # As Kueue does it: a template can be changed once the Job counts as never started.
    stage.api.patch(f"{path}/status", {"status": {"startTime": None}})
    held = stage.api.patch(path, {"spec": {"template": {"spec": {"nodeSelector": {"pool": "spot"}}}}})
    _writes_at_rest(run)
    before = remember(run)
    run.be_looked_at(writes=False)
    assert stage.api.get(path)["metadata"]["generation"] == held["metadata"]["generation"]
    kept(Kept.NO_WRITES, before)
    kept(Kept.JOBS, before)
    stage.api.patch(path, {"spec": {"suspend": False}})
    second = run.running_pod(other_than=first)
    assert second["spec"]["nodeSelector"] == {"kubernetes.io/os": "linux", "pool": "spot"}
    run.wait("Suspended", "False", "NotSuspended")
    kept(Kept.ONE_JOB, before)
    kept(Kept.ENDS_WELL, before)


def test_the_users_own_wish_outlives_what_others_do_to_the_job(stage: Stage) -> None:
    """spec.suspend holds the run, and somebody resumes the Job: that is reported, with the remedy, and not undone."""
    stage.start()
    run = begin(stage, "b22-wish", suspend=True)
    run.wait("Suspended", "True", "SuspendedByUser")
    path = stage.path("jobs", run.job()["metadata"]["name"])
    stage.api.patch(path, {"spec": {"suspend": False}})
    saw(
        Sees(
            conditions={"Suspended": ("False", None)},
            says=("another controller resumed the Job", "set spec.suspend to false and then to true"),
        ),
        run,
    )
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
