"""How a run's Job stands with Kueue, which alone suspends and resumes a Job that is in one of its queues.

The user's wish to hold such a run goes to the Workload's `spec.active`: that frees the quota, where a suspension of the
Job would be undone by Kueue at once.
"""

import dataclasses
from dataclasses import dataclass

from lora_operator.model.conditions import Condition, StateReason, Type
from lora_operator.model.names import QUEUE_LABEL
from lora_operator.model.objects import ConditionView, JobView, Observed, Patch, WorkloadView
from lora_operator.model.request import Policy, Request
from lora_operator.model.wording import sentence
from lora_operator.render.jobs import suspend_annotation
from lora_trainer.spec.reasons import Reason

_HELD = {Reason.QUEUED, Reason.PREEMPTED, Reason.SUSPENDED_BY_USER, Reason.SUSPENDED_EXTERNALLY}


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """A Job's place in a LocalQueue. `kueue`: the cluster has Kueue; `workload` is its record of the Job, once made."""

    queue: str
    job_name: str
    kueue: bool
    workload: WorkloadView | None

    @property
    def cluster(self) -> str:
        """The other cluster to which MultiKueue gives the Job; empty for none."""
        return self.workload.cluster if self.workload else ""

    @property
    def resumed_by_others(self) -> bool:
        """Whether the user's wish to hold the run was applied, and somebody else undid it."""
        return self.workload is not None and self.workload.suspend_intent is True and self.workload.active


def place_of(job: JobView, observed: Observed) -> Place | None:
    """Where the Job waits or runs; None for one that is in no queue."""
    if not job.queue:
        return None
    workload = next((w for w in observed.workloads if job.uid and w.job_uid == job.uid), None)
    return Place(queue=job.queue, job_name=job.name, kueue=observed.kueue, workload=workload)


def waits_for_user(request: Request) -> bool:
    """Whether no Job may be made: Kueue would start it before it could be held, for it is Kueue who suspends it."""
    return request.policy.suspend and QUEUE_LABEL in request.pod.queue_labels


def set_workload_active(place: Place, policy: Policy) -> Patch | None:
    """The patch that takes the Job out of its queue, or puts it back, once for each change of the user's wish."""
    workload = place.workload
    if workload is None or bool(workload.suspend_intent) == policy.suspend:
        return None
    metadata = {"uid": workload.uid, "annotations": suspend_annotation(policy.suspend)}
    body = {"metadata": metadata, "spec": {"active": not policy.suspend}}
    return Patch(kind="Workload", name=workload.name, body=body)


def held(place: Place, patch: Patch) -> WorkloadView:
    """The Workload once the patch is applied."""
    if place.workload is None:
        raise AssertionError("only a Workload that is there is patched")
    active = bool(patch.body["spec"]["active"])
    return dataclasses.replace(place.workload, active=active, suspend_intent=not active)


def waiting(place: Place) -> StateReason:
    """Why Kueue holds a Job that the user does not."""
    workload = place.workload
    if workload is None:
        return StateReason(reason=Reason.QUEUED, message=_without_workload(place))
    taken = _eviction(workload)
    if not workload.active:
        why = f" ({_said(taken)})" if taken and _is_deactivation(taken) and taken.message else ""
        message = (
            f"Workload {workload.name} was deactivated, but not by spec.suspend of this LoRAFineTune{why}: it waits in "
            f"queue {place.queue} again when spec.active of the Workload is set to true"
        )
        return StateReason(reason=Reason.SUSPENDED_EXTERNALLY, message=message)
    what = _what_follows(place.queue, workload)
    if taken is None:
        return StateReason(reason=Reason.QUEUED, message=what)
    # Of one that is active again the deactivation is over.
    why = f"{_said(taken)}. " if taken.message and not _is_deactivation(taken) else ""
    reason = Reason.PREEMPTED if taken.reason == "Preempted" else Reason.QUEUED
    return StateReason(reason=reason, message=f"{why}{what}", since=taken.since)


def _what_follows(queue: str, workload: WorkloadView) -> str:
    """Kueue takes the quota of an evicted Workload back when the pods have stopped."""
    granted = _granted(queue, workload)
    if not granted:
        return f"Waiting for quota in queue {queue}: {_pending(workload)}"
    if _eviction(workload):
        return f"The run waits in queue {queue} again when its pods have stopped"
    return f"{granted}; Kueue has yet to start the Job"


def quota_reserved(place: Place, state: StateReason) -> Condition:
    """The condition QuotaReserved of a run that goes on and is in a queue. `state` is what it does."""
    workload = place.workload
    found = _condition(workload, "QuotaReserved") if workload else None
    since = found.since if found else None
    granted = _granted(place.queue, workload) if workload else ""
    if workload and granted:
        message = f"{granted}, until the pods have stopped" if _eviction(workload) else granted
        why = StateReason(reason=Reason.QUOTA_RESERVED, message=message, since=since)
        return Condition(type=Type.QUOTA_RESERVED, holds=True, why=why)
    reason = state.reason if state.reason in _HELD else Reason.QUEUED
    message = _pending(workload) if workload else _without_workload(place)
    return Condition(
        type=Type.QUOTA_RESERVED, holds=False, why=StateReason(reason=reason, message=message, since=since)
    )


def no_quota(state: StateReason, queue: str) -> Condition:
    """The same without a Job that goes on: it is not made yet, or the run is over."""
    why = dataclasses.replace(state, message=f"The run holds no quota of queue {queue}")
    return Condition(type=Type.QUOTA_RESERVED, holds=False, why=why)


def _without_workload(place: Place) -> str:
    if not place.kueue:
        return (
            f"Job {place.job_name} waits for queue {place.queue}, and this cluster has no Kueue: install Kueue, or "
            f"create a new LoRAFineTune without the label {QUEUE_LABEL}"
        )
    return (
        f"Waiting for Kueue to put Job {place.job_name} into queue {place.queue}; if this lasts, see whether Kueue's "
        "controller runs, and manages Jobs and this namespace"
    )


def _granted(queue: str, workload: WorkloadView) -> str:
    """Kueue's own words for the quota that the Job has; empty for none."""
    found = _condition(workload, "QuotaReserved")
    if found is None or found.status != "True":
        return ""
    return _said(found) or f"Quota is reserved in queue {queue}"


def _pending(workload: WorkloadView) -> str:
    """Kueue's own words for why there is no quota yet, with a remedy where they name something that is missing."""
    found, taken = _condition(workload, "QuotaReserved"), _eviction(workload)
    if found is None or not found.message:
        return "Kueue has not looked at it yet"
    if taken and workload.active and found.message == taken.message:
        return "Kueue has not looked at it again yet"
    missing = "doesn't exist" in found.message
    return _said(found) + (": create it, and the run continues automatically" if missing else "")


def _eviction(workload: WorkloadView) -> ConditionView | None:
    """Why Kueue takes the quota back, or took it, until it grants some again."""
    found = _condition(workload, "Evicted")
    return found if found is not None and found.status == "True" else None


def _is_deactivation(eviction: ConditionView) -> bool:
    return eviction.reason.startswith("Deactivated")


def _said(condition: ConditionView) -> str:
    return sentence(condition.message).rstrip(".")


def _condition(workload: WorkloadView, kind: str) -> ConditionView | None:
    return next((c for c in workload.conditions if c.type == kind), None)
