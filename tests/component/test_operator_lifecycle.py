"""What limits a run over all its Jobs and pods: its active time, its waiting time, and its retries."""

from datetime import UTC, datetime
from functools import partial
from typing import Any

from tests.component.cluster_acts import set_condition
from tests.component.patience import eventually
from tests.component.stage import Stage, gone
from tests.faults.moments import Kept
from tests.faults.one_run import Run
from tests.faults.seen import Sees, kept, remember, saw

from lora_operator.model.wording import parse_instant
from lora_trainer.spec.reasons import Reason

# Of the active time in three parts of two seconds, three times as much on a busy machine, and the rest.
LIMIT_S = 30


def status(stage: Stage) -> dict[str, Any]:
    """The status as it is now."""
    found: dict[str, Any] = stage.finetune()["status"]
    return found


def active_for(stage: Stage, seconds: float) -> bool:
    """Whether the run has been active for so long since it was started or resumed."""
    since = parse_instant(status(stage).get("activeSince"))
    return since is not None and (datetime.now(UTC) - since).total_seconds() >= seconds


def test_a_deadline_holds_over_suspensions_and_is_not_shortened_by_them(stage: Stage) -> None:
    """Kubernetes would count anew after each; the Job's own deadline gets what is left."""
    stage.start()
    stage.apply(activeDeadlineSeconds=LIMIT_S)
    job = stage.wait_job()
    path = stage.path("jobs", job["metadata"]["name"])
    for _ in range(3):
        eventually(partial(active_for, stage, 2), "the run has been active for two seconds")
        before = status(stage).get("runSeconds", 0)
        stage.change(suspend=True)
        eventually(lambda: "activeSince" not in status(stage), "the time is not counted any more")
        spent = status(stage)["runSeconds"]
        assert spent > before
        eventually(partial(_has_deadline, stage, path, max(1, LIMIT_S - spent)), "the Job has the rest of the time")
        stage.change(suspend=False)
    saw(
        Sees(
            conditions={"Failed": ("True", Reason.DEADLINE_EXCEEDED)},
            says=(f"spec.activeDeadlineSeconds ({LIMIT_S} s)",),
            status=("runSeconds",),
        ),
        Run(stage=stage, name="tone"),
    )
    final = status(stage)
    # Counted anew after the last suspension it would end as many seconds later as the run had been active before.
    assert LIMIT_S <= final["runSeconds"] < LIMIT_S + spent
    assert "activeSince" not in final
    assert "retries" not in final


def test_a_run_that_waits_too_long_ends_with_what_it_waited_for_and_its_job_is_stopped(stage: Stage) -> None:
    """The limit can be set later; the verdict is stored before anything is deleted; the quota is free again."""
    stage.start()
    stage.apply()
    job = stage.wait_job()
    pod = stage.wait_pod(job)
    stage.wait_condition("PodsReady", status="False", reason="VolumeNotReady")
    stage.change(pendingTimeoutSeconds=2)
    verdict = stage.wait_condition("Failed", status="True", reason="PendingTimeout")
    assert "spec.pendingTimeoutSeconds (2 s)" in verdict["message"]
    assert "VolumeNotReady" in verdict["message"]
    for plural, name in (("jobs", job["metadata"]["name"]), ("pods", pod["metadata"]["name"])):
        eventually(partial(gone, stage.api, stage.path(plural, name)), f"{name} is gone")
    assert stage.condition("Failed") == verdict
    assert status(stage)["attempt"] == 1


def test_an_image_with_an_impossible_name_ends_the_run_at_once(stage: Stage) -> None:
    """No waiting mends it."""
    stage.start()
    stage.apply()
    job = stage.wait_job()
    pod = stage.wait_pod(job)
    stage.wait_pod_state(pod, "InvalidImageName", 'Failed to apply default image tag "x:y:z"')
    stage.wait_condition("Failed", status="True", reason="InvalidImage")
    eventually(partial(gone, stage.api, stage.path("jobs", job["metadata"]["name"])), "the Job is stopped")


def test_retries_are_counted_over_a_deleted_job(stage: Stage) -> None:
    """One failure and one deletion use up two of two: the next Job gets none, and its first failure is the last."""
    stage.start()
    stage.apply(maxRetries=2)
    job = stage.wait_job()
    pod = stage.wait_pod(job)
    stage.run_pod(pod)
    stage.end_pod(pod, 75, "the Hub did not answer")
    eventually(lambda: status(stage).get("retries", {}).get("used") == 1, "the failure is counted")
    stage.api.delete(stage.path("jobs", job["metadata"]["name"]) + "?propagationPolicy=Background")
    again = stage.wait_job(attempt=2)
    assert again["spec"]["backoffLimit"] == 0
    last = stage.wait_pod(again)
    stage.run_pod(last)
    stage.end_pod(last, 75, "the Hub did not answer again")
    stage.wait_condition("Failed", status="True", reason="BackoffLimitExceeded")
    assert status(stage)["retries"]["used"] == 3
    assert status(stage)["attempt"] == 2


def test_a_node_that_evicts_every_pod_does_not_do_so_for_ever(stage: Stage) -> None:
    """The Job ignores each such end and would go on; the operator counts them, and stops it."""
    stage.start()
    stage.apply(maxRetries=1)
    job = stage.wait_job()
    uid = ""
    for number in (1, 2):
        pod = stage.wait_pod(job, other_than=uid)
        uid = pod["metadata"]["uid"]
        stage.run_pod(pod)
        stated = "The node was low on resource: ephemeral-storage"
        set_condition(stage, pod, "DisruptionTarget", "True", reason="TerminationByKubelet", message=stated)
        stage.end_pod(pod, 143)
        eventually(partial(_has_counted, stage, number), "it is counted")
    run = Run(stage=stage, name="tone")
    saw(
        Sees(
            conditions={"Failed": ("True", Reason.BACKOFF_LIMIT_EXCEEDED)},
            says=("ephemeral-storage",),
            advice="NodePressure",
        ),
        run,
    )
    assert [advice["code"] for advice in status(stage)["advice"]] == ["NodePressure"]
    ended = remember(run)
    eventually(partial(gone, stage.api, stage.path("jobs", job["metadata"]["name"])), "the Job is stopped")
    run.be_looked_at()
    assert run.jobs == []
    kept(Kept.VERDICT, ended)


def _has_deadline(stage: Stage, path: str, seconds: int) -> bool:
    return bool(stage.api.get(path)["spec"]["activeDeadlineSeconds"] == seconds)


def _has_counted(stage: Stage, number: int) -> bool:
    return bool(status(stage).get("retries", {}).get("used") == number)
