"""When the operator itself ends a run whose Job would go on, and what becomes of the Job."""

import dataclasses
from datetime import timedelta
from typing import Any

import pytest
from tests.unit.builders import (
    CONFIG,
    NOW,
    condition_object,
    ended_pod,
    finished_job,
    make_event,
    make_finetune,
    make_job,
    make_pod,
    make_summary,
    minutes_ago,
    running_pod,
    waiting_pod,
    with_status,
)
from tests.unit.deciding import decide
from tests.unit.plans import ATTEMPTED, condition, plan_for, stated

from lora_operator.model.config import OperatorConfig
from lora_operator.model.names import SUSPEND_ANNOTATION
from lora_operator.model.objects import FineTune, JobView, Observed, Plan, PodView, Refusal
from lora_operator.model.wording import instant
from lora_trainer.spec.progress import Phase, Progress

PULL = 'Failed to pull image "registry.example/lora-trainer:1.0": not found'
IMPATIENT = make_finetune(spec={"pendingTimeoutSeconds": 600})


def look(
    finetune: FineTune,
    *,
    jobs: tuple[JobView, ...] = (),
    pods: tuple[PodView, ...] = (),
    config: OperatorConfig = CONFIG,
    **observed: Any,
) -> Plan:
    """The plan after a live look, which such an end always takes."""
    return decide(finetune, Observed(jobs=jobs, pods=pods, **observed), config, NOW)


def job_since(minutes: float, **changes: Any) -> JobView:
    """A Job that has been started or resumed so many minutes ago."""
    return make_job(status={"startTime": instant(minutes_ago(minutes))}, **changes)


def ready_since(minutes: float, status: str = "False") -> FineTune:
    """The impatient run, whose condition PodsReady has been as it is for so long."""
    stored = {"attempt": 1, "conditions": [condition_object("PodsReady", status, since=minutes_ago(minutes))]}
    return with_status(IMPATIENT, stored)


def held_since(minutes: float, status: str = "True") -> FineTune:
    """The impatient run, none of whose pods runs, and whose condition Suspended has been as it is for so long."""
    kinds = {"PodsReady": "False", "Suspended": status}
    conditions = [condition_object(kind, value, since=minutes_ago(minutes)) for kind, value in kinds.items()]
    return with_status(IMPATIENT, {"attempt": 1, "conditions": conditions})


def held_job(minutes: float, *, suspend: bool, **changes: Any) -> JobView:
    """A Job that says that it has been suspended for so long. It was never started, or Kueue reset its start."""
    status = {"startTime": None, "conditions": [condition_object("Suspended", since=minutes_ago(minutes))]}
    intent = {SUSPEND_ANNOTATION: str(suspend).lower()}
    return make_job(spec={"suspend": suspend}, status=status, annotations=intent, **changes)


OF_TWO_NODES = {"pendingTimeoutSeconds": 600, "resources": {"nodes": 2}}
WAITING: dict[str, tuple[FineTune, JobView, tuple[PodView, ...], float | None]] = {
    "since its Job has started": (IMPATIENT, job_since(4), (), 360),
    "since its pods ceased to run": (ready_since(3), job_since(50), (), 420),
    "since it was resumed": (ready_since(50), job_since(2), (make_pod(),), 480),
    "of several nodes, whichever of their pods is made anew while another has none": (
        with_status(make_finetune(spec=OF_TWO_NODES), ready_since(50).status),
        job_since(50),
        (make_pod(name="next", created_at=minutes_ago(1)),),
        -2400,
    ),
    "since now, where it has just run": (ready_since(50, "True"), job_since(50), (make_pod(),), 600),
    "since now, where the user resumes it": (held_since(50), held_job(50, suspend=True), (), 600),
    "since now, where its queue has just admitted it": (
        held_since(50),
        held_job(50, suspend=False, queue="q"),
        (),
        600,
    ),
    "since now, where only its Job tells that it was held": (ready_since(50), held_job(50, suspend=False), (), 600),
    "not once a pod has published, which its Job has yet to count": (
        with_status(make_finetune(spec=OF_TWO_NODES), ready_since(50).status),
        job_since(50),
        (ended_pod(0, make_summary().to_message()), make_pod(name="next", index=1, created_at=minutes_ago(30))),
        None,
    ),
    "not while its pods run": (ready_since(50), job_since(50), (running_pod(),), None),
    "not while it is suspended": (ready_since(50), job_since(50, spec={"suspend": True}), (), None),
    "not while its Job is being deleted": (ready_since(50), job_since(50, deleting=True), (), None),
    "too long": (ready_since(50), job_since(10), (waiting_pod("ErrImagePull", PULL),), 0),
}


@pytest.mark.parametrize(("finetune", "job", "pods", "left_s"), WAITING.values(), ids=WAITING)
def test_a_run_waits(finetune: FineTune, job: JobView, pods: tuple[PodView, ...], left_s: float | None) -> None:
    """For no longer than pendingTimeoutSeconds, and to the second."""
    plan = look(finetune, jobs=(job,), pods=pods)
    if left_s is None or left_s > 0:
        assert stated(plan)[0] == "Unknown"
        assert plan.due_in_s == left_s
        return
    assert stated(plan, "Failed") == ("True", "PendingTimeout")
    assert plan.status["completionTime"] == plan.status["activeUntil"] == instant(NOW + timedelta(seconds=left_s))
    assert "activeSince" not in plan.status


def test_a_job_that_is_refused_the_next_pod_does_not_keep_it_back() -> None:
    """The namespace's quota does, which is a wait."""
    event = make_event("job-1", "FailedCreate", 'pods "x" is forbidden: exceeded quota: gpus')
    plan = look(ready_since(4), jobs=(job_since(50),), pods=(ended_pod(75),), events=(event,))
    assert (stated(plan), plan.due_in_s) == (("Unknown", "QuotaExceeded"), 360)


def test_the_end_of_a_wait_tells_the_last_reason_and_comes_after_a_live_look() -> None:
    """The cache may not have seen yet that the pod runs."""
    job, pod = job_since(10), waiting_pod("ErrImagePull", PULL)
    assert plan_for(IMPATIENT, jobs=(job,), pods=(pod,)).verify
    message = condition(look(IMPATIENT, jobs=(job,), pods=(pod,)), "Failed")["message"]
    assert "spec.pendingTimeoutSeconds (600 s)" in message
    assert "ImagePullBackOff" in message
    assert PULL in message


def test_a_run_whose_job_is_refused_waits_no_longer_either() -> None:
    """It stays not accepted, with the server's words."""
    refusal = Refusal(kind="Job", name="x", code=403, reason="Forbidden", message="exceeded quota: gpus")
    early = with_status(IMPATIENT, {"conditions": [condition_object("PodsReady", "False", since=minutes_ago(9))]})
    plan = look(early, refusals=(refusal,))
    assert (stated(plan), plan.due_in_s) == (("Unknown", "QuotaExceeded"), 60)
    late = with_status(IMPATIENT, {"conditions": [condition_object("PodsReady", "False", since=minutes_ago(11))]})
    assert decide(late, Observed(refusals=(refusal,)), CONFIG, NOW).verify, "the Job may be there by now"
    plan = look(late, refusals=(refusal,))
    assert stated(plan, "Failed") == ("True", "PendingTimeout")
    assert "exceeded quota: gpus" in condition(plan, "Failed")["message"]
    assert stated(plan, "Accepted") == ("False", "QuotaExceeded")
    held = with_status(make_finetune(spec={"pendingTimeoutSeconds": 600, "suspend": True}), early.status)
    assert look(held, refusals=(refusal,)).due_in_s is None


def test_a_run_that_was_held_without_a_job_waits_from_its_resumption_on() -> None:
    """A quota that refuses its Job does not end it for the time that its user held it."""
    refusal = Refusal(kind="Job", name="x", code=403, reason="Forbidden", message="exceeded quota: gpus")
    plan = look(held_since(50), refusals=(refusal,))
    assert (stated(plan), plan.due_in_s) == (("Unknown", "QuotaExceeded"), 600)
    plan = look(held_since(4, "False"), refusals=(refusal,))
    assert (stated(plan), plan.due_in_s) == (("Unknown", "QuotaExceeded"), 360)


@pytest.mark.parametrize(
    ("is_there", "passed"), [(True, False), (True, True), (False, True)], ids=["not stored yet", "there", "gone"]
)
def test_a_run_whose_training_is_refused_waits_from_the_end_of_its_preflight_on(is_there: bool, passed: bool) -> None:
    """Whether the preflight's Job is there or not: a preflight of 40 minutes is no wait, and does not forbid one."""
    refusal = Refusal(kind="Job", name="x", code=403, reason="Forbidden", message="exceeded quota: gpus")
    impatient = make_finetune(spec={"pendingTimeoutSeconds": 600, "preflight": "Run"})
    plans = []
    for minutes in (4, 11):
        conditions = [condition_object("PodsReady", "False", since=minutes_ago(45))]
        if passed:
            conditions.append(condition_object("PreflightPassed", "True", since=minutes_ago(minutes)))
        ended = make_job(
            stage="preflight",
            status={
                "startTime": instant(minutes_ago(44)),
                "succeeded": 1,
                "completionTime": instant(minutes_ago(minutes)),
                "conditions": [condition_object("Complete", since=minutes_ago(minutes))],
            },
        )
        finetune = with_status(impatient, {"conditions": conditions})
        plans.append(look(finetune, jobs=(ended,) if is_there else (), refusals=(refusal,)))
    assert (stated(plans[0]), plans[0].due_in_s) == (("Unknown", "QuotaExceeded"), 360)
    assert stated(plans[1], "Failed") == ("True", "PendingTimeout")


def test_a_pod_at_work_before_the_training_does_not_wait() -> None:
    """However long it takes; one that cannot begin does."""
    spec = {"pendingTimeoutSeconds": 600, "preflight": "Run"}
    job = make_job(stage="preflight")
    at_work = look(make_finetune(spec=spec), jobs=(job,), pods=(running_pod(stage="preflight"),))
    assert (stated(at_work), at_work.due_in_s) == (("Unknown", "Preflight"), None)
    stuck = look(make_finetune(spec=spec), jobs=(job,), pods=(make_pod(stage="preflight"),))
    assert stated(stuck, "Failed") == ("True", "PendingTimeout")


def test_an_image_with_an_impossible_name_is_final() -> None:
    """A pull that fails may succeed later; a name cannot."""
    pods = (waiting_pod("InvalidImageName", 'couldn\'t parse image name "x:y:z"'),)
    plan = look(make_finetune(), jobs=(make_job(),), pods=pods)
    assert stated(plan, "Failed") == ("True", "InvalidImage")
    assert stated(look(make_finetune(), jobs=(make_job(),), pods=(waiting_pod("ErrImagePull"),)))[0] == "Unknown"


def evicted(number: int) -> PodView:
    """A pod that its node evicted, which the Job does not count."""
    reason = condition_object("DisruptionTarget", reason="TerminationByKubelet", message="low on disk")
    pod = ended_pod(137, conditions=(reason,), created_at=minutes_ago(50 - number))
    return dataclasses.replace(pod, name=f"pod-{number}", uid=f"uid-{number}")


def test_what_the_job_counts_itself_is_left_to_the_job() -> None:
    """It ends in a moment, with its own words."""
    job = make_job(spec={"backoffLimit": 0})
    for pod in (ended_pod(75), ended_pod(65)):
        assert stated(look(make_finetune(spec={"maxRetries": 0}), jobs=(job,), pods=(pod,)))[0] == "Unknown"


def test_no_job_is_made_or_resumed_for_which_no_time_is_left() -> None:
    """The deadline holds over all attempts; what is held by the user waits, for it may be raised."""
    spec = {"activeDeadlineSeconds": 600}
    spent = {"attempt": 1, "runSeconds": 600, "activeUntil": instant(minutes_ago(20))}
    finetune = with_status(make_finetune(spec=spec), spent)
    held = make_job(
        spec={"suspend": True},
        status={"conditions": [condition_object("Suspended", since=minutes_ago(20))]},
        annotations={"lora-operator.io/suspend": "true"},
    )
    for jobs in ((), (held,)):
        plan = look(finetune, jobs=jobs)
        assert (plan.create, plan.patch) == ((), ())
        assert stated(plan, "Failed") == ("True", "DeadlineExceeded")
    waits = look(with_status(make_finetune(spec={**spec, "suspend": True}), spent), jobs=(held,))
    assert stated(waits) == ("Unknown", "SuspendedByUser")
    raised = look(with_status(make_finetune(spec={"activeDeadlineSeconds": 900}), spent), jobs=(held,))
    assert raised.patch[0].body["spec"] == {"suspend": False, "activeDeadlineSeconds": 300}
    going = look(finetune, jobs=(job_since(10),), pods=(running_pod(),))
    assert stated(going)[0] == "Unknown", "Kubernetes ends what is active"
    assert going.patch[0].body["spec"] == {"activeDeadlineSeconds": 1}


def test_the_training_gets_what_the_preflight_left_of_retries_and_time() -> None:
    """Both are the run's, and so is what an earlier one took whose Job was deleted."""
    spec = {"activeDeadlineSeconds": 7200, "maxRetries": 3, "preflight": "Run"}
    before = {"runSeconds": 200, "activeUntil": instant(minutes_ago(59)), "retries": {"used": 2}}
    anew = look(with_status(make_finetune(spec=spec), before))
    limits = {"backoffLimit": 1, "activeDeadlineSeconds": 7000}
    assert limits.items() <= anew.create[0]["spec"].items()
    done = dataclasses.replace(finished_job(stage="preflight"), failed=1)
    pods = (ended_pod(75, stage="preflight", name="first"), ended_pod(0, stage="preflight"))
    plan = look(make_finetune(spec=spec), jobs=(done,), pods=pods)
    job = next(obj for obj in plan.create if obj["kind"] == "Job")
    assert job["spec"]["backoffLimit"] == 2
    assert job["metadata"]["annotations"]["lora-operator.io/retries-before"] == "1"
    assert job["spec"]["activeDeadlineSeconds"] == 7200 - plan.status["runSeconds"] == 7200 - 48 * 60


def test_a_job_that_was_given_up_is_stopped_once_the_verdict_is_stored() -> None:
    """By its uid; one that ends by itself stays for its logs."""
    job = job_since(11)
    verdict = look(IMPATIENT, jobs=(job,))
    assert verdict.delete == ()
    done = with_status(IMPATIENT, verdict.status)
    plan = look(done, jobs=(job,))
    assert [(ref.kind, ref.uid) for ref in plan.delete] == [("Job", job.uid)]
    assert bool(plan.verify), "the Job may have ended by itself meanwhile"
    assert plan.status == verdict.status
    ending = make_job(status={"conditions": [condition_object("FailureTarget")]})
    for other in (finished_job("Failed"), ending, make_job(deleting=True), make_job(owner_uid="somebody-else")):
        assert look(done, jobs=(other,)).delete == ()


def test_a_training_that_stands_still_says_so_and_is_asked_on() -> None:
    """Since when; the trainer ends itself, and a step ends the state."""
    told_at = minutes_ago(31)
    progress = {"phase": "Training", "step": 7, "totalSteps": 9, "steps": "7/9", "lastUpdateTime": instant(told_at)}
    finetune = with_status(make_finetune(), {"attempt": 1, "podName": running_pod().name, "progress": progress})
    still = look(finetune, jobs=(make_job(),), pods=(running_pod(),))
    assert stated(still) == ("Unknown", "Stalled")
    assert instant(told_at) in condition(still, "Complete")["message"]
    assert stated(still, "PodsReady")[0] == "True"
    assert still.ask_progress == running_pod()
    fresh = look(finetune, jobs=(make_job(),), pods=(running_pod(),), asked=False)
    assert stated(fresh) == ("Unknown", "Training"), "an operator that was away has nobody's silence to tell of"
    stored = with_status(finetune, still.status)
    assert look(stored, jobs=(make_job(),), pods=(running_pod(),), asked=False).status == still.status
    goes_on = look(
        finetune,
        jobs=(make_job(),),
        pods=(running_pod(),),
        progress=Progress(phase=Phase.TRAINING, step=8, total_steps=9),
    )
    assert stated(goes_on) == ("Unknown", "Training")
    busy = with_status(finetune, {**finetune.status, "progress": {**progress, "phase": "LoadingModel"}})
    assert stated(look(busy, jobs=(make_job(),), pods=(running_pod(),))) == ("Unknown", "LoadingModel")


def test_a_success_closes_the_count_of_time() -> None:
    """At the end of the Job, whenever it is read."""
    pods = (ended_pod(0, make_summary().to_message()),)
    plan = look(make_finetune(), jobs=(finished_job(),), pods=pods)
    assert plan.status["runSeconds"] == 48 * 60
    assert "activeSince" not in plan.status


PROVEN = ended_pod(0, make_summary().to_message(), name="published")


@pytest.mark.parametrize(
    ("finetune", "job", "pods"),
    [
        (with_status(IMPATIENT, ready_since(30).status), make_job(), ()),
        (make_finetune(status=ATTEMPTED), make_job(), tuple(evicted(number) for number in range(4))),
        (
            make_finetune(
                spec={"activeDeadlineSeconds": 600},
                status={**ATTEMPTED, "runSeconds": 700, "activeUntil": instant(minutes_ago(10))},
            ),
            held_job(10, suspend=True),
            (),
        ),
    ],
)
def test_a_run_whose_pod_has_published_is_not_given_up(
    finetune: FineTune, job: JobView, pods: tuple[PodView, ...]
) -> None:
    """Neither for a wait, nor for failures before, nor for want of time: its Job has yet to say so."""
    given_up = plan_for(finetune, jobs=(job,), pods=pods)
    goes_on = plan_for(finetune, jobs=(job,), pods=(*pods, PROVEN))
    assert stated(given_up, "Failed")[0] == "True"
    assert stated(goes_on, "Failed")[0] == "Unknown"


@pytest.mark.parametrize(("counted", "wanted"), [(1, ("True", "Succeeded")), (0, ("Unknown", "Restarting"))])
def test_a_proof_that_a_job_has_counted_is_taken_before_it_goes_with_the_job(
    counted: int, wanted: tuple[str, str]
) -> None:
    """Somebody deletes the Job in the foreground in the second after its pod has published, or in the very one."""
    job = make_job(deleting=True, status={"succeeded": counted})
    plan = plan_for(make_finetune(status=ATTEMPTED), jobs=(job,), pods=(PROVEN,))
    assert stated(plan) == wanted
