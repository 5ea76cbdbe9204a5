"""The tables of states and conditions, held against what is decided; World.apply holds each step of the model world."""

from collections.abc import Callable
from functools import partial
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
    make_workload,
    minutes_ago,
    running_pod,
    waiting_pod,
    with_status,
)
from tests.unit.contradictions import contradictions

from docgen import states_page
from lora_operator.decision.decide import decide
from lora_operator.decision.states import (
    CONDITIONS,
    ENDS,
    STATES,
    STEPS,
    USUAL_WAY,
    Group,
    group_of,
    is_good_news,
)
from lora_operator.decision.vocabulary import VOCABULARY
from lora_operator.views.conditions import condition_in
from lora_operator.views.model import JobView, Observed, PodView, Rejection
from lora_operator.views.names import QUEUE_LABEL
from lora_operator.views.wording import instant
from lora_trainer.contract.exit_codes import ExitCode
from lora_trainer.contract.progress import Phase, Progress
from lora_trainer.contract.reasons import Reason

Status = dict[str, Any]
SUSPENDED = {"suspend": True}


def waiting(*pods: PodView, job: JobView | None = None, **facts: Any) -> Status:
    """The status of a run with a Job and these pods."""
    observed = Observed(jobs=(job or make_job(),), pods=pods, **facts)
    return dict(decide(make_finetune(), observed, CONFIG, NOW).status)


def refused(message: str, code: int = 403) -> Status:
    """The status of a run whose Job the API server does not take."""
    rejection = Rejection(kind="Job", name="x", code=code, reason="", message=message)
    return dict(decide(make_finetune(), Observed(rejection=rejection), CONFIG, NOW).status)


def running(phase: Phase) -> Status:
    """The status of a run whose trainer says what it does."""
    pod = running_pod()
    stated = with_status(make_finetune(), waiting(pod))
    observed = Observed(jobs=(make_job(),), pods=(pod,), progress=Progress(phase=phase, step=1, total_steps=4))
    return dict(decide(stated, observed, CONFIG, NOW).status)


def queued(*conditions: Status) -> Status:
    """The status of a run that Kueue holds in its queue."""
    held = make_job(queue="gpus", spec=SUSPENDED, status={"startTime": None})
    finetune = make_finetune(metadata={"labels": {QUEUE_LABEL: "gpus"}})
    observed = Observed(jobs=(held,), kueue=True, workloads=(make_workload(*conditions),))
    return dict(decide(finetune, observed, CONFIG, NOW).status)


def looked_at() -> Status:
    """The status of a run whose preflight is at work."""
    jobs, pods = (make_job(stage="preflight"),), (running_pod(stage="preflight"),)
    return dict(decide(make_finetune(spec={"preflight": "Run"}), Observed(jobs=jobs, pods=pods), CONFIG, NOW).status)


def stalled() -> Status:
    """The status of a run whose trainer has told of no step for hours."""
    pod = running_pod()
    progress = {"phase": "Training", "step": 1, "totalSteps": 4, "lastUpdateTime": instant(minutes_ago(300))}
    status = {**waiting(pod), "podName": pod.name, "progress": progress}
    observed = Observed(jobs=(make_job(),), pods=(pod,))
    return dict(decide(make_finetune(status=status), observed, CONFIG, NOW).status)


def suspended(spec: Status) -> Status:
    """The status of a run whose Job is suspended."""
    job = make_job(spec=SUSPENDED, annotations={"lora-operator.io/suspend": str(bool(spec)).lower()})
    return dict(decide(make_finetune(spec=spec), Observed(jobs=(job,)), CONFIG, NOW).status)


def ended(reason: Reason) -> Status:
    """The status of a run that its trainer's last word ended."""
    pod = ended_pod(ExitCode.OK if reason is Reason.SUCCEEDED else 1, make_summary(reason, "so it is").to_message())
    kind = "Complete" if reason is Reason.SUCCEEDED else "Failed"
    return waiting(pod, job=finished_job(kind, reason="BackoffLimitExceeded", failed=1))


def failing(reason: Reason) -> Status:
    """The status of a run whose last pod has failed, while its Job says nothing yet."""
    pod = ended_pod(ExitCode.CONFIG_INVALID, make_summary(reason, "so it is").to_message())
    return waiting(pod, job=make_job(status={"failed": 1}))


def unscheduled(message: str) -> PodView:
    """A pod that no node takes."""
    said = condition_object("PodScheduled", "False", reason="Unschedulable", message=message)
    return make_pod(node="", conditions=(said,))


def creation_failed(message: str) -> Status:
    """The status of a run whose Job cannot make its pod."""
    return waiting(events=(make_event("job-1", "FailedCreate", message),))


REACH: dict[Reason, Callable[[], Status]] = {
    Reason.PENDING: waiting,
    Reason.UNSCHEDULABLE: lambda: waiting(unscheduled("0/1 nodes are available: 1 Insufficient nvidia.com/gpu.")),
    Reason.QUOTA_EXCEEDED: lambda: refused("exceeded quota: gpus"),
    Reason.IMAGE_PULL_BACK_OFF: lambda: waiting(waiting_pod("ImagePullBackOff", "Back-off")),
    Reason.SECRET_NOT_FOUND: lambda: waiting(waiting_pod("CreateContainerConfigError", 'secret "t" not found')),
    Reason.CONFIG_MAP_NOT_FOUND: lambda: waiting(waiting_pod("CreateContainerConfigError", 'configmap "d" not found')),
    Reason.VOLUME_NOT_READY: lambda: waiting(unscheduled('persistentvolumeclaim "adapters" not found')),
    Reason.CONTAINER_NOT_STARTED: lambda: waiting(waiting_pod("CreateContainerError", "no such device")),
    Reason.ADMISSION_DENIED: lambda: refused("denied the request: no"),
    Reason.FORBIDDEN: lambda: refused('User "x" cannot create resource "jobs"'),
    Reason.POD_SECURITY_VIOLATION: lambda: creation_failed("violates PodSecurity restricted"),
    Reason.NAME_CONFLICT: lambda: refused("exists", 409),
    Reason.NODE_UNREACHABLE: lambda: waiting(running_pod(conditions=(condition_object("Ready", "False"),))),
    Reason.SUSPENDED_BY_USER: lambda: suspended(SUSPENDED),
    Reason.SUSPENDED_EXTERNALLY: lambda: suspended({}),
    Reason.QUEUED: queued,
    Reason.PREEMPTED: lambda: queued(condition_object("Evicted", reason="Preempted", message="for another")),
    Reason.STALLED: stalled,
    Reason.EVICTED: lambda: waiting(ended_pod(143, conditions=(condition_object("DisruptionTarget"),))),
    Reason.RESTARTING: lambda: waiting(ended_pod(1), job=make_job(status={"failed": 1})),
    Reason.INVALID_IMAGE: lambda: waiting(waiting_pod("InvalidImageName", "couldn't parse image name")),
    Reason.PREFLIGHT: looked_at,
    **{Reason(phase.value): partial(running, phase) for phase in Phase},
}
"""How a run comes into each state that is no end."""


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
    unspecific = {Reason.RESTARTING, Reason.EVICTED, Reason.INTERNAL_ERROR}
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


def test_the_page_has_an_arrow_for_each_step_and_a_row_for_each_state() -> None:
    """docs/states.md is drawn from the tables."""
    page = states_page.render()
    for before, steps in STEPS.items():
        for after, why in steps.items():
            assert f"    {before or '[*]'} --> {after}: {why}\n" in page
    assert {reason for step in USUAL_WAY for reason in step} == STATES[Group.RUNNING]
    for group in Group:
        for reason in STATES[group] if group is not Group.FAILING else ():
            assert f"| `{reason.value}` | {group.value} |" in page
