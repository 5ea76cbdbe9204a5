"""The few fields of a Job that follow the LoRAFineTune while it runs, and the marks by which the Job is its own."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from lora_operator.decision.quota import Place
from lora_operator.rendering.render import suspend_annotation
from lora_operator.views.budget import Used, backoff_limit, seconds_left
from lora_operator.views.conditions import Finding
from lora_operator.views.model import JobView, Patch
from lora_operator.views.names import RELABELLED_ANNOTATION
from lora_operator.views.request import Policy
from lora_trainer.contract.reasons import Reason

MOST_RELABELLED = 3


def adjust(
    job: JobView, policy: Policy, pods: int, run_s: int = 0, marks: Mapping[str, Any] | None = None
) -> Patch | None:
    """The patch that the policy asks for; None where the Job, which has so many pods at a time, follows it already.

    `run_s` is how long the run was active before the Job began or was last resumed: that much less it may still take.

    The suspension is written only when the user's wish changed since it was last applied: a Job that a queue or a
    person suspended, or let go, is left as it is. That of a Job in a queue is never written: see `quota.hold`.

    `marks` are labels and controller reference: what somebody took off is put back, `MOST_RELABELLED` times.
    """
    spec: dict[str, Any] = {}
    annotations: dict[str, str] = {}
    if not job.queue and bool(job.suspend_intent) != policy.suspend:
        spec["suspend"] = policy.suspend
        annotations |= suspend_annotation(policy.suspend)
    used = Used(retries=job.retries_before, run_s=run_s)
    if job.backoff_limit != backoff_limit(policy, used, pods):
        spec["backoffLimit"] = backoff_limit(policy, used, pods)
    if job.active_deadline_s != seconds_left(policy, used):
        spec["activeDeadlineSeconds"] = seconds_left(policy, used)
    metadata: dict[str, Any] = {}
    if marks and job.relabelled < MOST_RELABELLED and (job.owners is not None or not job.is_indexed):
        metadata["uid"] = job.uid  # a precondition
        if not job.is_indexed:
            metadata["labels"] = marks["labels"]
        if job.owners is not None:
            others = [owner for owner in job.owners if owner.get("uid") != job.owner_uid]
            metadata["ownerReferences"] = [*others, *marks["ownerReferences"]]
        annotations[RELABELLED_ANNOTATION] = str(job.relabelled + 1)
    if annotations:
        metadata["annotations"] = annotations
    body = {key: part for key, part in (("metadata", metadata), ("spec", spec)) if part}
    return Patch(name=job.name, body=body) if body else None


def suspension_alone(patch: Patch | None) -> Patch | None:
    """The part of a patch that suspends or resumes the Job, where the whole was refused; None where it does neither."""
    suspend = patch.body.get("spec", {}).get("suspend") if patch is not None else None
    if patch is None or suspend is None:
        return None
    return Patch(
        name=patch.name, body={"metadata": {"annotations": suspend_annotation(suspend)}, "spec": {"suspend": suspend}}
    )


def still_held(state: Finding, job: JobView, place: Place | None, policy: Policy) -> Finding:
    """The state, except that of a Job which the operator suspended and has yet to resume: nobody else holds that."""
    workload = place.workload if place else None
    if workload is not None:
        ours = workload.suspend_intent is True and not workload.active
    else:
        ours = place is None and job.suspend_intent is True
    if policy.suspend or not job.suspended or not ours:
        return state
    what = f"Workload {workload.name}" if workload else f"Job {job.name}"
    message = (
        f"spec.suspend is false again, but {what} is not resumed yet: if this lasts, condition Accepted or "
        "status.advice says why"
    )
    return dataclasses.replace(state, reason=Reason.SUSPENDED_BY_USER, message=message)


def has_lost_labels(job: JobView) -> bool:
    """Whether somebody takes the labels off again and again: no watch shows the Job then, and it is read by name."""
    return not job.is_indexed and job.relabelled >= MOST_RELABELLED


def adjusted(job: JobView, patch: Patch) -> JobView:
    """The Job as it is once the patch is applied."""
    spec = patch.body.get("spec", {})
    return dataclasses.replace(
        job,
        suspended=spec.get("suspend", job.suspended),
        suspend_intent=spec.get("suspend", job.suspend_intent),
        backoff_limit=spec.get("backoffLimit", job.backoff_limit),
        active_deadline_s=spec.get("activeDeadlineSeconds", job.active_deadline_s),
    )
