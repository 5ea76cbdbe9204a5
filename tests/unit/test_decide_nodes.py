"""A run whose pods train together on several nodes, and what its checkpoints save."""

import dataclasses
from typing import Any

import pytest
from tests.unit.builders import (
    CONFIG,
    NOW,
    condition_object,
    ended_pod,
    finished_job,
    job_name,
    make_event,
    make_finetune,
    make_job,
    make_pod,
    make_summary,
    minutes_ago,
    outlasted_pod,
    running_pod,
    with_status,
)
from tests.unit.deciding import decide
from tests.unit.plans import ATTEMPTED, condition, plan_for, stated

from lora_operator.model.names import CONFIG_ANNOTATION
from lora_operator.model.objects import Observed, PodView
from lora_operator.model.wording import instant
from lora_trainer.spec.progress import Phase, Progress
from lora_trainer.spec.reasons import Reason
from lora_trainer.spec.summary import SavedState

TWO = make_finetune(spec={"resources": {"nodes": 2}})
BUCKET: dict[str, Any] = {"output": {"uri": "s3://adapters/tone"}}


def test_several_nodes_get_names_before_their_job() -> None:
    """The Service comes first, so that no pod looks for a peer in vain."""
    plan = plan_for(TWO)
    assert [(obj["kind"], obj["metadata"]["name"]) for obj in plan.create] == [
        ("Service", job_name()),
        ("Job", job_name()),
    ]


def test_a_run_is_ready_when_the_pods_of_all_nodes_run() -> None:
    """Until then the message counts them, and tells of the one that is missing."""
    job, first = make_job(spec={"backoffLimit": 6}), running_pod(index=0)
    alone = plan_for(TWO, jobs=(job,), pods=(first,))
    assert stated(alone, "PodsReady") == ("False", "Pending")
    assert "1 of 2 pods run" in condition(alone, "PodsReady")["message"]
    waiting = make_pod(
        index=1,
        node="",
        conditions=(condition_object("PodScheduled", "False", reason="Unschedulable", message="0/5 nodes"),),
    )
    stuck = plan_for(TWO, jobs=(job,), pods=(first, waiting))
    assert stated(stuck, "PodsReady") == ("False", "Unschedulable")
    assert waiting.name in condition(stuck, "PodsReady")["message"]
    assert stuck.status["podName"] == first.name
    assert "podName" not in plan_for(TWO, jobs=(job,), pods=(waiting,)).status
    slow = plan_for(TWO, jobs=(job,), pods=(first, make_pod(index=1)))
    assert f"pod {job_name()}-1-abcde; 1 of 2 pods run" in condition(slow, "PodsReady")["message"]
    ready = plan_for(TWO, jobs=(job,), pods=(running_pod(index=1, created_at=minutes_ago(1)), first))
    assert stated(ready, "PodsReady") == ("True", "PodRunning")
    assert (ready.ask_progress, ready.status["podName"]) == (first, first.name)


def test_the_progress_of_a_run_is_that_of_its_first_node() -> None:
    """What another one answers before that is none, and so no news each time that the run is looked at."""
    job, others = make_job(spec={"backoffLimit": 6}), (make_pod(index=0), running_pod(index=1))
    starting = Progress(phase=Phase.STARTING, total_steps=400)
    assert "progress" not in plan_for(TWO, jobs=(job,), pods=others, progress=starting).status
    leader = plan_for(TWO, jobs=(job,), pods=(running_pod(index=0), others[1]), progress=starting)
    assert leader.status["progress"]["phase"] == "Starting"


def test_a_run_stays_ready_while_its_first_node_publishes_what_all_have_trained() -> None:
    """The other nodes have ended with 0 by then, and without an artifact."""
    message = make_summary(Reason.SUCCEEDED, "This node's part is done").to_message()
    first, done = running_pod(index=0), ended_pod(0, message, index=1)
    plan = plan_for(TWO, jobs=(make_job(spec={"backoffLimit": 6}),), pods=(first, done))
    assert stated(plan, "PodsReady") == ("True", "PodRunning")
    assert plan.status["podName"] == first.name


@pytest.mark.parametrize(
    ("nodes", "run", "succeeded", "ready"),
    [(2, 1, 1, True), (3, 1, 2, True), (3, 2, 2, True), (3, 1, 1, False)],
    ids=["of two", "of three", "one seen late", "one missing"],
)
def test_a_node_that_is_done_counts_when_its_pod_is_removed(nodes: int, run: int, succeeded: int, ready: bool) -> None:
    """Its idle machine is scaled down while the first node publishes: no pod is awaited, and no wait is too long."""
    finetune = make_finetune(spec={"resources": {"nodes": nodes}, "pendingTimeoutSeconds": 60})
    publishing = Progress(phase=Phase.PUBLISHING, step=400, total_steps=400)
    job = make_job(spec={"backoffLimit": 6}, status={"active": 1, "succeeded": succeeded})
    pods = tuple(running_pod(index=index) for index in range(run))
    plan = plan_for(finetune, jobs=(job,), pods=pods, progress=publishing)
    assert stated(plan) == (("Unknown", "Publishing") if ready else ("False", "PendingTimeout"))
    assert (stated(plan, "PodsReady")[0] == "True") is ready


@pytest.mark.parametrize("removed", [0, 1])
def test_a_node_that_is_done_counts_while_a_proxy_keeps_its_pod(removed: int) -> None:
    """Its Job has not counted it, but no pod is awaited. Whoever holds its GPUs is named."""
    spec = {"resources": {"nodes": 2 + removed}, "pendingTimeoutSeconds": 60}
    publishing = Progress(phase=Phase.PUBLISHING, step=400, total_steps=400)
    job = make_job(spec={"backoffLimit": 6}, status={"active": 2, "succeeded": removed})
    first, done = running_pod(index=0), outlasted_pod(0, {"running": {}}, index=1)
    plan = plan_for(make_finetune(spec=spec), jobs=(job,), pods=(first, done), progress=publishing)
    assert (stated(plan), stated(plan, "PodsReady")[0]) == (("Unknown", "Publishing"), "True")
    assert (plan.due_in_s, plan.status["podName"]) == (None, first.name)
    assert f"container istio-proxy of pod {done.name} runs on" in condition(plan, "Complete")["message"]


def test_a_node_that_its_job_has_counted_before_its_pods_end_is_seen_counts_once() -> None:
    """Else the pod that the third node lacks would be taken for one that was removed."""
    finetune = make_finetune(spec={"resources": {"nodes": 3}})
    job = make_job(spec={"backoffLimit": 6}, status={"active": 1, "succeeded": 1})
    late = outlasted_pod(0, {"terminated": {"exitCode": 0}}, index=1)
    plan = plan_for(finetune, jobs=(job,), pods=(running_pod(index=0), late))
    assert stated(plan, "PodsReady")[0] == "False"
    assert "2 of 3 pods run" in condition(plan, "Complete")["message"]


@pytest.mark.parametrize(("code", "phase"), [(75, "Running"), (0, "Failed")], ids=["failed", "to be made anew"])
def test_a_node_whose_pod_is_made_anew_is_not_done(code: int, phase: str) -> None:
    """Its trainer has failed, or another container, which fails the pod."""
    job, first = make_job(spec={"backoffLimit": 6}), running_pod(index=0)
    other = outlasted_pod(code, {"terminated": {"exitCode": 1}}, index=1, phase=phase)
    assert stated(plan_for(TWO, jobs=(job,), pods=(first, other)), "PodsReady")[0] == "False"


REFUSED = 'pods "support-tone-3" is forbidden: exceeded quota: gpus, used: requests.nvidia.com/gpu=24'


@pytest.mark.parametrize(("made", "state"), [(3, "QuotaExceeded"), (4, "Starting")])
@pytest.mark.parametrize("failed", [0, 1])
def test_a_pod_that_the_cluster_refuses_is_reported_while_the_others_run(made: int, state: str, failed: int) -> None:
    """A quota admits pods one by one. What it refused once says nothing of a Job that has all its pods."""
    job = make_job(spec={"backoffLimit": 12}, status={"active": made, "failed": failed})
    pods = tuple(running_pod(index=index) for index in range(made))
    before = tuple(ended_pod(75, index=2, name="before", created_at=minutes_ago(58)) for _ in range(failed))
    event = make_event(job.uid, "FailedCreate", REFUSED)
    four = make_finetune(spec={"resources": {"nodes": 4}})
    plan = plan_for(four, jobs=(job,), pods=(*pods, *before), events=(event,))
    assert stated(plan) == ("Unknown", state)
    assert (REFUSED in condition(plan, "Complete")["message"]) is (made == 3)
    assert ("3 of 4 pods run" in condition(plan, "Complete")["message"]) is (made == 3)


def test_pods_that_are_stopped_since_the_first_node_has_published_restart_nothing() -> None:
    """The Job stops them, and says that it is complete once they are gone."""
    message = make_summary().to_message()
    done, stopped = ended_pod(0, message, index=0), running_pod(index=1, deleting=True)
    plan = plan_for(TWO, jobs=(make_job(spec={"backoffLimit": 6}),), pods=(done, stopped))
    assert stated(plan, "Complete") == ("Unknown", "Publishing")
    said = condition(plan, "Complete")["message"]
    assert said == f"Pod {done.name} has done its work, and pod {stopped.name} is being stopped"


def test_one_failure_of_all_nodes_is_one_retry() -> None:
    """The Job counts each pod; the cause is told, not what followed from it."""
    peer = make_summary(Reason.PEER_FAILED, "Node 0 ended with GPUFault").to_message()
    cause = make_summary(Reason.GPU_FAULT, "The GPU fell off the bus").to_message()
    pods = (ended_pod(72, cause, index=0), ended_pod(75, peer, index=1, created_at=minutes_ago(50)))
    plan = plan_for(TWO, jobs=(make_job(spec={"backoffLimit": 6}, status={"failed": 2}),), pods=pods)
    assert stated(plan) == ("Unknown", "Restarting")
    assert condition(plan, "Complete")["message"].startswith("GPUFault: The GPU fell off the bus")
    assert "retry 1 of 3" in condition(plan, "Complete")["message"]


PEER = make_summary(Reason.PEER_FAILED, "another process of the run ended").to_message()


def round_of(number: int, cause: PodView, nodes: int) -> tuple[PodView, ...]:
    """The pods of a round, of which one ended for a cause and the others with it."""
    followers = [ended_pod(76, PEER, index=index) for index in range(nodes) if index != cause.index]
    return tuple(
        dataclasses.replace(pod, name=f"{pod.name}-{number}", uid=f"{pod.uid}-{number}") for pod in (cause, *followers)
    )


STALLED = make_summary(Reason.STALLED, "the training reported no progress for 1800 s").to_message()


@pytest.mark.parametrize(("timeout_s", "failed"), [(2400, "True"), (40000, "Unknown")])
def test_a_wait_for_a_node_does_not_begin_again_with_each_pod_that_waits(timeout_s: int, failed: str) -> None:
    """For ten hours the first one has given up waiting every half hour."""
    pending = dataclasses.replace(make_pod(index=1), created_at=minutes_ago(600))
    waits = []
    for number in range(19):
        end = 600 - 31 * (number + 1)
        pod = ended_pod(76, PEER, index=0, ended_at=minutes_ago(end), created_at=minutes_ago(end + 31))
        started = dataclasses.replace(pod.trainer, started_at=minutes_ago(end + 31))
        waits.append(dataclasses.replace(pod, name=f"w-{number}", uid=f"w-{number}", trainer=started))
    since = {"PodsReady": "Unschedulable", "Suspended": "NotSuspended"}
    conditions = [condition_object(kind, "False", reason=why, since=minutes_ago(600)) for kind, why in since.items()]
    status = {"attempt": 1, "jobName": job_name(), "conditions": conditions}
    finetune = make_finetune(spec={"resources": {"nodes": 2}, "pendingTimeoutSeconds": timeout_s}, status=status)
    job = make_job(spec={"backoffLimit": 6}, status={"startTime": instant(minutes_ago(600)), "active": 2})
    assert stated(plan_for(finetune, jobs=(job,), pods=(pending, *waits)), "Failed")[0] == failed


def test_a_job_that_has_given_up_tells_why_while_it_stops_its_other_pods() -> None:
    """No new pod follows, whatever is being stopped."""
    cause = ended_pod(65, make_summary(Reason.DATASET_INVALID, "line 3").to_message(), index=1)
    pods = (running_pod(index=0, deleting=True), cause)
    failing = make_job(status={"failed": 1, "conditions": [condition_object("FailureTarget")]})
    assert stated(plan_for(TWO, jobs=(failing,), pods=pods)) == ("Unknown", "DatasetInvalid")
    assert stated(plan_for(TWO, jobs=(make_job(status={"failed": 1}),), pods=pods)) == ("Unknown", "Restarting")


@pytest.mark.parametrize("code", [65, 72])
def test_the_verdict_on_several_nodes_is_that_of_the_node_that_failed(code: int) -> None:
    """Whichever of the pods is newer; one that was only told to stop explains nothing."""
    reason = {65: Reason.DATASET_INVALID, 72: Reason.GPU_FAULT}[code]
    cause = ended_pod(code, make_summary(reason, "the cause").to_message(), index=0)
    for code_of_peer, message in ((143, ""), (75, make_summary(Reason.PEER_FAILED, "a peer failed").to_message())):
        peer = ended_pod(code_of_peer, message, index=1, created_at=minutes_ago(50))
        job = finished_job("Failed", reason="PodFailurePolicy", failed=2)
        plan = plan_for(TWO, jobs=(job,), pods=(peer, cause))
        assert stated(plan, "Failed") == ("True", reason.value)


def test_retries_of_several_nodes_follow_the_spec() -> None:
    """Each of the pods counts."""
    spec = {"maxRetries": 1, "resources": {"nodes": 4}}
    plan = plan_for(make_finetune(spec=spec), jobs=(make_job(spec={"backoffLimit": 12}),))
    assert [patch.body for patch in plan.patch] == [{"metadata": {"uid": "job-1"}, "spec": {"backoffLimit": 4}}]


# Checkpoints


def test_a_run_without_a_claim_for_checkpoints_is_accepted_and_warned() -> None:
    """What a preemption costs is said before it happens."""
    plan = plan_for(make_finetune(spec=BUCKET))
    assert stated(plan, "Accepted") == ("True", "Accepted")
    assert stated(plan, "CheckpointSaved") == ("False", "NoCheckpointClaim")
    assert "a preemption or any other restart loses what it has done" in condition(plan, "CheckpointSaved")["message"]


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ({}, "PersistentVolumeClaim adapters after 600 s of training"),
        ({**BUCKET, "checkpoint": {"volumeClaimName": "saves"}}, "PersistentVolumeClaim saves after 600 s"),
        ({"checkpoint": {"intervalSeconds": 60, "intervalSteps": 5}}, "after 60 s or 5 steps of training"),
    ],
)
def test_before_the_first_checkpoint_the_condition_tells_when_and_where(spec: dict[str, Any], words: str) -> None:
    """The output's claim serves where none is named."""
    plan = plan_for(make_finetune(spec=spec))
    assert stated(plan, "CheckpointSaved") == ("False", "Pending")
    assert words in condition(plan, "CheckpointSaved")["message"]


def test_a_saved_checkpoint_is_reported_with_its_step_and_outlives_the_pod() -> None:
    """The next pod does not know it at first; its own newer one takes the place."""
    job, pod = make_job(), running_pod()
    progress = Progress(phase=Phase.TRAINING, step=130, total_steps=400, checkpoint_step=120)
    plan = plan_for(make_finetune(), jobs=(job,), pods=(pod,), progress=progress)
    assert stated(plan, "CheckpointSaved") == ("True", "CheckpointSaved")
    assert "Step 120 is saved on PersistentVolumeClaim adapters" in condition(plan, "CheckpointSaved")["message"]
    saved = {"checkpointStep": 120, "checkpointTime": instant(NOW)}
    assert plan.status["progress"].items() >= saved.items()
    finetune = with_status(make_finetune(), plan.status)
    fresh = Progress(phase=Phase.STARTING)
    second = running_pod(name="second", created_at=minutes_ago(2))
    later = plan_for(finetune, jobs=(job,), pods=(ended_pod(143), second), progress=fresh)
    assert condition(later, "CheckpointSaved") == condition(plan, "CheckpointSaved")
    assert later.status["progress"].items() >= saved.items()
    moved = Progress(phase=Phase.TRAINING, step=150, total_steps=400, checkpoint_step=140)
    again = plan_for(finetune, jobs=(job,), pods=(pod,), progress=moved)
    assert "Step 140" in condition(again, "CheckpointSaved")["message"]
    assert condition(again, "CheckpointSaved")["lastTransitionTime"] == instant(NOW)


def test_a_failed_run_says_where_its_last_checkpoint_lies() -> None:
    """For resumeFrom, or for an adapter of what was reached."""
    saved = SavedState(uri="pvc://adapters/.lora-checkpoints/support-tone-abcde/step-00000120", step=120)
    message = make_summary(Reason.NON_FINITE_LOSS, "NaN at step 130", checkpoint=saved).to_message()
    job = finished_job("Failed", reason="PodFailurePolicy", failed=1)
    plan = plan_for(make_finetune(), jobs=(job,), pods=(ended_pod(70, message),))
    assert plan.status["checkpoint"] == {"uri": saved.uri, "step": 120}
    assert stated(plan, "CheckpointSaved") == ("True", "CheckpointSaved")
    assert saved.uri in condition(plan, "CheckpointSaved")["message"]


def test_a_run_none_of_whose_checkpoints_is_whole_promises_none() -> None:
    """Though its progress has noted the last one."""
    progress = {"checkpointStep": 120, "checkpointTime": instant(NOW)}
    finetune = make_finetune(status={**ATTEMPTED, "progress": progress})
    message = make_summary(Reason.CHECKPOINT_INVALID, "no checkpoint of 3 is whole").to_message()
    job = finished_job("Failed", reason="PodFailurePolicy", failed=1)
    plan = plan_for(finetune, jobs=(job,), pods=(ended_pod(78, message),))
    assert stated(plan, "CheckpointSaved") == ("False", "CheckpointInvalid")
    assert "No checkpoint is left" in condition(plan, "CheckpointSaved")["message"]


def test_a_run_that_may_not_resume_is_not_said_to_have_had_no_checkpoint_ever() -> None:
    """An earlier attempt may have saved one that nobody asked it for; what was noted of it stays."""
    message = make_summary(Reason.RESUME_MISMATCH, "lora.rank was 16 and is 32").to_message()
    jobs, pods = (finished_job("Failed", reason="PodFailurePolicy", failed=1),), (ended_pod(78, message),)
    plan = plan_for(make_finetune(status=ATTEMPTED), jobs=jobs, pods=pods)
    assert stated(plan, "CheckpointSaved") == ("False", "ResumeMismatch")
    assert condition(plan, "CheckpointSaved")["message"] == "This attempt has saved no checkpoint"
    progress = {"checkpointStep": 120, "checkpointTime": instant(NOW)}
    noted = plan_for(make_finetune(status={**ATTEMPTED, "progress": progress}), jobs=jobs, pods=pods)
    assert stated(noted, "CheckpointSaved") == ("True", "CheckpointSaved")


def test_a_run_that_ends_before_its_first_checkpoint_promises_none() -> None:
    """With the reason of its end."""
    plan = plan_for(make_finetune(), jobs=(finished_job(),), pods=(ended_pod(0, make_summary().to_message()),))
    assert stated(plan, "CheckpointSaved") == ("False", "Succeeded")
    assert "ended before its first checkpoint" in condition(plan, "CheckpointSaved")["message"]


def test_the_sites_patience_with_a_stall_reaches_the_trainer() -> None:
    """It is a setting of the operator, not of the resource."""
    patient = dataclasses.replace(CONFIG, stall_timeout_s=7777)
    job = decide(make_finetune(), Observed(), patient, NOW).create[0]
    assert '"stall_timeout_s":7777' in job["spec"]["template"]["metadata"]["annotations"][CONFIG_ANNOTATION]
