"""A run in a queue of Kueue: what its conditions say, and how it is held and let go, for each state of its Workload."""

import dataclasses
from datetime import datetime
from typing import Any

import pytest
from tests.unit.builders import (
    CONFIG,
    NOW,
    Object,
    condition_object,
    finished_job,
    make_finetune,
    make_job,
    make_workload,
    make_workload_object,
    minutes_ago,
    running_pod,
    with_status,
)
from tests.unit.deciding import decide
from tests.unit.world import World

from lora_operator.model.config import OperatorConfig
from lora_operator.model.names import QUEUE_LABEL, SUSPEND_ANNOTATION
from lora_operator.model.objects import FineTune, Observed, Patch, Plan, Refusal
from lora_operator.model.observe import parse_workload
from lora_operator.model.wording import instant

LABELS = {"labels": {QUEUE_LABEL: "gpus"}}
NO_ROOM = (
    "couldn't assign flavors to pod set main: insufficient unused quota for nvidia.com/gpu in flavor any, 1 more needed"
)
PENDING = condition_object("QuotaReserved", "False", since=minutes_ago(20), reason="Pending", message=NO_ROOM)
MISSING = condition_object(
    "QuotaReserved", "False", since=minutes_ago(20), reason="Inadmissible", message="LocalQueue gpus doesn't exist"
)
GRANTED = condition_object(
    "QuotaReserved", since=minutes_ago(20), reason="QuotaReserved", message="Quota reserved in ClusterQueue all"
)

DEACTIVATED = (
    "Workload job-job-1 was deactivated, but not by spec.suspend of this LoRAFineTune{why}: it waits in queue gpus "
    "again when spec.active of the Workload is set to true"
)


def evicted(reason: str, message: str = "", status: str = "True") -> Object:
    """Kueue took the quota back, or did so once."""
    return condition_object("Evicted", status, since=minutes_ago(5), reason=reason, message=message)


def taken_back(message: str) -> Object:
    """Kueue has just taken the quota back, for the reason of the eviction."""
    return condition_object("QuotaReserved", "False", since=minutes_ago(4), reason="Pending", message=message)


def run(status: Object | None = None, **spec: Any) -> FineTune:
    """A run in the queue `gpus`."""
    return make_finetune(spec=spec, status=status, metadata=LABELS)


def plan_for(
    finetune: FineTune, *, workloads: tuple[Any, ...] = (), config: OperatorConfig = CONFIG, **observed: Any
) -> Plan:
    """The plan at `NOW` in a cluster with Kueue."""
    values = {"kueue": True, "workloads": workloads, **observed}
    plan = decide(finetune, Observed(**values), config, NOW)
    if plan.create:
        return plan
    again = decide(with_status(finetune, plan.status), Observed(**values), config, NOW)
    assert again.status == plan.status, "what was written is not to be written again"
    return plan


def stated(plan: Plan, kind: str) -> tuple[str, str, str]:
    """Status, reason and message of a condition of the planned status."""
    found = next(c for c in plan.status["conditions"] if c["type"] == kind)
    return found["status"], found["reason"], found["message"]


def held_job(**changes: Any) -> Any:
    """A Job that Kueue holds."""
    return make_job(queue="gpus", spec={"suspend": True}, status={"startTime": None}, **changes)


@pytest.mark.parametrize(
    ("workload", "state", "says", "quota"),
    [
        (make_workload(PENDING), "Queued", f"Waiting for quota in queue gpus: {NO_ROOM}", NO_ROOM),
        (make_workload(), "Queued", "Kueue has not looked at it yet", "Kueue has not looked at it yet"),
        (make_workload(MISSING), "Queued", "doesn't exist: create it", "LocalQueue gpus doesn't exist: create it"),
        (
            make_workload(PENDING, evicted("Preempted", "Preempted to accommodate a workload (UID: 7)")),
            "Preempted",
            "Preempted to accommodate a workload (UID: 7). Waiting for quota in queue gpus: couldn't assign",
            NO_ROOM,
        ),
        (
            make_workload(PENDING, evicted("ClusterQueueStopped", "The ClusterQueue is stopped")),
            "Queued",
            "The ClusterQueue is stopped. Waiting for quota",
            NO_ROOM,
        ),
        (make_workload(PENDING, evicted("Preempted", status="False")), "Queued", "Waiting for quota", NO_ROOM),
        (
            make_workload(PENDING, evicted("Deactivated", "The workload is deactivated"), active=False),
            "SuspendedExternally",
            "was deactivated, but not by spec.suspend of this LoRAFineTune (The workload is deactivated)",
            NO_ROOM,
        ),
        (
            make_workload(PENDING, job_uid="job-of-another"),
            "Queued",
            "Waiting for Kueue to put Job",
            "Kueue's controller",
        ),
    ],
)
def test_a_job_that_kueue_holds_says_why_in_kueues_words(workload: Any, state: str, says: str, quota: str) -> None:
    """The state, the suspension and the quota, each in its condition; nothing is written to Job or Workload."""
    plan = plan_for(run(), jobs=(held_job(),), workloads=(workload,))
    assert stated(plan, "Complete")[:2] == ("Unknown", state)
    assert stated(plan, "Suspended")[:2] == ("True", state)
    assert says in stated(plan, "Suspended")[2]
    assert stated(plan, "QuotaReserved")[:2] == ("False", state)
    assert quota in stated(plan, "QuotaReserved")[2]
    assert (plan.create, plan.patch) == ((), ())


def test_quota_that_is_granted_is_reported_before_the_job_starts_and_while_it_runs() -> None:
    """Kueue lifts the suspension a moment later."""
    workload = make_workload(GRANTED)
    soon = plan_for(run(), jobs=(held_job(),), workloads=(workload,))
    assert stated(soon, "QuotaReserved") == ("True", "QuotaReserved", "Quota reserved in ClusterQueue all")
    assert stated(soon, "Suspended")[1] == "Queued"
    assert stated(soon, "Suspended")[2] == "Quota reserved in ClusterQueue all; Kueue has yet to start the Job"
    running = plan_for(run(), jobs=(make_job(queue="gpus"),), pods=(running_pod(),), workloads=(workload,))
    assert stated(running, "QuotaReserved")[0] == "True"
    assert stated(running, "Suspended")[:2] == ("False", "NotSuspended")
    quota = next(c for c in running.status["conditions"] if c["type"] == "QuotaReserved")
    assert quota["lastTransitionTime"] == instant(minutes_ago(20))


@pytest.mark.parametrize(
    ("workload", "state", "says", "quota"),
    [
        (
            make_workload(GRANTED, evicted("Preempted", "Preempted for another")),
            "Preempted",
            "Preempted for another. The run waits in queue gpus again when its pods have stopped",
            ("True", "QuotaReserved", "Quota reserved in ClusterQueue all, until the pods have stopped"),
        ),
        (
            make_workload(GRANTED, evicted("Deactivated", "The workload is deactivated"), active=False),
            "SuspendedExternally",
            DEACTIVATED.format(why=" (The workload is deactivated)"),
            ("True", "QuotaReserved", "Quota reserved in ClusterQueue all, until the pods have stopped"),
        ),
        (
            make_workload(taken_back("Preempted for another"), evicted("Preempted", "Preempted for another")),
            "Preempted",
            "Preempted for another. Waiting for quota in queue gpus: Kueue has not looked at it again yet",
            ("False", "Preempted", "Kueue has not looked at it again yet"),
        ),
        (
            make_workload(GRANTED, evicted("Deactivated", "The workload is deactivated")),
            "Queued",
            "The run waits in queue gpus again when its pods have stopped",
            ("True", "QuotaReserved", "Quota reserved in ClusterQueue all, until the pods have stopped"),
        ),
        (
            make_workload(
                taken_back("The workload is deactivated"), evicted("Deactivated", "The workload is deactivated")
            ),
            "Queued",
            "Waiting for quota in queue gpus: Kueue has not looked at it again yet",
            ("False", "Queued", "Kueue has not looked at it again yet"),
        ),
        (
            make_workload(
                taken_back("Preempted for another"), evicted("Preempted", "Preempted for another"), active=False
            ),
            "SuspendedExternally",
            DEACTIVATED.format(why=""),
            ("False", "SuspendedExternally", "Preempted for another"),
        ),
    ],
    ids=[
        "preempted and with its quota yet",
        "deactivated and with its quota yet",
        "preempted and just without its quota",
        "active again before its quota is gone",
        "active again and not looked at",
        "preempted and then deactivated",
    ],
)
def test_a_workload_that_was_evicted_says_what_is_true_at_each_moment(
    workload: Any, state: str, says: str, quota: tuple[str, str, str]
) -> None:
    """It has its quota until the pods have stopped, and then its eviction's words until Kueue looks at it again."""
    plan = plan_for(run(), jobs=(held_job(),), workloads=(workload,))
    assert stated(plan, "Suspended") == ("True", state, says)
    assert stated(plan, "QuotaReserved") == quota


def test_a_queue_without_kueue_says_what_to_do() -> None:
    """Nobody would ever admit the Job."""
    plan = plan_for(run(), jobs=(held_job(),), kueue=False)
    status, reason, message = stated(plan, "QuotaReserved")
    assert (status, reason) == ("False", "Queued")
    assert "this cluster has no Kueue: install Kueue, or create a new LoRAFineTune without the label" in message
    assert stated(plan, "Suspended")[1] == "Queued"


def test_a_run_in_no_queue_has_no_condition_about_quota() -> None:
    """The absence tells it from one that waits."""
    plan = plan_for(make_finetune(), jobs=(make_job(),), workloads=(make_workload(PENDING),))
    assert "QuotaReserved" not in [c["type"] for c in plan.status["conditions"]]


def test_suspend_deactivates_the_workload_and_leaves_the_job_alone() -> None:
    """A suspended Job of a queue would be resumed by Kueue at once; an inactive Workload gives its quota back."""
    job, pod, workload = make_job(queue="gpus"), running_pod(), make_workload(GRANTED)
    plan = plan_for(run(suspend=True), jobs=(job,), pods=(pod,), workloads=(workload,))
    body = {"metadata": {"uid": workload.uid, "annotations": {SUSPEND_ANNOTATION: "true"}}, "spec": {"active": False}}
    assert plan.patch == (Patch(kind="Workload", name="job-job-1", body=body),)
    assert stated(plan, "Suspended") == ("False", "NotSuspended", "The run is not suspended")
    applied = make_workload(PENDING, evicted("Deactivated"), active=False, intent="true")
    after = plan_for(run(suspend=True), jobs=(held_job(),), workloads=(applied,))
    assert after.patch == ()
    assert stated(after, "Suspended")[:2] == ("True", "SuspendedByUser")
    assert stated(after, "QuotaReserved")[:2] == ("False", "SuspendedByUser")


def test_resuming_puts_the_workload_back_into_its_queue() -> None:
    """It is active again, and waits for quota like any other."""
    workload = make_workload(
        PENDING, evicted("Deactivated", "The workload is deactivated"), active=False, intent="true"
    )
    plan = plan_for(run(), jobs=(held_job(),), workloads=(workload,))
    body = {"metadata": {"uid": workload.uid, "annotations": {SUSPEND_ANNOTATION: "false"}}, "spec": {"active": True}}
    assert plan.patch == (Patch(kind="Workload", name="job-job-1", body=body),)
    assert stated(plan, "Suspended")[:2] == ("True", "Queued")


def test_somebody_elses_deactivation_is_not_undone() -> None:
    """Nor is a resumption against the user's wish: it was applied once, and is told."""
    ours = make_workload(PENDING, active=False, intent="false")
    assert plan_for(run(), jobs=(held_job(),), workloads=(ours,)).patch == ()
    undone = make_workload(GRANTED, active=True, intent="true")
    plan = plan_for(run(suspend=True), jobs=(make_job(queue="gpus"),), pods=(running_pod(),), workloads=(undone,))
    assert plan.patch == ()
    assert "another controller resumed the Job" in stated(plan, "Suspended")[2]


def test_a_workload_that_kueue_made_anew_is_held_again() -> None:
    """The wish that was noted on the old one is gone with it."""
    plan = plan_for(run(suspend=True), jobs=(held_job(),), workloads=(make_workload(PENDING),))
    assert [patch.kind for patch in plan.patch] == ["Workload"]


def test_a_suspended_run_in_a_queue_has_no_job_until_it_is_resumed() -> None:
    """Kueue might admit the Job before its Workload could be deactivated."""
    plan = plan_for(run(suspend=True))
    assert (plan.create, plan.requeue_after_s) == ((), None)
    assert stated(plan, "Suspended") == (
        "True",
        "SuspendedByUser",
        "Suspended by spec.suspend: set it to false to resume",
    )
    assert stated(plan, "QuotaReserved") == ("False", "SuspendedByUser", "The run holds no quota of queue gpus")
    assert stated(plan, "Accepted") == ("True", "Accepted", "The spec is valid; its Job is not made yet")
    resumed = plan_for(with_status(run(), plan.status))
    assert [manifest["kind"] for manifest in resumed.create] == ["Job"]
    assert resumed.create[0]["spec"]["suspend"] is True
    assert stated(resumed, "Complete")[1] == "Queued"


def test_the_training_job_waits_where_a_run_was_suspended_during_its_preflight() -> None:
    """The preflight is looked after until it ends; the next one is not made before the run is resumed."""
    going = make_job(queue="gpus", stage="preflight")
    workload = make_workload(GRANTED, job_uid="preflight-1")
    held = run(suspend=True, preflight="Run")
    plan = plan_for(held, jobs=(going,), workloads=(workload,))
    assert [(patch.kind, patch.name) for patch in plan.patch] == [("Workload", "job-preflight-1")]
    over = dataclasses.replace(finished_job(stage="preflight"), queue="gpus")
    plan = plan_for(held, jobs=(over,))
    assert (plan.create, stated(plan, "Complete")[1]) == ((), "SuspendedByUser")


def test_a_run_whose_return_to_its_queue_is_refused_says_so() -> None:
    """It was nobody else who deactivated the Workload."""
    rejection = Refusal(kind="Workload", name="job-job-1", code=422, reason="Invalid", message="no")
    workload = make_workload(PENDING, active=False, intent="true")
    (back,) = plan_for(run(), jobs=(held_job(),), workloads=(workload,)).patch
    assert (back.kind, back.body["spec"]) == ("Workload", {"active": True})
    rejection = dataclasses.replace(rejection, patch=back)
    plan = plan_for(run(), jobs=(held_job(),), workloads=(workload,), refusals=(rejection,))
    assert (plan.patch, stated(plan, "Suspended")[:2]) == ((), ("True", "SuspendedByUser"))
    assert "false again, but Workload job-job-1 is not resumed yet" in stated(plan, "Suspended")[2]


def test_a_job_that_was_made_before_the_label_stays_out_of_the_queue() -> None:
    """The label on the Job counts: a later one on the resource changes nothing for it."""
    plan = plan_for(run(suspend=True), jobs=(make_job(),), pods=(running_pod(),))
    assert [(patch.kind, patch.body["spec"]) for patch in plan.patch] == [("Job", {"suspend": True})]
    assert "QuotaReserved" not in [c["type"] for c in plan.status["conditions"]]


@pytest.mark.parametrize("since", [minutes_ago(59), minutes_ago(58)])
def test_the_wait_before_the_start_that_a_stale_cache_shows_again_was_no_preemption(since: datetime) -> None:
    """The status knows of the start already, from an operator that had heard more; to the second, in the same one."""
    running = plan_for(
        run(), jobs=(make_job(queue="gpus"),), pods=(running_pod(),), workloads=(make_workload(GRANTED),)
    )
    assert running.status["activeSince"] == instant(minutes_ago(58))
    waiting = make_job(
        queue="gpus",
        spec={"suspend": True},
        status={"startTime": None, "conditions": [condition_object("Suspended", since=since)]},
    )
    then = plan_for(with_status(run(), running.status), jobs=(waiting,), workloads=(make_workload(PENDING),))
    assert "retries" not in then.status


def test_a_job_that_is_made_again_waits_in_its_queue_for_the_first_time() -> None:
    """Its pod outlived the one before, so that the run was active until then: nothing was preempted."""
    world = World()
    world.edit(maxRetries=0, preflight="Run")
    world.finetune["metadata"]["labels"] = {"kueue.x-k8s.io/queue-name": "gpus"}
    world.settle()
    (name,) = world.jobs
    world.suspend_job(name, value=False)
    world.job_controller()
    world.settle()
    world.pass_time(1)
    world.delete_job(name, orphan=True)
    world.settle()
    world.job_controller()
    world.pods.clear()
    world.settle()
    assert world.condition("Suspended") == ("True", "Queued")
    assert "retries" not in world.status


@pytest.mark.parametrize(("said", "intent"), [(True, "true"), (True, "false"), (False, "true")])
def test_what_a_user_held_and_let_go_while_no_operator_ran_was_no_preemption(said: bool, intent: str) -> None:
    """The status, the mark on the Workload, or both know it, whichever write the last operator came to."""
    running = plan_for(
        run(), jobs=(make_job(queue="gpus"),), pods=(running_pod(),), workloads=(make_workload(GRANTED),)
    )
    before = with_status(run(), running.status)
    if said:
        held = plan_for(
            with_status(run(suspend=True), running.status), jobs=(held_job(),), workloads=(make_workload(PENDING),)
        )
        assert (stated(held, "Complete")[1], "activeSince" in held.status) == ("SuspendedByUser", True)
        before = with_status(run(), held.status)
    suspended = make_job(
        queue="gpus",
        spec={"suspend": True},
        status={"startTime": None, "conditions": [condition_object("Suspended", since=minutes_ago(5))]},
    )
    then = plan_for(
        before, jobs=(suspended,), workloads=(make_workload(PENDING, active=intent != "true", intent=intent),)
    )
    assert "activeSince" not in then.status
    assert "retries" not in then.status


def test_a_run_that_has_ended_holds_no_quota() -> None:
    """Kueue gives it to the next one when the Job ends."""
    before = plan_for(run(), jobs=(make_job(queue="gpus"),), pods=(running_pod(),), workloads=(make_workload(GRANTED),))
    job = dataclasses.replace(finished_job("Failed", reason="BackoffLimitExceeded"), queue="gpus")
    observed = Observed(kueue=True, jobs=(job,), workloads=(make_workload(GRANTED),))
    plan = decide(with_status(run(), before.status), observed, CONFIG, NOW)
    status, reason, message = stated(plan, "QuotaReserved")
    assert (status, message) == ("False", "The run holds no quota of queue gpus")
    assert reason == stated(plan, "Failed")[1]


def test_what_kueue_says_is_reported_on_one_line_and_without_secrets() -> None:
    """Provisioning errors of a cloud come through its conditions."""
    said = "line 1\nthe cloud said: token=abcdef0123456789abcdef\x07"
    workload = make_workload(condition_object("QuotaReserved", "False", message=said))
    plan = plan_for(run(), jobs=(held_job(),), workloads=(workload,))
    for kind in ("Complete", "QuotaReserved"):
        message = stated(plan, kind)[2]
        assert "line 1 the cloud said" in message
        assert "abcdef" not in message
        assert message.isprintable()


@pytest.mark.parametrize("status", [{"clusterName": "worker-2"}, {"nominatedClusterNames": ["worker-2", "worker-3"]}])
def test_a_run_that_multikueue_sends_to_another_cluster_fails_with_the_reason(status: Object) -> None:
    """Its pod and the proof of its result would be there, where nobody looks."""
    workload = make_workload_object(GRANTED)
    workload["status"] |= status
    plan = decide(run(), Observed(kueue=True, jobs=(held_job(),), workloads=(parse_workload(workload),)), CONFIG, NOW)
    assert stated(plan, "Failed")[:2] == ("True", "MultiClusterQueue")
    assert "worker-2" in stated(plan, "Failed")[2]
    assert bool(plan.verify)


def test_a_job_that_another_controller_runs_is_none_that_can_be_followed() -> None:
    """Kueue marks it so where its ClusterQueue has MultiKueue's admission check."""
    remote = make_job(queue="gpus", spec={"managedBy": "kueue.x-k8s.io/multikueue"})
    assert stated(decide(run(), Observed(kueue=True, jobs=(remote,)), CONFIG, NOW), "Failed")[1] == "MultiClusterQueue"
    local = make_job(queue="gpus", spec={"managedBy": "kubernetes.io/job-controller"})
    assert stated(decide(run(), Observed(kueue=True, jobs=(local,)), CONFIG, NOW), "Failed")[0] == "Unknown"
