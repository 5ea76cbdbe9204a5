"""The Job that fetches model and data into the cache before GPUs are asked for."""

from typing import Any

import pytest
from tests.unit.builders import (
    CONFIG,
    NOW,
    SHARED,
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
from tests.unit.plans import condition, stated
from tests.unit.world import World

from lora_operator.decision.decide import decide
from lora_operator.views.model import FineTune, JobView, Observed, Plan, PodView
from lora_operator.views.wording import instant
from lora_trainer.contract.progress import Phase, Progress
from lora_trainer.contract.reasons import Reason

PREPARE = f"{job_name()}-prepare"
POD = f"{PREPARE}-abcde"


def plan_for(
    finetune: FineTune, *, jobs: tuple[JobView, ...] = (), pods: tuple[PodView, ...] = (), **observed: Any
) -> Plan:
    """The plan at `NOW`, with a cache configured."""
    return decide(finetune, Observed(jobs=jobs, pods=pods, **observed), SHARED, NOW)


def made(plan: Plan) -> list[tuple[str, str]]:
    """Kind and name of what a plan creates."""
    return [(obj["kind"], obj["metadata"]["name"]) for obj in plan.create]


def preparing(**changes: Any) -> JobView:
    """The Job that prepares."""
    return make_job(stage="prepare", **changes)


def prepared(**changes: Any) -> JobView:
    """The Job that has prepared."""
    return finished_job(stage="prepare", **changes)


def test_model_and_data_are_fetched_before_the_training_job_is_made() -> None:
    """The run counts no attempt yet, and says what it does."""
    plan = plan_for(make_finetune())
    assert made(plan) == [("Job", PREPARE)]
    assert stated(plan, "Accepted") == ("True", "Accepted")
    assert stated(plan, "PreflightPassed") == ("Unknown", "Pending")
    assert not {"attempt", "jobName", "podName"} & set(plan.status)
    running = plan_for(with_status(make_finetune(), plan.status), jobs=(preparing(),), pods=(prepare_pod(),))
    assert stated(running) == stated(running, "PreflightPassed") == ("Unknown", "Preparing")
    assert stated(running, "PodsReady") == ("False", "Preparing")
    assert POD in condition(running, "Complete")["message"]
    assert running.ask_progress is None
    assert running.status["startTime"] == instant(minutes_ago(58))


def prepare_pod(**changes: Any) -> PodView:
    """A pod that prepares, running."""
    return running_pod(stage="prepare", **changes)


def test_the_training_job_follows_when_all_is_there() -> None:
    """And the condition says what was done, for as long as the run exists."""
    message = make_summary(Reason.PREFLIGHT_PASSED, "acme/base and 200 rows are at hand").to_message()
    plan = plan_for(make_finetune(), jobs=(prepared(),), pods=(ended_pod(0, message, stage="prepare"),))
    assert made(plan) == [("Job", job_name())]
    assert stated(plan, "PreflightPassed") == ("True", "Prepared")
    assert condition(plan, "PreflightPassed")["message"] == "acme/base and 200 rows are at hand"
    assert (plan.status["attempt"], plan.status["jobName"]) == (1, job_name())
    later = plan_for(with_status(make_finetune(), plan.status), jobs=(make_job(),), pods=(running_pod(),))
    assert condition(later, "PreflightPassed") == condition(plan, "PreflightPassed")
    assert later.status["podName"] == running_pod().name


@pytest.mark.parametrize(
    "spec",
    [
        {"model": {"uri": "pvc://models/base"}},
        {"model": {"uri": "pvc://models/base"}, "dataset": {"uri": "configmap://chats/a.jsonl"}},
    ],
)
def test_a_run_that_fetches_nothing_trains_at_once(spec: dict[str, Any]) -> None:
    """Volumes and ConfigMaps are there already."""
    plan = plan_for(make_finetune(spec=spec))
    assert made(plan) == [("Job", job_name())]
    assert "PreflightPassed" not in {c["type"] for c in plan.status["conditions"]}


@pytest.mark.parametrize("address", ["s3://data/a.jsonl", "hf://acme/chats"])
def test_data_from_afar_are_fetched_too(address: str) -> None:
    """Also where the model lies on a volume, and also held-out rows."""
    volume = {"uri": "pvc://models/base"}
    for dataset in ({"uri": address}, {"uri": "pvc://data/a.jsonl", "validationUri": address}):
        assert made(plan_for(make_finetune(spec={"model": volume, "dataset": dataset})))[0] == ("Job", PREPARE)


def test_without_a_cache_the_training_pod_fetches_by_itself() -> None:
    """There is nowhere to put it."""
    plan = decide(make_finetune(), Observed(), CONFIG, NOW)
    assert made(plan) == [("Job", job_name())]


def test_a_failure_that_is_final_is_the_runs_verdict_with_the_trainers_sentence() -> None:
    """No GPU was asked for."""
    sentence = "spec.model.uri is hf://acme/base: the Hub does not know it"
    message = make_summary(Reason.MODEL_NOT_FOUND, sentence).to_message()
    job = finished_job("Failed", reason="PodFailurePolicy", failed=1, stage="prepare")
    plan = plan_for(make_finetune(), jobs=(job,), pods=(ended_pod(66, message, stage="prepare"),))
    assert stated(plan, "Failed") == ("True", "ModelNotFound")
    assert stated(plan, "PreflightPassed") == ("False", "ModelNotFound")
    assert condition(plan, "Failed")["message"] == sentence
    assert condition(plan, "Accepted")["message"] == f"The spec is valid; Job {job.name} runs it"
    assert plan.create == ()
    assert plan.status["completionTime"] == instant(minutes_ago(10))


def test_a_failure_without_its_pod_is_looked_at_twice() -> None:
    """The pod may not have reached the cache yet, and a verdict is for ever."""
    job = finished_job("Failed", reason="BackoffLimitExceeded", failed=1, stage="prepare")
    assert plan_for(make_finetune(), jobs=(job,)).read_first
    assert stated(plan_for(make_finetune(), jobs=(job,)), "Failed")[0] == "True"


def test_a_pod_that_fails_in_passing_is_tried_again_by_its_job() -> None:
    """The state tells the failure, and the retry."""
    pods = (ended_pod(75, "ConnectionError: reset", stage="prepare"),)
    plan = plan_for(make_finetune(), jobs=(preparing(status={"failed": 1}),), pods=pods)
    assert stated(plan) == ("Unknown", "Restarting")
    assert "Now retry 1 of 3 follows" in condition(plan, "Complete")["message"]


def test_too_little_memory_names_the_setting_that_gives_more() -> None:
    """The spec's memory is that of the training."""
    job = finished_job("Failed", reason="BackoffLimitExceeded", failed=1, stage="prepare")
    pods = (ended_pod(137, reason="OOMKilled", stage="prepare"),)
    plan = plan_for(make_finetune(), jobs=(job,), pods=pods)
    assert stated(plan) == ("False", "OOMKilled")
    assert "more than its 2Gi" in condition(plan, "Failed")["message"]
    assert "have prepareMemory raised" in condition(plan, "Failed")["message"]


def test_a_pod_that_does_not_start_tells_why() -> None:
    """As a training pod does."""
    pod = waiting_pod("CreateContainerConfigError", 'secret "hf-token" not found', stage="prepare")
    plan = plan_for(make_finetune(), jobs=(preparing(),), pods=(pod,))
    assert stated(plan) == stated(plan, "PreflightPassed") == ("Unknown", "SecretNotFound")
    assert plan.watch_events


def test_suspend_holds_it_too() -> None:
    """One wish for the whole run."""
    plan = plan_for(make_finetune(spec={"suspend": True}), jobs=(preparing(),), pods=(prepare_pod(),))
    assert [(patch.name, patch.body["spec"]) for patch in plan.patch] == [(PREPARE, {"suspend": True})]
    assert stated(plan, "Suspended") == ("True", "SuspendedByUser")
    held = World({"suspend": True}, SHARED)
    held.settle()
    assert [job["spec"]["suspend"] for job in held.jobs.values()] == [True]


def test_its_retries_do_not_grow_with_the_nodes_of_the_training() -> None:
    """It is one pod."""
    plan = plan_for(make_finetune(spec={"resources": {"nodes": 4}}), jobs=(preparing(),))
    assert plan.patch == ()


def test_one_that_was_deleted_is_made_again_and_counts_nothing() -> None:
    """Under the same name; once it has done its work, it is not missed."""
    world = World(config=SHARED)
    world.settle()
    for _ in range(5):
        world.delete_job(PREPARE)
        world.settle()
        assert list(world.jobs) == [PREPARE]
    world.job_controller()
    (pod,) = world.living_pods()
    world.finish(pod, 0, "")
    world.settle()
    assert list(world.jobs) == [PREPARE, job_name()]
    world.delete_job(PREPARE)
    world.settle()
    assert list(world.jobs) == [job_name()]
    assert world.condition("PreflightPassed") == ("True", "Prepared")


def test_a_second_attempt_does_not_fetch_again() -> None:
    """The cache has it, and the training looks at it anyway."""
    first = plan_for(make_finetune(), jobs=(prepared(),))
    plan = plan_for(with_status(make_finetune(), first.status), jobs=(prepared(),))
    assert made(plan) == [("Job", job_name(2))]
    assert stated(plan, "PreflightPassed") == ("True", "Prepared")


def test_a_pod_that_outlives_its_job_holds_nothing_up() -> None:
    """Two may fetch at once; only outputs have one writer."""
    plan = plan_for(make_finetune(), pods=(prepare_pod(job_uid="gone"),))
    assert made(plan)[0] == ("Job", PREPARE)


def test_its_progress_is_not_that_of_the_training() -> None:
    """Nobody asks it, and no answer of a training pod is taken for its own."""
    progress = Progress(phase=Phase.TRAINING, step=3, total_steps=4)
    plan = plan_for(make_finetune(), jobs=(preparing(),), pods=(prepare_pod(),), progress=progress)
    assert "progress" not in plan.status
    assert plan.ask_progress is None


def test_the_time_to_live_takes_it_with_the_rest() -> None:
    """It is kept until then."""
    pods = (ended_pod(0, make_summary().to_message()),)
    done = plan_for(make_finetune(), jobs=(prepared(), finished_job()), pods=pods)
    assert done.delete == ()
    finetune = with_status(make_finetune(spec={"ttlSecondsAfterFinished": 0}), done.status)
    gone = plan_for(finetune, jobs=(prepared(), finished_job()), pods=pods).delete
    assert [(ref.kind, ref.name) for ref in gone] == [("Job", PREPARE), ("Job", job_name())]


def test_a_pod_that_has_ended_waits_for_its_job_to_say_so() -> None:
    """Nothing is published by it."""
    plan = plan_for(make_finetune(), jobs=(preparing(),), pods=(ended_pod(0, stage="prepare"),))
    assert stated(plan) == ("Unknown", "Preparing")
    fresh = plan_for(make_finetune(), jobs=(preparing(),), pods=(make_pod(stage="prepare"),))
    assert stated(fresh) == ("Unknown", "Pending")
