"""A run beyond the most unfinished runs of its namespace."""

from tests.unit.builders import CONFIG, NOW, make_finetune, make_job, minutes_ago, running_pod, with_status
from tests.unit.plans import condition, plan_for, stated

from lora_operator.running.explain import describe
from lora_operator.views.model import Observed
from lora_operator.views.wording import instant


def test_a_run_beyond_the_limit_gets_a_sentence_and_waits_for_news() -> None:
    """Nothing is made and no timer runs: whoever counts wakes it."""
    plan = plan_for(make_finetune(), over_limit=10)
    assert (plan.create, plan.requeue_after_s, plan.due_in_s) == ((), None, None)
    assert stated(plan, "Accepted") == ("False", "QuotaExceeded")
    assert stated(plan) == ("Unknown", "QuotaExceeded")
    assert "may have 10 unfinished runs (mostUnfinishedRunsPerNamespace)" in condition(plan, "Accepted")["message"]
    assert [(event.type, event.reason) for event in plan.events] == [("Warning", "QuotaExceeded")]
    again = plan_for(with_status(make_finetune(), plan.status), over_limit=10)
    assert (again.status, again.events) == (plan.status, ())


def test_it_begins_when_there_is_room() -> None:
    """As if it were new; nothing is lost."""
    waiting = with_status(make_finetune(), plan_for(make_finetune(), over_limit=1).status)
    plan = plan_for(waiting)
    assert len(plan.create) == 1
    assert stated(plan, "Accepted") == ("True", "Accepted")


def test_a_run_that_has_its_job_goes_on_whatever_the_limit() -> None:
    """A limit that is lowered stops nothing."""
    plan = plan_for(make_finetune(), jobs=(make_job(),), pods=(running_pod(),), over_limit=1)
    assert stated(plan, "Accepted") == ("True", "Accepted")
    assert stated(plan, "PodsReady") == ("True", "PodRunning")


def test_a_spec_that_breaks_a_rule_fails_though_it_is_beyond_the_limit() -> None:
    """Waiting would not mend it."""
    plan = plan_for(make_finetune(spec={"training": {"epochs": "no"}}), over_limit=1)
    assert stated(plan, "Failed") == ("True", "ConfigInvalid")


def test_who_holds_a_run_beyond_the_limit_sees_that() -> None:
    """It waits for its user first; the limit stands in Accepted."""
    plan = plan_for(make_finetune(spec={"suspend": True}), over_limit=1)
    assert (plan.create, plan.requeue_after_s) == ((), None)
    assert stated(plan) == ("Unknown", "SuspendedByUser")
    assert stated(plan, "Suspended") == ("True", "SuspendedByUser")
    assert stated(plan, "Accepted") == ("False", "QuotaExceeded")


def test_who_waits_beyond_the_limit_waits_no_longer_than_wished() -> None:
    """As for any other quota."""
    finetune = make_finetune(spec={"pendingTimeoutSeconds": 600})
    plan = plan_for(finetune, over_limit=1)
    assert plan.due_in_s == 600
    long_ago = [{**c, "lastTransitionTime": instant(minutes_ago(11))} for c in plan.status["conditions"]]
    waiting = with_status(finetune, {**plan.status, "conditions": long_ago})
    assert stated(plan_for(waiting, over_limit=1), "Failed") == ("True", "PendingTimeout")


def test_explain_says_that_other_runs_are_not_counted() -> None:
    """It reads this run alone, so its plan is the one for when there is room."""
    plan = plan_for(make_finetune(), over_limit=10)
    finetune = with_status(make_finetune(), plan.status)
    document = describe(finetune, Observed(), plan_for(finetune), config=CONFIG, now=NOW)
    (note,) = document["notes"]
    assert note.startswith("The namespace may have 10 unfinished runs")
    assert note.endswith("the other runs are not counted here, and what would be done now is done then")
