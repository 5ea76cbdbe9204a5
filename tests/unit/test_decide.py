"""What the operator does about a LoRAFineTune from its creation on, while it runs."""

import dataclasses
from datetime import timedelta

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
    make_resolved,
    make_summary,
    minutes_ago,
    outlasted_pod,
    running_pod,
    waiting_pod,
    with_status,
)
from tests.unit.deciding import decide
from tests.unit.plans import ATTEMPTED, condition, plan_for, stated

from lora_operator.model.objects import Observed, Plan, PodView, Refusal
from lora_operator.model.wording import UNANSWERED, instant
from lora_trainer.spec.progress import Phase, Progress


def test_a_new_resource_gets_a_job_and_nothing_is_read_before() -> None:
    """Its name, which no second Job can have, is all that it rests on."""
    plan = plan_for(make_finetune())
    assert [obj["kind"] for obj in plan.create] == ["Job"]
    assert not bool(plan.verify)
    assert stated(plan, "Accepted") == ("True", "Accepted")
    assert stated(plan) == ("Unknown", "Pending")
    assert (plan.status["attempt"], plan.status["jobName"]) == (1, job_name())
    assert plan.status["resolved"]["alpha"] == 32
    assert plan.requeue_after_s == CONFIG.pending_check_s
    assert [(event.type, event.reason) for event in plan.events] == [("Normal", "Accepted")]


def test_a_resource_on_its_way_out_is_left_alone() -> None:
    """Its children have an owner reference."""
    finetune = make_finetune(metadata={"deletionTimestamp": instant(NOW)}, status={"attempt": 1})
    assert plan_for(finetune) == Plan(status={"attempt": 1}, rule="deleting")


def test_an_invalid_spec_fails_at_once_with_every_problem_and_makes_nothing() -> None:
    """The spec cannot change any more, so there is nothing to wait for."""
    plan = plan_for(
        make_finetune(spec={"lora": {"rank": 0}, "training": {"epochs": 2.5}, "resources": {"cpu": "much"}})
    )
    assert plan.create == ()
    assert stated(plan, "Accepted") == ("False", "ConfigInvalid")
    assert stated(plan, "Complete") == ("False", "ConfigInvalid")
    assert stated(plan, "Failed") == ("True", "ConfigInvalid")
    message = condition(plan, "Failed")["message"]
    assert "spec.lora.rank is 0: must be a whole number from 1 to 1024" in message
    assert "spec.training.epochs is 2.5" in message
    assert 'spec.resources.cpu is "much"' in message
    assert "create a new LoRAFineTune" in message
    assert plan.status["completionTime"] == instant(NOW)
    assert [event.type for event in plan.events] == ["Warning"]


def test_an_invalid_value_is_reported_without_its_secret() -> None:
    """The message goes into logs and Events, which more people read than the spec."""
    plan = plan_for(make_finetune(spec={"model": {"uri": "https://me:hf_abcdefghijklmnop@hub.example/a"}}))
    message = condition(plan, "Failed")["message"]
    assert "spec.model.uri" in message
    assert "hf_abcdefghijklmnop" not in message


def test_a_rule_that_came_later_does_not_fail_a_run_that_goes_on() -> None:
    """An upgrade of the operator never kills training."""
    plan = plan_for(make_finetune(spec={"lora": {"rank": 5000}}), jobs=(make_job(),), pods=(running_pod(),))
    assert stated(plan) == ("Unknown", "Starting")


def test_a_job_that_is_there_is_adopted_by_its_owner() -> None:
    """A crash came between the creation and the status."""
    plan = plan_for(make_finetune(), jobs=(make_job(),))
    assert plan.create == ()
    assert (plan.status["jobName"], plan.status["startTime"]) == (job_name(), instant(minutes_ago(58)))
    assert plan.status["resolved"]["image"] == CONFIG.trainer_image


def test_a_job_of_somebody_else_under_our_name_is_a_conflict() -> None:
    """It is not touched, and there is no hurry to look again."""
    rejection = Refusal(kind="Job", name=job_name(), code=409, reason="AlreadyExists", message="it is somebody else's")
    plan = plan_for(make_finetune(), jobs=(make_job(owner_uid="somebody-else"),), refusals=(rejection,))
    assert plan.create == ()
    assert stated(plan, "Accepted") == ("False", "NameConflict")
    assert job_name() in condition(plan, "Accepted")["message"]


def test_a_job_with_our_owner_and_a_name_that_we_do_not_give_is_none_of_the_runs() -> None:
    """Somebody made it, with an owner reference to the run: it neither runs it nor ends it."""
    stranger = dataclasses.replace(finished_job("Failed"), name="by-hand-1")
    plan = plan_for(make_finetune(), jobs=(stranger,))
    assert [obj["metadata"]["name"] for obj in plan.create] == [job_name()]


def test_an_image_that_admission_changed_is_said_and_nothing_more() -> None:
    """It may be a mirror; the run goes on."""
    status = {**ATTEMPTED, "resolved": {"image": "registry.example/rendered:1"}}
    plan = plan_for(make_finetune(status=status), jobs=(make_job(),), pods=(running_pod(),))
    (advice,) = [advice for advice in plan.status["advice"] if advice["code"] == "ImageChanged"]
    assert CONFIG.trainer_image in advice["evidence"]
    assert "registry.example/rendered:1" in advice["evidence"]
    assert stated(plan) == ("Unknown", "Starting")
    same = plan_for(make_finetune(), jobs=(make_job(),), pods=(running_pod(),))
    later = plan_for(with_status(make_finetune(), same.status), jobs=(make_job(),), pods=(running_pod(),))
    assert "ImageChanged" not in [advice["code"] for advice in later.status.get("advice", ())]


REFUSALS = [
    (403, 'jobs.batch is forbidden: User "system:serviceaccount:lora:op" cannot create resource "jobs"', "Forbidden"),
    (403, 'jobs.batch "x" is forbidden: exceeded quota: jobs, requested: count/jobs.batch=1', "QuotaExceeded"),
    (403, 'pods "x" is forbidden: violates PodSecurity "restricted:latest"', "PodSecurityViolation"),
    (403, "admission webhook policy.example denied the request: no GPUs on Sundays", "AdmissionDenied"),
    (403, "unable to create new content in namespace team-a because it is being terminated", "AdmissionDenied"),
    (422, 'Job.batch "x" is invalid: spec.template.spec.tolerations[0].operator: Invalid value', "AdmissionDenied"),
    (409, "exists and belongs to another owner", "NameConflict"),
    (504, UNANSWERED, "AdmissionDenied"),
]


@pytest.mark.parametrize(("code", "message", "reason"), REFUSALS, ids=[f"{c}-{r}" for c, _, r in REFUSALS])
def test_a_refusal_of_the_api_server_is_reported_and_tried_again(code: int, message: str, reason: str) -> None:
    """The state names it, nothing is made, and a later look starts afresh."""
    rejection = Refusal(kind="Job", name=job_name(), code=code, reason="", message=message)
    finetune = make_finetune()
    plan = plan_for(finetune, refusals=(rejection,))
    assert (plan.create, plan.patch) == ((), ())
    assert stated(plan, "Accepted") == ("False", reason)
    assert stated(plan) == ("Unknown", reason)
    assert "jobName" not in plan.status
    assert plan.requeue_after_s is None, "the shell knows when it is to be tried again"
    later = plan_for(with_status(finetune, plan.status))
    assert len(later.create) == 1
    assert stated(later, "Accepted") == ("True", "Accepted")


def test_a_refused_change_of_a_running_job_does_not_hide_the_run() -> None:
    """Accepted tells the refusal, the state goes on to tell the training."""
    rejection = Refusal(kind="Job", name=job_name(), code=422, reason="Invalid", message="backoffLimit: no")
    finetune = make_finetune(spec={"maxRetries": 5})
    (patch,) = plan_for(finetune, jobs=(make_job(),), pods=(running_pod(),)).patch
    rejection = dataclasses.replace(rejection, patch=patch)
    plan = plan_for(finetune, jobs=(make_job(),), pods=(running_pod(),), refusals=(rejection,))
    assert plan.patch == ()
    assert stated(plan, "Accepted") == ("False", "AdmissionDenied")
    assert stated(plan) == ("Unknown", "Starting")


def test_a_running_pod_is_asked_for_its_progress() -> None:
    """At the interval of the configuration."""
    pod = running_pod()
    plan = plan_for(make_finetune(), jobs=(make_job(),), pods=(pod,))
    assert (plan.ask_progress, plan.requeue_after_s) == (pod, CONFIG.progress_interval_s)
    assert not plan.watch_events
    assert stated(plan, "PodsReady") == ("True", "PodRunning")
    assert condition(plan, "PodsReady")["lastTransitionTime"] == instant(minutes_ago(30))
    assert plan.status["podName"] == pod.name


def test_the_state_is_what_the_trainer_says_it_does() -> None:
    """And the message tells step and time to go."""
    for phase in Phase:
        progress = Progress(phase=phase, step=120, total_steps=400, estimated_remaining_seconds=4350)
        plan = plan_for(make_finetune(), jobs=(make_job(),), pods=(running_pod(),), progress=progress)
        assert stated(plan) == ("Unknown", phase.value)
    plan = plan_for(
        make_finetune(),
        jobs=(make_job(),),
        pods=(running_pod(),),
        progress=dataclasses.replace(progress, phase=Phase.TRAINING),
    )
    assert condition(plan, "Complete")["message"] == "Step 120/400, about 1h12m to go"
    assert plan.status["progress"]["percentage"] == 30


def test_publishing_shows_in_the_condition_of_the_artifact() -> None:
    """It is still unknown, for another reason."""
    progress = Progress(phase=Phase.PUBLISHING)
    plan = plan_for(make_finetune(), jobs=(make_job(),), pods=(running_pod(),), progress=progress)
    assert stated(plan, "ArtifactPublished") == ("Unknown", "Publishing")


def test_a_question_without_an_answer_does_not_change_the_state() -> None:
    """A pod that is busy is not a pod that starts."""
    progress = Progress(phase=Phase.TRAINING, step=1, total_steps=2)
    before = plan_for(make_finetune(), jobs=(make_job(),), pods=(running_pod(),), progress=progress)
    plan = plan_for(with_status(make_finetune(), before.status), jobs=(make_job(),), pods=(running_pod(),))
    assert plan.status == before.status


def test_answers_are_rationed_because_each_is_a_write() -> None:
    """After news there is no question until the interval has passed."""
    progress = Progress(phase=Phase.TRAINING, step=1, total_steps=2)
    plan = plan_for(make_finetune(), jobs=(make_job(),), pods=(running_pod(),), progress=progress)
    assert (plan.ask_progress, plan.requeue_after_s) == (None, CONFIG.progress_interval_s)
    later = decide(
        with_status(make_finetune(), plan.status),
        Observed(jobs=(make_job(),), pods=(running_pod(),)),
        CONFIG,
        NOW + timedelta(seconds=CONFIG.progress_interval_s),
    )
    assert later.ask_progress is not None


def test_before_the_first_step_the_state_names_no_step() -> None:
    """Progress without a number of steps says that training began."""
    plan = plan_for(make_finetune(), jobs=(make_job(),), pods=(running_pod(),), progress=Progress(phase=Phase.TRAINING))
    assert condition(plan, "Complete")["message"] == "The trainer takes its first step"


def test_what_the_trainer_found_out_is_kept() -> None:
    """Beside what the spec fixed."""
    progress = Progress(phase=Phase.TRAINING, resolved=make_resolved())
    plan = plan_for(make_finetune(), jobs=(make_job(),), pods=(running_pod(),), progress=progress)
    assert plan.status["resolved"]["device"] == "NVIDIA H100 80GB HBM3"
    assert plan.status["resolved"]["rank"] == 16
    later = plan_for(with_status(make_finetune(), plan.status), jobs=(make_job(),), pods=(running_pod(),))
    assert later.status["resolved"] == plan.status["resolved"]


def test_a_new_pod_does_not_inherit_the_speed_of_the_old_one() -> None:
    """The numbers reached stay, those of the moment go."""
    progress = Progress(
        phase=Phase.TRAINING, step=9, total_steps=10, tokens_per_second=5.0, estimated_remaining_seconds=4
    )
    first = plan_for(make_finetune(), jobs=(make_job(),), pods=(running_pod(),), progress=progress)
    pods = (ended_pod(75), running_pod(name="second", created_at=minutes_ago(2)))
    plan = plan_for(with_status(make_finetune(), first.status), jobs=(make_job(status={"failed": 1}),), pods=pods)
    assert stated(plan) == ("Unknown", "Starting")
    assert plan.status["progress"]["steps"] == "9/10"
    assert not {"eta", "phase", "tokensPerSecond"} & set(plan.status["progress"])
    assert "1 failed pod, the last with a transient error" in condition(plan, "Complete")["message"]


def test_a_pod_in_trouble_tells_it_and_its_events_are_watched() -> None:
    """PodsReady and the state have the reason; nothing has failed yet."""
    pod = waiting_pod("ImagePullBackOff", 'Back-off pulling image "registry.example/lora-trainer:1.0"')
    plan = plan_for(make_finetune(), jobs=(make_job(),), pods=(pod,))
    assert stated(plan, "PodsReady") == ("False", "ImagePullBackOff")
    assert stated(plan) == stated(plan, "Failed") == ("Unknown", "ImagePullBackOff")
    assert (plan.requeue_after_s, plan.watch_events) == (CONFIG.pending_check_s, True)
    assert (plan.events[-1].type, plan.events[-1].reason) == ("Warning", "ImagePullBackOff")


def test_a_job_that_cannot_make_its_pod_tells_why() -> None:
    """The quota's own words, from the Job's Event."""
    event = make_event("job-1", "FailedCreate", 'Error creating: pods "x" is forbidden: exceeded quota: gpus')
    plan = plan_for(make_finetune(), jobs=(make_job(),), events=(event,))
    assert stated(plan) == ("Unknown", "QuotaExceeded")
    assert "exceeded quota: gpus" in condition(plan, "PodsReady")["message"]


@pytest.mark.parametrize(
    ("pod", "reason", "words"),
    [
        (make_pod(node=""), "Pending", "waits for a node"),
        (waiting_pod("ContainerCreating"), "Pending", "node-1 pulls the image"),
        (ended_pod(0, make_summary().to_message()), "Publishing", "waiting for its Job"),
        (ended_pod(75, "ConnectionError: reset"), "Restarting", "Now retry 1 of 3 follows"),
        (ended_pod(65, "train.jsonl, line 3: no JSON"), "DatasetInvalid", "line 3"),
        (ended_pod(143, conditions=(condition_object("DisruptionTarget"),)), "Evicted", "A new pod follows"),
        (running_pod(deleting=True), "Restarting", "is being stopped"),
    ],
)
def test_between_pods_the_state_tells_what_is_awaited(pod: PodView, reason: str, words: str) -> None:
    """No pod runs, yet all is on its way."""
    plan = plan_for(make_finetune(), jobs=(make_job(status={"failed": 1}),), pods=(pod,))
    assert stated(plan) == ("Unknown", reason)
    assert stated(plan, "PodsReady") == ("False", reason)
    assert words in condition(plan, "Complete")["message"]


def test_a_pod_that_waits_does_not_run_because_another_of_its_job_has_ended_well() -> None:
    """Whoever may create pods can have the Job adopt one; once that is deleted, the state would change by itself."""
    pods = (make_pod(node="", name="job-1-0-later"), ended_pod(0, make_summary().to_message()))
    plan = plan_for(make_finetune(), jobs=(make_job(),), pods=pods)
    assert stated(plan) == ("Unknown", "Pending")
    assert stated(plan, "PodsReady") == ("False", "Pending")
    assert plan.ask_progress is None


@pytest.mark.parametrize("counted", [0, 1])
def test_no_retry_is_promised_where_none_is_left(counted: int) -> None:
    """The Job controller may count the failure a little later than the pod tells it."""
    job = make_job(spec={"backoffLimit": 0}, status={"failed": counted})
    plan = plan_for(make_finetune(spec={"maxRetries": 0}), jobs=(job,), pods=(ended_pod(72, "no GPU"),))
    assert stated(plan) == ("Unknown", "GPUFault")
    assert "follows" not in condition(plan, "Complete")["message"]
    evicted = ended_pod(143, conditions=(condition_object("DisruptionTarget"),))
    plan = plan_for(make_finetune(spec={"maxRetries": 0}), jobs=(job,), pods=(evicted,))
    assert ("A new pod follows" in condition(plan, "Complete")["message"]) == (counted == 0)


@pytest.mark.parametrize("code", [0, 65, 75])
def test_a_sidecar_that_outlasts_the_trainer_is_named(code: int) -> None:
    """The pod is not counted while it runs: no verdict, no retry, and the GPUs are held."""
    plan = plan_for(make_finetune(), jobs=(make_job(),), pods=(outlasted_pod(code, {"running": {}}),))
    assert stated(plan)[0] == "Unknown"
    message = condition(plan, "Complete")["message"]
    assert "container istio-proxy of pod" in message
    assert "trainer.podAnnotations" in message
    plan = plan_for(make_finetune(), jobs=(make_job(),), pods=(outlasted_pod(code, {"terminated": {"exitCode": 0}}),))
    assert "istio-proxy" not in str(plan.status)


def test_one_that_was_taken_away_is_counted_once_however_its_next_pod_fares() -> None:
    """It waits for a node, as preempted runs do, and then for its image."""
    taken = ended_pod(143, name="job-1-0-first", conditions=(condition_object("DisruptionTarget"),))
    full = condition_object("PodScheduled", "False", reason="Unschedulable", message="0/1 nodes are available")
    nexts = (), (make_pod(node="", conditions=(full,)),), (waiting_pod("ContainerCreating"),)
    finetune, states = make_finetune(), []
    for pods in nexts:
        plan = plan_for(finetune, jobs=(make_job(),), pods=(taken, *pods))
        finetune = make_finetune(status=plan.status)
        states.append(stated(plan)[1])
    assert states == ["Evicted", "Unschedulable", "Pending"]
    assert plan.status["retries"] == {"preempted": 1}
    assert "pulls the image" in condition(plan, "Complete")["message"]
    assert "the last with Evicted" in condition(plan, "Complete")["message"]


def test_a_retry_that_waits_still_tells_the_last_failure() -> None:
    """Until it runs, the failure is the news."""
    pods = (ended_pod(75, "ConnectionError: reset"), make_pod(name="second", created_at=minutes_ago(2)))
    plan = plan_for(make_finetune(), jobs=(make_job(status={"failed": 1}),), pods=pods)
    assert stated(plan) == ("Unknown", "Restarting")
    assert "ConnectionError: reset" in condition(plan, "PodsReady")["message"]
    assert plan.status["podName"] == "second"


def test_conditions_of_other_writers_stay() -> None:
    """Theirs come after ours."""
    foreign = {
        "type": "example.com/Approved",
        "status": "True",
        "reason": "Boss",
        "message": "",
        "lastTransitionTime": "x",
    }
    plan = plan_for(make_finetune(status={"conditions": [foreign]}), jobs=(make_job(),))
    assert plan.status["conditions"][-1] == foreign
    assert len(plan.status["conditions"]) == 8
