"""Every state of a run, reached by deciding on what leads there."""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

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
from tests.unit.deciding import decide

from lora_operator.decide.states import ENDS, STATES, Group
from lora_operator.model.names import QUEUE_LABEL
from lora_operator.model.objects import JobView, Observed, PodView, Refusal
from lora_operator.model.wording import instant
from lora_trainer.spec.exit_codes import ExitCode
from lora_trainer.spec.progress import Phase, Progress
from lora_trainer.spec.reasons import Reason

Status = dict[str, Any]
SUSPENDED = {"suspend": True}


def waiting(*pods: PodView, job: JobView | None = None, **facts: Any) -> Status:
    """The status of a run with a Job and these pods."""
    observed = Observed(jobs=(job or make_job(),), pods=pods, **facts)
    return dict(decide(make_finetune(), observed, CONFIG, NOW).status)


def refused(message: str, code: int = 403) -> Status:
    """The status of a run whose Job the API server does not take."""
    rejection = Refusal(kind="Job", name="x", code=code, reason="", message=message)
    return dict(decide(make_finetune(), Observed(refusals=(rejection,)), CONFIG, NOW).status)


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


def every_state() -> Iterator[tuple[str, Status]]:
    """A status for each reason of each group of the table of states, under the names of both."""
    for group, reasons in STATES.items():
        for reason in sorted(reasons):
            reach = ended if group in ENDS else failing if group is Group.FAILING else None
            yield f"{group}-{reason}", reach(reason) if reach else REACH[reason]()
