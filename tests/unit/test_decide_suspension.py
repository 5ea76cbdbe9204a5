"""What the operator does where a run is suspended or another mutable field changes."""

import dataclasses

from tests.unit.builders import (
    job_name,
    make_finetune,
    make_job,
    minutes_ago,
    running_pod,
    with_status,
)
from tests.unit.plans import ATTEMPTED, condition, plan_for, stated
from tests.unit.world import World

from lora_operator.model.objects import Refusal
from lora_operator.model.wording import instant


def test_the_users_wish_to_suspend_reaches_the_job_once() -> None:
    """With the note of it, in one patch."""
    plan = plan_for(make_finetune(spec={"suspend": True}), jobs=(make_job(),), pods=(running_pod(),))
    (patch,) = plan.patch
    assert patch.body == {
        "metadata": {"uid": "job-1", "annotations": {"lora-operator.io/suspend": "true"}},
        "spec": {"suspend": True},
    }
    assert stated(plan, "Suspended") == ("True", "SuspendedByUser")
    assert stated(plan, "PodsReady") == ("False", "SuspendedByUser")
    assert "is being stopped" in condition(plan, "Suspended")["message"]
    assert plan.ask_progress is None


def test_a_job_that_somebody_else_resumed_against_the_users_wish_is_reported_as_such() -> None:
    """The operator does not fight a queue over it, and does not keep quiet about it either."""
    resumed = make_job(annotations={"lora-operator.io/suspend": "true"})
    plan = plan_for(make_finetune(spec={"suspend": True}), jobs=(resumed,), pods=(running_pod(),))
    assert plan.patch == ()
    assert stated(plan, "Suspended") == ("False", "NotSuspended")
    assert "spec.suspend is true, but another controller resumed the Job" in condition(plan, "Suspended")["message"]
    plain = plan_for(make_finetune(), jobs=(make_job(),), pods=(running_pod(),))
    assert condition(plain, "Suspended")["message"] == "The run is not suspended"


def test_a_resource_created_suspended_has_a_suspended_job() -> None:
    """Which needs no patch."""
    world = World({"suspend": True})
    world.settle()
    (job,) = world.jobs.values()
    assert job["spec"]["suspend"] is True
    assert world.condition("Suspended") == ("True", "SuspendedByUser")


def test_resuming_lifts_the_suspension() -> None:
    """Back and forth, the run goes on."""
    world = World()
    world.settle()
    for suspend, state in (
        (True, "SuspendedByUser"),
        (False, "Pending"),
        (True, "SuspendedByUser"),
        (False, "Pending"),
    ):
        world.edit(suspend=suspend)
        world.settle()
        (job,) = world.jobs.values()
        assert job["spec"]["suspend"] is suspend
        assert world.condition("Complete") == ("Unknown", state)


def test_a_run_keeps_its_first_start_when_it_is_resumed() -> None:
    """Kubernetes gives the Job a new start time then."""
    first = plan_for(make_finetune(), jobs=(make_job(),))
    resumed = make_job(status={"startTime": instant(minutes_ago(5))})
    plan = plan_for(with_status(make_finetune(), first.status), jobs=(resumed,))
    assert plan.status["startTime"] == instant(minutes_ago(58))


def test_a_suspension_by_somebody_else_is_reported_and_not_fought() -> None:
    """No write goes to a Job that a queue holds."""
    plan = plan_for(make_finetune(), jobs=(make_job(spec={"suspend": True}),))
    assert plan.patch == ()
    assert stated(plan, "Suspended") == ("True", "SuspendedExternally")
    assert plan.requeue_after_s is None


def test_a_resumption_goes_alone_where_more_is_refused_and_is_reported_where_it_is_refused_itself() -> None:
    """It was nobody else who suspended the Job."""
    rejection = Refusal(kind="Job", name=job_name(), code=422, reason="Invalid", message="no")
    job = make_job(spec={"suspend": True}, annotations={"lora-operator.io/suspend": "true"})
    finetune = make_finetune(spec={"suspend": False, "maxRetries": 5})
    (whole,) = plan_for(finetune, jobs=(job,)).patch
    refused = dataclasses.replace(rejection, patch=whole)
    (alone,) = plan_for(finetune, jobs=(job,), refusals=(refused,)).patch
    assert alone.body == {
        "metadata": {"uid": "job-1", "annotations": {"lora-operator.io/suspend": "false"}},
        "spec": {"suspend": False},
    }
    plan = plan_for(finetune, jobs=(job,), refusals=(refused, dataclasses.replace(rejection, patch=alone)))
    assert (plan.patch, stated(plan, "Suspended")) == ((), ("True", "SuspendedByUser"))
    assert stated(plan, "Accepted") == ("False", "AdmissionDenied")
    assert f"false again, but Job {job.name} is not resumed yet" in condition(plan, "Suspended")["message"]


def test_a_suspended_job_that_is_being_deleted_is_not_said_to_be_resumed() -> None:
    """No change of it is sent any more, and no condition says why it is late."""
    job = make_job(spec={"suspend": True}, annotations={"lora-operator.io/suspend": "true"}, deleting=True)
    plan = plan_for(make_finetune(spec={"suspend": False}), jobs=(job,))
    assert plan.patch == ()
    assert "not resumed yet" not in condition(plan, "Suspended")["message"]


def test_retries_and_deadline_follow_the_spec() -> None:
    """Also where the deadline is taken away."""
    finetune = make_finetune(spec={"maxRetries": 0})
    plan = plan_for(finetune, jobs=(make_job(spec={"activeDeadlineSeconds": 60}),))
    assert [patch.body for patch in plan.patch] == [
        {"metadata": {"uid": "job-1"}, "spec": {"backoffLimit": 0, "activeDeadlineSeconds": None}}
    ]


def test_a_job_that_is_being_deleted_is_waited_for_and_not_patched() -> None:
    """Its pod may still write."""
    finetune = make_finetune(spec={"maxRetries": 1}, status=ATTEMPTED)
    plan = plan_for(finetune, jobs=(make_job(deleting=True),), pods=(running_pod(),))
    assert (plan.create, plan.patch) == ((), ())
    assert stated(plan) == ("Unknown", "Restarting")
