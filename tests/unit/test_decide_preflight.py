"""The Job that looks at model, data and output, and plans the run, before GPUs are asked for."""

import dataclasses
import json
from collections.abc import Mapping
from typing import Any

import pytest
from tests.unit.builders import (
    CONFIG,
    NOW,
    SHARED,
    condition_object,
    ended_pod,
    finished_job,
    job_name,
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
from tests.unit.plans import condition, plan_for, stated
from tests.unit.reports import make_plan, make_report
from tests.unit.status_schema import check_status
from tests.unit.world import World

from lora_operator.model import names
from lora_operator.model.objects import FineTune, JobView, ObjectRef, Observed, Patch, Plan, PodView, Refusal
from lora_operator.model.wording import instant
from lora_trainer.spec.config import Quantization, TrainConfig
from lora_trainer.spec.progress import Phase, Progress
from lora_trainer.spec.reasons import Reason

PREFLIGHT = f"{job_name()}-preflight"
POD = f"{PREFLIGHT}-abcde"
STAGE: dict[str, Any] = {"stage": "preflight"}


def finetune(**spec: Any) -> FineTune:
    """A LoRAFineTune that asks for a preflight."""
    return make_finetune(spec={"preflight": "Run", **spec})


def made(plan: Plan) -> list[tuple[str, str]]:
    """Kind and name of what a plan creates."""
    return [(obj["kind"], obj["metadata"]["name"]) for obj in plan.create]


def configuration(plan: Plan) -> TrainConfig:
    """What the Job that a plan creates is to run."""
    (job,) = (obj for obj in plan.create if obj["kind"] == "Job")
    return TrainConfig.from_json(job["spec"]["template"]["metadata"]["annotations"][names.CONFIG_ANNOTATION])


def looking(**changes: Any) -> JobView:
    """The Job of the preflight."""
    return make_job(**STAGE, **changes)


def looked(**changes: Any) -> JobView:
    """The same, ended well."""
    return finished_job(**STAGE, **changes)


def looking_pod(**changes: Any) -> PodView:
    """Its pod, running."""
    return running_pod(**STAGE, **changes)


def reporting_pod(message: str = "", **changes: Any) -> PodView:
    """Its pod, ended well, with a report."""
    return ended_pod(0, message or make_report(**changes).to_message(), **STAGE)


def passed(**changes: Any) -> Plan:
    """The plan once the preflight has ended well."""
    return plan_for(finetune(), jobs=(looked(),), pods=(reporting_pod(**changes),))


def test_the_run_is_looked_at_before_the_training_job_is_made() -> None:
    """The run counts no attempt yet, and says what it does; there need be no cache."""
    plan = plan_for(finetune())
    assert made(plan) == [("Job", PREFLIGHT)]
    assert stated(plan, "Accepted") == ("True", "Accepted")
    assert stated(plan, "PreflightPassed") == ("Unknown", "Pending")
    assert not {"attempt", "jobName", "podName", "preflight", "plan"} & set(plan.status)
    running = plan_for(with_status(finetune(), plan.status), jobs=(looking(),), pods=(looking_pod(),))
    assert stated(running) == stated(running, "PreflightPassed") == ("Unknown", "Preflight")
    assert stated(running, "PodsReady") == ("False", "Preflight")
    assert POD in condition(running, "Complete")["message"]
    assert running.ask_progress is None
    assert running.status["startTime"] == instant(minutes_ago(58))


@pytest.mark.parametrize("config", [CONFIG, SHARED], ids=["without a cache", "with a cache"])
@pytest.mark.parametrize("preflight", ["Run", "Skip"])
def test_it_is_made_for_every_run_that_does_not_skip_it(config: Any, preflight: str) -> None:
    """With or without something to fetch, and somewhere to fetch it to."""
    run = finetune(model={"uri": "pvc://models/base"}, preflight=preflight)
    plan = decide(run, Observed(), config, NOW)
    skips = preflight == "Skip"
    assert made(plan) == [("Job", job_name() if skips else PREFLIGHT)]
    assert ("PreflightPassed" in {c["type"] for c in plan.status["conditions"]}) is not skips


def test_what_the_plan_settled_is_stated_although_a_crash_came_after_the_training_job() -> None:
    """The status before it has what the preflight's Job was made with; the next attempt would go by that."""
    plan = make_plan(pod_memory_bytes=100 * 2**30)
    begun = plan_for(with_status(finetune(), plan_for(finetune()).status), jobs=(looking(),), pods=(looking_pod(),))
    assert begun.status["resolved"]["pod"]["memory"] == "8Gi"
    seen: dict[str, Any] = {"jobs": (looked(),), "pods": (reporting_pod(plan=plan),)}
    there = with_status(finetune(), begun.status)
    told = plan_for(there, **seen).status["resolved"]
    assert told["pod"]["memory"] == "100Gi"
    after = plan_for(there, jobs=(looked(), make_job()), pods=seen["pods"])
    assert after.status["resolved"] == told


def test_the_training_job_follows_what_was_found() -> None:
    """The condition says what was found, and the status holds it, for as long as the run exists."""
    plan = passed()
    assert made(plan) == [("Job", job_name())]
    assert stated(plan, "PreflightPassed") == ("True", "PreflightPassed")
    assert condition(plan, "PreflightPassed")["message"] == "acme/base and 200 rows are at hand"
    assert (plan.status["attempt"], plan.status["jobName"]) == (1, job_name())
    assert plan.status["preflight"]["model"]["trainableParameters"] == 4_884_480
    assert plan.status["preflight"]["dataset"]["p95Tokens"] == 470
    assert plan.status["preflight"]["output"] == "AtTraining"
    said = {key: plan.status["plan"][key] for key in ("peakBytes", "peakMemory", "tokensPerSecond", "spread")}
    assert said == {
        "peakBytes": 20_079_050_752,
        "peakMemory": "18.7 GiB",
        "tokensPerSecond": "12473.2",
        "spread": "0.1",
    }
    check_status(plan.status)
    later = plan_for(with_status(finetune(), plan.status), jobs=(make_job(),), pods=(running_pod(),))
    assert condition(later, "PreflightPassed") == condition(plan, "PreflightPassed")
    assert later.status["podName"] == running_pod().name
    done = plan_for(
        with_status(finetune(), later.status),
        jobs=(finished_job(),),
        pods=(ended_pod(0, make_summary().to_message()),),
    )
    assert stated(done) == ("True", "Succeeded")
    for status in (later.status, done.status):
        assert (status["preflight"], status["plan"]) == (plan.status["preflight"], plan.status["plan"])


def test_the_training_runs_as_planned_and_so_does_each_attempt_after_it() -> None:
    """The plan outlives the pod that reported it, and the first status says what was chosen."""
    auto = finetune(quantization="Auto")
    pods = (reporting_pod(plan=make_plan(quantization=Quantization.NF4)),)
    assert configuration(plan_for(auto)).quantization is Quantization.AUTO
    first = plan_for(auto, jobs=(looked(),), pods=pods)
    assert planned(first) == (Quantization.NF4, True)
    resolved = first.status["resolved"]
    assert (resolved["quantization"], resolved["activationCheckpointing"]) == ("NF4", True)
    second = plan_for(with_status(auto, first.status))
    assert made(second) == [("Job", job_name(2))]
    assert planned(second) == (Quantization.NF4, True)
    unknown = reporting_pod(plan=make_plan(quantization=Quantization.AUTO, device=None, device_bytes=None, fits=None))
    left = plan_for(auto, jobs=(looked(),), pods=(unknown,))
    assert planned(left) == (Quantization.AUTO, None), "the training finds its device"
    assert "activationCheckpointing" not in left.status["resolved"]


def planned(plan: Plan) -> tuple[Quantization, bool | None]:
    """What was settled of the training that a plan makes the Job for."""
    config = configuration(plan)
    return config.quantization, config.planned.activation_checkpointing if config.planned else None


@pytest.mark.parametrize(
    "junk",
    [
        {"quantization": "Seven"},
        {"peakBytes": "many"},
        {"activationCheckpointing": "True"},
        {"alternatives": [{"change": 7}]},
        {"tokensPerSecond": "nan"},
        {"reason": None},
    ],
    ids=lambda junk: next(iter(junk)),
)
def test_a_plan_in_the_status_that_cannot_be_read_counts_as_none(junk: Mapping[str, Any]) -> None:
    """Whoever wrote it: the training settles the rest itself."""
    status = passed().status
    status = {**status, "plan": {key: value for key, value in {**status["plan"], **junk}.items() if value is not None}}
    plan = plan_for(with_status(finetune(), status))
    assert configuration(plan).planned is None


def test_nothing_that_the_status_says_is_taken_for_a_report_before_there_is_one() -> None:
    """A plan that somebody wrote there does not stand in for the preflight's."""
    forged = with_status(finetune(), {"plan": passed(plan=make_plan(activation_checkpointing=False)).status["plan"]})
    assert "plan" not in plan_for(forged).status
    plan = plan_for(forged, jobs=(looked(),), pods=(reporting_pod(),))
    assert planned(plan) == (Quantization.NONE, True)


@pytest.mark.parametrize(
    "message",
    ["", "Traceback: no", make_summary(Reason.DATASET_INVALID, "no rows").to_message(), '{"version": 1}'],
    ids=["none", "a log", "another reason", "another version"],
)
def test_a_report_that_cannot_be_read_holds_nothing_up(message: str) -> None:
    """Its Job has ended well, and the training looks at everything itself."""
    plan = plan_for(finetune(), jobs=(looked(),), pods=(ended_pod(0, message, **STAGE),) if message else ())
    assert made(plan) == [("Job", job_name())]
    assert stated(plan, "PreflightPassed") == ("True", "PreflightPassed")
    assert "no report of it that can be read" in condition(plan, "PreflightPassed")["message"]
    assert not {"preflight", "plan"} & set(plan.status)


@pytest.mark.parametrize("text", ["\ud800\x1b[31m", "x" * 1500], ids=["unprintable", "long"])
def test_what_it_reports_stays_within_the_bounds_of_the_status(text: str) -> None:
    """Whatever a pod says."""
    others = make_plan().alternatives * 9
    plan = make_plan(reason=text, seconds=-(2**70), peak_bytes=2**70, spread=1e300, alternatives=others)
    message = json.dumps(json.loads(make_report().to_message()) | {"plan": _encoded(plan)})
    found = plan_for(finetune(), jobs=(looked(),), pods=(reporting_pod(message),)).status
    check_status(found)
    assert (found["plan"]["seconds"], found["plan"]["peakBytes"]) == (0, 2**63 - 1)
    assert len(found["plan"]["alternatives"]) == 9


def _encoded(plan: Any) -> Any:
    return json.loads(json.dumps(dataclasses.asdict(plan)))


def test_a_failure_that_is_final_is_the_runs_verdict_with_the_trainers_sentence() -> None:
    """No GPU was asked for."""
    sentence = "spec.model.uri is hf://acme/base: the Hub does not know it"
    message = make_summary(Reason.MODEL_NOT_FOUND, sentence).to_message()
    job = finished_job("Failed", reason="PodFailurePolicy", failed=1, **STAGE)
    plan = plan_for(finetune(), jobs=(job,), pods=(ended_pod(66, message, **STAGE),))
    assert stated(plan, "Failed") == ("True", "ModelNotFound")
    assert stated(plan, "PreflightPassed") == ("False", "ModelNotFound")
    assert condition(plan, "Failed")["message"] == sentence
    assert condition(plan, "Accepted")["message"] == f"The spec is valid; Job {job.name} runs it"
    assert plan.create == ()
    assert plan.status["completionTime"] == instant(minutes_ago(10))


def test_a_run_that_does_not_fit_ends_without_a_gpu_and_keeps_its_plan() -> None:
    """What would make it fit is read there, too."""
    sentence = "spec.quantization is None: needs 21 GiB of 16 GiB; quantization NF4 needs 9.3 GB"
    report = make_summary(Reason.DOES_NOT_FIT, sentence, plan=make_plan(fits=False)).to_message()
    job = finished_job("Failed", reason="PodFailurePolicy", failed=1, **STAGE)
    plan = plan_for(finetune(), jobs=(job,), pods=(ended_pod(64, report, **STAGE),))
    assert plan.create == ()
    assert stated(plan, "Failed") == ("True", "DoesNotFit")
    assert stated(plan, "PreflightPassed") == ("False", "DoesNotFit")
    assert condition(plan, "Failed")["message"] == sentence
    assert plan.status["plan"]["fits"] is False
    check_status(plan.status)


def test_a_failure_without_its_pod_is_looked_at_twice() -> None:
    """The pod may not have reached the cache yet, and a verdict is for ever."""
    job = finished_job("Failed", reason="BackoffLimitExceeded", failed=1, **STAGE)
    assert plan_for(finetune(), jobs=(job,)).verify
    assert stated(plan_for(finetune(), jobs=(job,)), "Failed")[0] == "True"


def test_a_pod_that_fails_in_passing_is_tried_again_by_its_job() -> None:
    """The state tells the failure, and the retry."""
    pods = (ended_pod(75, "ConnectionError: reset", **STAGE),)
    plan = plan_for(finetune(), jobs=(looking(status={"failed": 1}),), pods=pods)
    assert stated(plan) == ("Unknown", "Restarting")
    assert "Now retry 1 of 3 follows" in condition(plan, "Complete")["message"]


def test_too_little_memory_names_the_setting_that_gives_more() -> None:
    """The spec's memory is that of the training."""
    job = finished_job("Failed", reason="BackoffLimitExceeded", failed=1, **STAGE)
    pods = (ended_pod(137, reason="OOMKilled", **STAGE),)
    plan = plan_for(finetune(), jobs=(job,), pods=pods)
    assert stated(plan) == ("False", "OOMKilled")
    assert "more than its 2Gi" in condition(plan, "Failed")["message"]
    assert "have preflightMemory raised" in condition(plan, "Failed")["message"]


def test_a_pod_that_does_not_start_tells_why() -> None:
    """As a training pod does."""
    pod = waiting_pod("CreateContainerConfigError", 'secret "hf-token" not found', **STAGE)
    plan = plan_for(finetune(), jobs=(looking(),), pods=(pod,))
    assert stated(plan) == stated(plan, "PreflightPassed") == ("Unknown", "SecretNotFound")
    assert plan.watch_events


def test_suspend_holds_it_too() -> None:
    """One wish for the whole run."""
    plan = plan_for(finetune(suspend=True), jobs=(looking(),), pods=(looking_pod(),))
    assert [(patch.name, patch.body["spec"]) for patch in plan.patch] == [(PREFLIGHT, {"suspend": True})]
    assert stated(plan, "Suspended") == ("True", "SuspendedByUser")
    held = World({"suspend": True, "preflight": "Run"})
    held.settle()
    assert [job["spec"]["suspend"] for job in held.jobs.values()] == [True]


def test_its_retries_do_not_grow_with_the_nodes_of_the_training() -> None:
    """It is one pod."""
    plan = plan_for(finetune(resources={"nodes": 4}), jobs=(looking(),))
    assert plan.patch == ()


def test_one_that_was_deleted_is_made_again_and_counts_nothing() -> None:
    """Under the same name; once it has done its work, it is not missed."""
    world = World({"preflight": "Run"})
    world.settle()
    for _ in range(5):
        world.delete_job(PREFLIGHT)
        world.settle()
        assert list(world.jobs) == [PREFLIGHT]
    world.job_controller()
    (pod,) = world.living_pods()
    world.finish(pod, 0, "")
    world.settle()
    assert list(world.jobs) == [PREFLIGHT, job_name()]
    world.delete_job(PREFLIGHT)
    world.settle()
    assert list(world.jobs) == [job_name()]
    assert world.condition("PreflightPassed") == ("True", "PreflightPassed")


def test_how_one_ended_counts_though_its_job_is_deleted_before_that_was_read() -> None:
    """By a cleaner of ended Jobs, or their own TTL: it would begin again without end."""
    good = plan_for(finetune(), former_jobs=(looked(),), pods=(reporting_pod(),))
    assert made(good) == [("Job", job_name())]
    assert stated(good, "PreflightPassed") == ("True", "PreflightPassed")
    assert "plan" in good.status
    message = make_summary(Reason.MODEL_NOT_FOUND, "no such model").to_message()
    failed = finished_job("Failed", reason="PodFailurePolicy", failed=1, **STAGE)
    bad = plan_for(finetune(), former_jobs=(looking(), failed), pods=(ended_pod(66, message, **STAGE),))
    assert (stated(bad, "Failed"), made(bad), bool(bad.verify)) == (("True", "ModelNotFound"), [], True)
    assert PREFLIGHT in bad.verify
    assert made(plan_for(finetune(), former_jobs=(looking(),))) == [("Job", PREFLIGHT)]


@pytest.mark.parametrize(
    ("kind", "message", "goes"),
    [
        ("Job", "exceeded quota: jobs, used: count/jobs.batch=1", True),
        ("Job", "denied the request", False),
        ("Service", "exceeded quota: services, used: services=5", False),
    ],
)
def test_its_ended_job_makes_room_where_a_quota_refuses_the_training(kind: str, message: str, goes: bool) -> None:
    """Once the status has what it found; else a run would wait for its own preflight, and runs for each other's."""
    refusal = Refusal(kind=kind, name=job_name(), code=403, reason="Forbidden", message=message)
    first = plan_for(finetune(), jobs=(looked(),), pods=(reporting_pod(),), refusals=(refusal,))
    assert (stated(first, "PreflightPassed")[0], first.delete) == ("True", ())
    stored = with_status(finetune(), first.status)
    second = plan_for(stored, jobs=(looked(),), pods=(reporting_pod(),), refusals=(refusal,))
    room = (ObjectRef(kind="Job", name=PREFLIGHT, uid=looked().uid),) if goes else ()
    assert (second.delete, PREFLIGHT in second.verify) == (room, goes)
    assert second.status == first.status
    assert plan_for(stored, jobs=(looked(deleting=True),), refusals=(refusal,)).delete == ()
    after = plan_for(stored)
    assert (made(after), after.status["plan"]) == ([("Job", job_name())], first.status["plan"])


def test_a_second_attempt_is_not_looked_at_again() -> None:
    """Once for a run."""
    first = plan_for(finetune(), jobs=(looked(),))
    plan = plan_for(with_status(finetune(), first.status), jobs=(looked(),))
    assert made(plan) == [("Job", job_name(2))]
    assert stated(plan, "PreflightPassed") == ("True", "PreflightPassed")


def test_a_pod_that_outlives_its_job_holds_nothing_up() -> None:
    """Two may fetch at once; only outputs have one writer."""
    plan = plan_for(finetune(), pods=(looking_pod(job_uid="gone"),))
    assert made(plan)[0] == ("Job", PREFLIGHT)


def test_its_progress_is_not_that_of_the_training() -> None:
    """Nobody asks it, and no answer of a training pod is taken for its own."""
    progress = Progress(phase=Phase.TRAINING, step=3, total_steps=4)
    plan = plan_for(finetune(), jobs=(looking(),), pods=(looking_pod(),), progress=progress)
    assert "progress" not in plan.status
    assert plan.ask_progress is None


def test_its_job_gets_the_time_to_live_with_the_rest() -> None:
    """Once there is a verdict."""
    pods = (ended_pod(0, make_summary().to_message()),)
    done = plan_for(finetune(), jobs=(looked(), finished_job()), pods=pods)
    assert (done.delete, done.patch) == ((), ())
    ended = with_status(finetune(ttlSecondsAfterFinished=0), done.status)
    plan = plan_for(ended, jobs=(looked(), finished_job()), pods=pods)
    assert ([patch.name for patch in plan.patch], plan.delete) == ([PREFLIGHT, job_name()], ())


def test_a_pod_that_has_ended_waits_for_its_job_to_say_so() -> None:
    """Nothing is published by it."""
    plan = plan_for(finetune(), jobs=(looking(),), pods=(ended_pod(0, **STAGE),))
    assert stated(plan) == ("Unknown", "Preflight")
    fresh = plan_for(finetune(), jobs=(looking(),), pods=(make_pod(**STAGE),))
    assert stated(fresh) == ("Unknown", "Pending")


@pytest.mark.parametrize(
    "status",
    [{"attempt": 1, "jobName": job_name()}, {}],
    ids=["stored", "before its first status"],
)
def test_a_run_that_has_a_training_job_already_is_not_looked_at(status: dict[str, Any]) -> None:
    """As after the upgrade from a release without it; its Job may be deleted later."""
    going = plan_for(with_status(finetune(), status), jobs=(make_job(),), pods=(running_pod(),))
    assert going.create == ()
    assert "PreflightPassed" not in {c["type"] for c in going.status["conditions"]}
    assert made(plan_for(with_status(finetune(), going.status))) == [("Job", job_name(2))]


def test_the_first_row_shows_no_secret_and_keeps_its_blanks() -> None:
    """Whoever may read the run would read a key that stands in its data."""
    preflight = make_report().preflight
    assert preflight is not None
    row = '[{"seen":"def f():        return hf_abcdefghijklmnopqrstuvwxyzABCDEFGH"}]'
    dataset = dataclasses.replace(preflight.dataset, first_row=row)
    shown = passed(preflight=dataclasses.replace(preflight, dataset=dataset)).status["preflight"]["dataset"]
    assert "def f():        return" in shown["firstRow"]
    assert "hf_abcdefgh" not in shown["firstRow"]
    assert shown["fingerprint"] == preflight.dataset.fingerprint


def test_a_preflight_at_work_has_no_events_read() -> None:
    """None explains it, and a watch brings its end; before it runs, and once its node is silent, they may."""
    job, waits = make_job(**STAGE), make_pod(**STAGE)
    at_work = plan_for(finetune(), jobs=(job,), pods=(running_pod(**STAGE),))
    assert (at_work.watch_events, at_work.requeue_after_s, at_work.due_in_s) == (False, None, None)
    silent = running_pod(conditions=(condition_object("Ready", "Unknown", since=minutes_ago(1)),), **STAGE)
    for pod in (waits, silent):
        assert plan_for(finetune(), jobs=(job,), pods=(pod,)).watch_events


def test_a_change_that_is_denied_hides_neither_a_preflights_work_nor_its_end() -> None:
    """The denial is said beside it."""
    denied = Refusal(kind="Job", name=PREFLIGHT, code=422, reason="Invalid", message="policy 'x' denied request: no")
    denied = dataclasses.replace(denied, patch=Patch(name=PREFLIGHT, body={}))
    known: dict[str, Any] = {"jobs": (make_job(**STAGE, status={"active": 1}),), "refusals": (denied,)}
    plan = plan_for(finetune(), pods=(running_pod(**STAGE),), **known)
    assert stated(plan, "Accepted") == ("False", "AdmissionDenied")
    assert stated(plan) == ("Unknown", "Preflight")
    plan = plan_for(finetune(), pods=(waiting_pod("InvalidImageName", "no", **STAGE),), **known)
    assert stated(plan, "Failed") == ("True", "InvalidImage")
