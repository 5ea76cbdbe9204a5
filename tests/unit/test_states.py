"""The tables of states and conditions, held against what is decided; World.apply holds each step of the model world."""

import pytest
from tests.unit.builders import running_pod
from tests.unit.contradictions import contradictions
from tests.unit.reached import REACH, ended, waiting

from docgen.state_tables import CONDITIONS, STEPS
from docgen.vocabulary import VOCABULARY
from lora_operator.decide.states import ENDS, STATES, Group, group_of, is_good_news
from lora_operator.model.conditions import condition_in
from lora_trainer.spec.progress import Phase
from lora_trainer.spec.reasons import Reason


def test_every_reason_is_explained_in_the_order_of_the_vocabulary() -> None:
    """A meaning and a remedy for each."""
    assert list(VOCABULARY) == list(Reason)
    assert all(len(explanation.meaning) > 10 and len(explanation.remedy) > 5 for explanation in VOCABULARY.values())


@pytest.mark.parametrize("reason", list(REACH), ids=str)
def test_each_state_that_goes_on_is_reached(reason: Reason) -> None:
    """And its conditions are those of the table."""
    status = REACH[reason]()
    assert condition_in(status, "Complete")["reason"] == reason.value
    assert group_of(status) not in (None, *ENDS) or reason is Reason.INVALID_IMAGE
    assert contradictions({}, status) == []


@pytest.mark.parametrize("reason", sorted(STATES[Group.FAILED] | STATES[Group.SUCCEEDED]), ids=str)
def test_each_end_is_reached(reason: Reason) -> None:
    """A trainer's last word, or where it is no cause of its own, what the Job says."""
    status = ended(reason)
    stated = condition_in(status, "Complete")
    assert stated["status"] == ("True" if reason is Reason.SUCCEEDED else "False")
    unspecific = {Reason.RESTARTING, Reason.EVICTED, Reason.INTERNAL_ERROR, Reason.RESULT_UNKNOWN}
    assert stated["reason"] == (Reason.BACKOFF_LIMIT_EXCEEDED if reason in unspecific else reason).value
    assert contradictions(waiting(running_pod()), status) == []


def test_every_state_of_the_table_is_reached_here() -> None:
    """None is in the table for nothing."""
    ongoing = frozenset().union(*(STATES[group] for group in Group if group not in {*ENDS, Group.FAILING}))
    assert set(REACH) - {Reason.INVALID_IMAGE} == ongoing


def test_every_reason_is_a_state_or_says_something_of_another_condition() -> None:
    """None is forgotten in the table of states."""
    details = {
        Reason.ACCEPTED,
        Reason.QUOTA_RESERVED,
        Reason.NOT_SUSPENDED,
        Reason.JOB_RECREATED,
        Reason.CHECKPOINT_SAVED,
        Reason.NO_CHECKPOINT_CLAIM,
        Reason.PREFLIGHT_PASSED,
        Reason.POD_RUNNING,
    }
    assert set(Reason) - details == frozenset().union(*STATES.values())


def test_a_verdict_is_followed_by_nothing() -> None:
    """Neither by another verdict nor by going on; and the check can tell."""
    done, failed, on = ended(Reason.SUCCEEDED), ended(Reason.OOM_KILLED), waiting(running_pod())
    assert contradictions(done, done) == []
    assert contradictions(done, failed) == ["Succeeded to Failed is not in the table of steps"]
    assert contradictions(failed, on) == ["Failed to Running is not in the table of steps"]


def test_what_the_tables_do_not_foresee_is_named() -> None:
    """A condition with a reason that it never has."""
    status = waiting()
    for stated in status["conditions"]:
        if stated["type"] == "PodsReady":
            stated["status"] = "True"
    assert contradictions({}, status) == ["PodsReady=True with Pending is not in the table of conditions"]


def test_every_group_has_its_steps_and_every_condition_its_three_or_two_cases() -> None:
    """The tables are whole."""
    assert set(STEPS) == {None, *Group}
    assert all(not STEPS[group] for group in ENDS)
    for cases in CONDITIONS.values():
        statuses = [case.status for case in cases]
        assert len(statuses) == len(set(statuses))
        assert {"True", "False"} <= set(statuses)


def test_only_what_needs_nobody_is_good_news() -> None:
    """Everything else is a Warning in the Events."""
    good = {reason for reason in Reason if is_good_news(reason)}
    assert good == {
        Reason.PENDING,
        Reason.QUEUED,
        Reason.SUSPENDED_BY_USER,
        Reason.SUSPENDED_EXTERNALLY,
        Reason.SUCCEEDED,
        Reason.PREFLIGHT,
        *(Reason(phase.value) for phase in Phase),
    }
