"""What the operator does where a Job vanishes, and when a run has ended."""

import dataclasses
from datetime import timedelta
from typing import Any

import pytest
from tests.unit.builders import (
    CONFIG,
    NOW,
    UID,
    ended_pod,
    finished_job,
    job_name,
    make_finetune,
    make_job,
    make_pod,
    make_results,
    make_summary,
    minutes_ago,
    running_pod,
    with_status,
)
from tests.unit.plans import ATTEMPTED, condition, finished, plan_for, stated
from tests.unit.reports import make_plan
from tests.unit.status_schema import check_status
from tests.unit.world import World

from lora_operator.decide.results import plan_block
from lora_operator.model.objects import Plan, Refusal
from lora_operator.model.wording import instant
from lora_trainer.spec.progress import Phase, Progress
from lora_trainer.spec.reasons import Reason


def test_a_missing_job_is_read_by_name_before_another_is_made() -> None:
    """The cache may be behind."""
    plan = plan_for(make_finetune(status=ATTEMPTED))
    assert (bool(plan.verify), job_name(1) in plan.verify) == (True, True)


def test_a_deleted_job_is_made_again_as_the_next_attempt() -> None:
    """With an Event that says so."""
    plan = plan_for(make_finetune(status=ATTEMPTED))
    assert [obj["metadata"]["name"] for obj in plan.create] == [job_name(2)]
    assert (plan.status["attempt"], plan.status["jobName"]) == (2, job_name(2))
    assert plan.events[0].reason == "JobRecreated"
    assert job_name(1) in plan.events[0].message


def test_the_next_attempt_starts_with_a_clean_slate() -> None:
    """A pod of the deleted Job that has failed neither holds the new Job up nor tells its state."""
    pods = (ended_pod(75, "ConnectionError: reset", job_uid=""),)
    plan = plan_for(make_finetune(status=ATTEMPTED), pods=pods)
    assert len(plan.create) == 1
    assert stated(plan) == ("Unknown", "Pending")


def test_the_number_of_attempts_survives_in_the_jobs_alone() -> None:
    """The status may be older than the Job."""
    plan = plan_for(make_finetune(status=ATTEMPTED), jobs=(make_job(attempt=2),))
    assert plan.create == ()
    assert plan.status["attempt"] == 2


@pytest.mark.parametrize(("retries", "attempt", "ends"), [(0, 1, True), (1, 1, False), (3, 4, True), (3, 3, False)])
def test_deletions_count_against_max_retries(retries: int, attempt: int, ends: bool) -> None:
    """More Jobs than 1 + maxRetries are never made."""
    finetune = make_finetune(spec={"maxRetries": retries}, status={"attempt": attempt, "jobName": job_name(attempt)})
    plan = plan_for(finetune)
    assert (stated(plan, "Failed") == ("True", "BackoffLimitExceeded")) is ends
    assert (plan.create == ()) is ends


def test_the_pod_of_a_deleted_job_is_waited_for() -> None:
    """Two must never write the same output."""
    pods = (running_pod(job_uid=""),)
    plan = plan_for(make_finetune(status=ATTEMPTED), pods=pods)
    assert plan.create == ()
    assert stated(plan) == ("Unknown", "Restarting")
    assert f"kubectl delete pod {pods[0].name}" in condition(plan, "PodsReady")["message"]
    assert plan.requeue_after_s == CONFIG.pending_check_s


def test_a_job_deleted_after_its_work_was_done_is_not_done_again() -> None:
    """Its pod's summary proves the success, which the Job had counted; another attempt looks at what it did not."""
    pods = (ended_pod(0, make_summary().to_message()),)
    plan = plan_for(make_finetune(status=ATTEMPTED), pods=pods, former_jobs=(make_job(status={"succeeded": 1}),))
    assert stated(plan) == ("True", "Succeeded")
    assert plan.status["completionTime"] == instant(minutes_ago(11))
    for former in ((), (make_job(),)):
        unknown = plan_for(make_finetune(status=ATTEMPTED), pods=pods, former_jobs=former)
        assert [obj["metadata"]["name"] for obj in unknown.create] == [job_name(2)], "no Job has counted it"


def test_a_result_that_no_job_has_counted_is_told_of_where_no_retry_is_left() -> None:
    """The adapter may well be there."""
    pods = (ended_pod(0, make_summary().to_message()),)
    finetune = make_finetune(spec={"maxRetries": 0}, status=ATTEMPTED)
    plan = plan_for(finetune, pods=pods, former_jobs=(make_job(),))
    assert stated(plan, "Failed") == ("True", "BackoffLimitExceeded")
    assert f"pod {pods[0].name} says that it has published" in condition(plan, "Failed")["message"]
    assert "output folder" in condition(plan, "Failed")["message"]


def test_a_standard_error_that_there_is_none_of_is_absent_from_the_status() -> None:
    """As of a single evaluated row."""
    errors = ("evalLossBeforeStandardError", "evalLossAfterStandardError", "improvementStandardError")
    none = dict.fromkeys(
        ("eval_loss_before_standard_error", "eval_loss_after_standard_error", "improvement_standard_error"), None
    )
    for results, shown in ((make_results(), errors), (make_results(**none), ())):
        pod = ended_pod(0, make_summary(results=results).to_message())
        found = plan_for(make_finetune(), jobs=(finished_job(),), pods=(pod,)).status["results"]
        assert tuple(key for key in errors if key in found) == shown
        assert found["evalLossAfter"] == "1.45678"


@pytest.mark.parametrize("reason", [Reason.SUCCEEDED, Reason.DOES_NOT_FIT])
def test_the_plan_that_a_training_made_on_its_device_stays(reason: Reason) -> None:
    """Where preflight knew no device, or there was none; what preflight planned stays where the training made none."""
    code = 0 if reason is Reason.SUCCEEDED else 64
    job = finished_job("Failed", reason="PodFailurePolicy", failed=1) if code else finished_job()
    unknown = plan_block(make_plan(device=None, device_bytes=None))
    passed = {"plan": unknown, "conditions": [{"type": "PreflightPassed", "status": "True"}]}
    for before in ({**ATTEMPTED, **passed}, ATTEMPTED):
        for plan, block in ((None, before.get("plan")), (make_plan(), plan_block(make_plan()))):
            pod = ended_pod(code, make_summary(reason, plan=plan).to_message())
            status = plan_for(make_finetune(status=before), jobs=(job,), pods=(pod,)).status
            assert status.get("plan") == block
            check_status(status)


def test_a_verified_adapter_makes_the_run_complete() -> None:
    """With everything that one wants to know of it."""
    plan = plan_for(make_finetune(), jobs=(finished_job(),), pods=(ended_pod(0, make_summary().to_message()),))
    assert stated(plan, "Complete") == ("True", "Succeeded")
    assert stated(plan, "Failed") == ("False", "Succeeded")
    assert stated(plan, "ArtifactPublished") == ("True", "Succeeded")
    assert stated(plan, "PodsReady") == ("False", "Succeeded")
    assert stated(plan, "Accepted") == ("True", "Accepted")
    assert plan.status["completionTime"] == instant(minutes_ago(10))
    assert condition(plan, "Complete")["lastTransitionTime"] == instant(minutes_ago(10))
    assert plan.status["artifact"]["uri"] == "pvc://adapters/support-tone/run-abcde"
    assert "pvc://adapters/support-tone/run-abcde" in condition(plan, "ArtifactPublished")["message"]
    assert plan.status["results"]["evalLossAfter"] == "1.45678"
    assert plan.status["dataset"]["trainSamples"] == 200
    assert plan.status["progress"] == {
        "step": 400,
        "totalSteps": 400,
        "steps": "400/400",
        "percentage": 100,
        "loss": "1.2346",
        "evalLoss": "1.4568",
        "tokensPerSecond": "442.7",
        "peakMemoryBytes": 20_079_050_752,
        "peakMemory": "18.7 GiB",
    }
    assert [(event.type, event.reason) for event in plan.events] == [("Normal", "Accepted"), ("Normal", "Succeeded")]


def test_exit_code_0_without_a_summary_is_never_complete() -> None:
    """A trainer that was stopped may return 0; nobody has verified anything."""
    plan = plan_for(make_finetune(), jobs=(finished_job(),), pods=(ended_pod(0, "saved a checkpoint"),))
    assert stated(plan, "Failed") == ("True", "ResultUnknown")
    assert stated(plan, "ArtifactPublished") == ("False", "ResultUnknown")
    assert "look at the pod's log" in condition(plan, "Failed")["message"]


def test_a_finished_job_without_its_pod_is_looked_at_twice() -> None:
    """The pod may not have reached the cache yet, and a verdict is for ever."""
    assert plan_for(make_finetune(), jobs=(finished_job(),)).verify
    plan = plan_for(make_finetune(), jobs=(finished_job(),))
    assert stated(plan, "Failed") == ("True", "ResultUnknown")


def test_a_failed_run_keeps_what_it_reached() -> None:
    """Steps and losses stay; the time to go does not."""
    progress = Progress(phase=Phase.TRAINING, step=12, total_steps=400, loss=2.0, estimated_remaining_seconds=9)
    before = plan_for(make_finetune(), jobs=(make_job(),), pods=(running_pod(),), progress=progress)
    message = make_summary(Reason.NON_FINITE_LOSS, "The loss was NaN at step 12").to_message()
    job = finished_job("Failed", reason="PodFailurePolicy", failed=1)
    plan = plan_for(with_status(make_finetune(), before.status), jobs=(job,), pods=(ended_pod(70, message),))
    assert stated(plan) == ("False", "NonFiniteLoss")
    assert condition(plan, "Failed")["message"] == "The loss was NaN at step 12"
    assert plan.status["progress"]["steps"] == "12/400"
    assert "eta" not in plan.status["progress"]
    assert "artifact" not in plan.status


def test_a_verdict_stands_whatever_is_observed_later() -> None:
    """A Job that comes back is stopped; one that fails or vanishes changes nothing."""
    done = finished()
    for jobs in ((), (make_job(),), (finished_job("Failed", reason="BackoffLimitExceeded"),)):
        plan = plan_for(done, jobs=jobs, pods=(ended_pod(1),))
        assert dataclasses.replace(plan, delete=(), verify=frozenset()) == Plan(status=done.status, rule="ended")
        assert [ref.kind for ref in plan.delete] == (["Job"] if make_job() in jobs else [])
        assert bool(plan.verify) == bool(plan.delete), "the Job may have ended by itself meanwhile"


def test_a_finished_resource_speaks_of_its_present_generation() -> None:
    """kubectl wait would hang otherwise."""
    done = finished()
    edited = dataclasses.replace(done, generation=9)
    plan = plan_for(edited)
    assert plan.status["observedGeneration"] == 9
    assert {c["observedGeneration"] for c in plan.status["conditions"]} == {9}
    assert [c["lastTransitionTime"] for c in plan.status["conditions"]] == [
        c["lastTransitionTime"] for c in done.status["conditions"]
    ]


def ttl_of(plan: Plan) -> dict[str, Any]:
    """By Job, the time to live that a plan sets."""
    assert all(patch.body["spec"].keys() == {"ttlSecondsAfterFinished"} for patch in plan.patch)
    return {patch.name: patch.body["spec"]["ttlSecondsAfterFinished"] for patch in plan.patch}


def test_a_finished_job_gets_the_time_to_live_of_the_resource_and_kubernetes_deletes_it() -> None:
    """After a live read, and by uid: the resource and its status stay, and nothing is deleted by the operator."""
    done = finished(spec={"ttlSecondsAfterFinished": 600})
    plan = plan_for(done, jobs=(finished_job(),))
    assert (ttl_of(plan), plan.delete, plan.requeue_after_s, bool(plan.verify)) == ({job_name(): 600}, (), None, True)
    assert plan.patch[0].body["metadata"] == {"uid": "job-1"}
    assert plan.status == done.status
    assert plan_for(done) == Plan(status=done.status, rule="ended")


@pytest.mark.parametrize(("known", "wanted"), [(600, {}), (60, {job_name(): 600}), (0, {job_name(): 600})])
def test_a_time_to_live_that_has_changed_is_set_again(known: int, wanted: dict[str, int]) -> None:
    """By the user, or by a policy of the cluster, which may have its own."""
    plan = plan_for(
        finished(spec={"ttlSecondsAfterFinished": 600}), jobs=(dataclasses.replace(finished_job(), ttl_s=known),)
    )
    assert ttl_of(plan) == wanted


def test_before_the_verdict_no_job_has_a_time_to_live() -> None:
    """Its success is proven by the Job, which stays until then."""
    pods = (ended_pod(0, make_summary().to_message()),)
    plan = plan_for(make_finetune(spec={"ttlSecondsAfterFinished": 0}), jobs=(finished_job(),), pods=pods)
    assert (stated(plan), plan.patch) == (("True", "Succeeded"), ())


def test_a_time_to_live_is_never_set_on_a_job_of_somebody_else() -> None:
    """Nor on one that is being deleted anyway."""
    done = finished(spec={"ttlSecondsAfterFinished": 0})
    assert plan_for(done, jobs=(finished_job(owner_uid="other"), finished_job(deleting=True))).patch == ()


def test_a_time_to_live_that_is_refused_is_advised_until_it_is_set() -> None:
    """The verdict's conditions stay as they are: nothing is wrong with the run."""
    done, denied = finished(spec={"ttlSecondsAfterFinished": 0}), 'admission webhook "keep" denied the request: no'
    (patch,) = plan_for(done, jobs=(finished_job(),)).patch
    rejection = Refusal(kind="Job", name=patch.name, code=403, reason="Forbidden", message=denied)
    plan = plan_for(done, jobs=(finished_job(),), refusals=(dataclasses.replace(rejection, patch=patch),))
    assert plan.patch == ()
    assert plan.status["conditions"] == done.status["conditions"]
    (advice,) = (one for one in plan.status["advice"] if one["code"] == "CleanupRefused")
    assert denied in advice["evidence"]
    told = with_status(done, plan.status)
    set_by_now = dataclasses.replace(finished_job(), ttl_s=0)
    assert plan_for(told, jobs=(set_by_now,)).status == done.status


def test_what_was_refused_before_the_end_is_no_advice_after_it() -> None:
    """A quota that had no room for a Job says nothing of its time to live."""
    done = finished(spec={"ttlSecondsAfterFinished": 0})
    quota = Refusal(kind="Job", name="job-2", code=403, reason="Forbidden", message="exceeded quota: gpus")
    assert plan_for(done, jobs=(finished_job(),), refusals=(quota,)).status == done.status


def test_the_whole_life_of_a_run_tells_its_story_in_events() -> None:
    """One for each change of the state, none twice."""
    world = World()
    world.settle()
    world.job_controller()
    world.settle()
    (pod,) = world.living_pods()
    world.start(pod)
    for phase in Phase:
        world.progress = Progress(phase=phase, step=1, total_steps=1)
        world.pass_time(20)
        world.settle()
    world.finish(pod, 0, make_summary().to_message())
    world.settle()
    world.pass_time(3600)
    world.settle()
    assert [event.reason for event in world.events] == [
        *("Accepted", "Starting", "Preparing", "LoadingModel", "Training", "Checkpointing", "Evaluating"),
        *("Publishing", "Succeeded"),
    ]
    assert world.created_jobs == 1
    assert world.view().uid == UID


def test_a_run_does_not_end_in_the_future() -> None:
    """The clock of a node may be hours ahead, and the time to live counts from here."""
    ahead = {"exitCode": 0, "reason": "Completed", "message": make_summary().to_message()}
    pod = make_pod(
        phase="Succeeded",
        state={"terminated": {**ahead, "finishedAt": instant(NOW + timedelta(hours=5))}},
    )
    plan = plan_for(make_finetune(status=ATTEMPTED), pods=(pod,), former_jobs=(make_job(status={"succeeded": 1}),))
    assert stated(plan) == ("True", "Succeeded")
    assert plan.status["completionTime"] == instant(NOW)


@pytest.mark.parametrize("status", [ATTEMPTED, {}], ids=["stored", "before its first status"])
def test_a_job_that_had_failed_when_it_was_deleted_is_not_made_again(status: dict[str, Any]) -> None:
    """Another attempt would train to the same end. One that was complete is made again: it verifies what is there."""
    pods = (ended_pod(66, make_summary(Reason.MODEL_NOT_FOUND, "no such model").to_message()),)
    failed = finished_job("Failed", reason="PodFailurePolicy", failed=1)
    plan = plan_for(make_finetune(status=status), pods=pods, former_jobs=(failed,))
    assert (stated(plan, "Failed"), plan.create, bool(plan.verify)) == (("True", "ModelNotFound"), (), True)
    assert condition(plan, "Failed")["message"] == "no such model"
    assert plan_for(make_finetune(status=status), former_jobs=(finished_job(),)).create
    later = plan_for(make_finetune(status={"attempt": 2, "jobName": job_name(2)}), former_jobs=(failed,))
    assert [obj["metadata"]["name"] for obj in later.create] == [job_name(3)]
