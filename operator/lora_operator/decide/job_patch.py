"""The few fields of a Job that follow the LoRAFineTune while it runs, and the marks by which the Job is its own."""

import dataclasses
from typing import Any

from lora_operator.decide.kueue import held, set_workload_active
from lora_operator.decide.run import Run
from lora_operator.model.budget import Used, backoff_limit, seconds_left
from lora_operator.model.conditions import StateReason
from lora_operator.model.objects import JobView, Patch
from lora_operator.render.jobs import marks_of, suspend_annotation
from lora_trainer.spec.reasons import Reason


def patches_for(run: Run, job: JobView) -> tuple[tuple[Patch, ...], Run]:
    """The patches that the spec's mutable part asks for, and the run as it is once they are applied.

    What was just refused is left out. Where that was the whole change of a Job, its suspension, which frees GPUs, or
    the end of it is tried alone: else the run would be held, or go on, for as long as the refusal lasts.
    """
    refused = [refusal.patch for refusal in run.observed.refusals]
    change, place = _change(run, job), run.place
    if change in refused:
        change = _suspension_alone(change)
    holding = set_workload_active(place, run.policy) if place is not None else None
    wanted = (holding, change) if run.policy.suspend else (change, holding)  # what frees GPUs goes first
    patches = tuple(patch for patch in wanted if patch is not None and patch not in refused)
    if change in patches and change is not None:
        run = run.with_job(_changed(job, change))
    if holding in patches and holding is not None and place is not None:
        run = run.with_workload(held(place, holding))
    return patches, run


def _change(run: Run, job: JobView) -> Patch | None:
    """The patch of the Job; None where it follows the spec already.

    The suspension is written only when the user's wish changed since it was last applied: a Job that a queue or a
    person suspended, or let go, is left as it is. That of a Job in a queue is never written:
    see `kueue.set_workload_active`.
    """
    policy, marks = run.policy, marks_of(run.finetune, job.attempt, job.stage)
    # How long the run was active before the Job began or was last resumed: that much less it may still take.
    used = Used(retries=job.retries_before, run_s=run.active.run_s)
    spec: dict[str, Any] = {}
    metadata: dict[str, Any] = {}
    if not job.queue and bool(job.suspend_intent) != policy.suspend:
        spec["suspend"] = policy.suspend
        metadata["annotations"] = suspend_annotation(policy.suspend)
    if job.backoff_limit != backoff_limit(policy, used, run.nodes):
        spec["backoffLimit"] = backoff_limit(policy, used, run.nodes)
    if job.active_deadline_s != seconds_left(policy, used):
        spec["activeDeadlineSeconds"] = seconds_left(policy, used)
    if not job.has_our_labels:
        metadata["labels"] = marks["labels"]
    if job.owners is not None:
        others = [owner for owner in job.owners if owner.get("uid") != job.owner_uid]
        metadata["ownerReferences"] = [*others, *marks["ownerReferences"]]
    return _patch(job, spec, metadata)


def _suspension_alone(patch: Patch | None) -> Patch | None:
    suspend = patch.body.get("spec", {}).get("suspend") if patch is not None else None
    if patch is None or suspend is None:
        return None
    metadata = {"uid": patch.body["metadata"]["uid"], "annotations": suspend_annotation(suspend)}
    return Patch(name=patch.name, body={"metadata": metadata, "spec": {"suspend": suspend}})


def _patch(job: JobView, spec: dict[str, Any], metadata: dict[str, Any]) -> Patch | None:
    if not spec and not metadata:
        return None
    metadata = {"uid": job.uid, **metadata}  # a precondition
    return Patch(name=job.name, body={"metadata": metadata, "spec": spec} if spec else {"metadata": metadata})


def _changed(job: JobView, patch: Patch) -> JobView:
    spec = patch.body.get("spec", {})
    return dataclasses.replace(
        job,
        suspended=spec.get("suspend", job.suspended),
        suspend_intent=spec.get("suspend", job.suspend_intent),
        backoff_limit=spec.get("backoffLimit", job.backoff_limit),
        active_deadline_s=spec.get("activeDeadlineSeconds", job.active_deadline_s),
    )


def still_held(state: StateReason, run: Run, job: JobView) -> StateReason:
    """The state, except that of a Job which the operator suspended and has yet to resume: nobody else holds that."""
    workload = run.place.workload if run.place else None
    if workload is not None:
        ours = workload.suspend_intent is True and not workload.active
    else:
        ours = run.place is None and job.suspend_intent is True
    if run.policy.suspend or not job.suspended or job.deleting or not ours:
        return state
    what = f"Workload {workload.name}" if workload else f"Job {job.name}"
    message = f"spec.suspend is false again, but {what} is not resumed yet: if this lasts, condition Accepted says why"
    return dataclasses.replace(state, reason=Reason.SUSPENDED_BY_USER, message=message)
