"""A Job of an earlier attempt that turns up late, and pods that a live read does not speak of."""

from typing import Any

from tests.unit.builders import (
    ended_pod,
    finished_job,
    job_name,
    make_finetune,
    make_job,
    make_summary,
)
from tests.unit.plans import plan_for, stated

from lora_operator.model.objects import ObjectRef

SECOND: dict[str, Any] = {"attempt": 2, "jobName": job_name(2)}


def test_a_job_of_an_earlier_attempt_that_turns_up_late_is_stopped_after_a_live_read() -> None:
    """A request that was cut off may make it long after another operator has gone on."""
    late, present = make_job(), make_job(attempt=2, uid="job-2")
    plan = plan_for(make_finetune(status=SECOND), jobs=(late, present))
    assert plan.delete == (ObjectRef(kind="Job", name=job_name(1), uid=late.uid),)
    assert bool(plan.verify)
    assert stated(plan, "Complete") == ("Unknown", "Pending")


def test_a_run_ends_though_a_job_of_an_earlier_attempt_cannot_be_deleted() -> None:
    """A webhook keeps it, say: what the present attempt's Job has proven is no less true."""
    late, done = make_job(), finished_job(attempt=2, uid="job-2")
    pod = ended_pod(0, make_summary().to_message(), attempt=2, job_uid="job-2")
    plan = plan_for(make_finetune(status=SECOND), jobs=(late, done), pods=(pod,))
    assert [target.uid for target in plan.delete] == [late.uid]
    assert stated(plan, "Complete") == ("True", "Succeeded")


def test_no_attempt_begins_while_an_earlier_one_is_being_stopped() -> None:
    """Two would write the same output."""
    plan = plan_for(make_finetune(status=SECOND), jobs=(make_job(deleting=True),))
    assert (plan.create, plan.delete) == ((), ())
    assert stated(plan, "Complete") == ("Unknown", "Restarting")


def test_an_earlier_attempt_that_has_ended_is_left_alone() -> None:
    """Its pods tell how it failed."""
    plan = plan_for(make_finetune(status=SECOND), jobs=(finished_job("Failed"), make_job(attempt=2, uid="job-2")))
    assert plan.delete == ()
