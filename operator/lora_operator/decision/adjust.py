"""The few fields of a Job that follow the LoRAFineTune while it runs: suspension, retries, deadline."""

import dataclasses
from typing import Any

from lora_operator.rendering.render import suspend_annotation
from lora_operator.views.budget import Used, backoff_limit, seconds_left
from lora_operator.views.model import JobView, Patch
from lora_operator.views.request import Policy


def adjust(job: JobView, policy: Policy, pods: int, run_s: int = 0) -> Patch | None:
    """The patch that the policy asks for; None where the Job, which has so many pods at a time, follows it already.

    `run_s` is how long the run was active before the Job began or was last resumed: that much less it may still take.

    The suspension is written only when the user's wish changed since it was last applied: a Job that a queue or a
    person suspended, or let go, is left as it is. That of a Job in a queue is never written: see `quota.hold`.
    """
    spec: dict[str, Any] = {}
    body: dict[str, Any] = {}
    if not job.queue and bool(job.suspend_intent) != policy.suspend:
        spec["suspend"] = policy.suspend
        body["metadata"] = {"annotations": suspend_annotation(policy.suspend)}
    used = Used(retries=job.retries_before, run_s=run_s)
    if job.backoff_limit != backoff_limit(policy, used, pods):
        spec["backoffLimit"] = backoff_limit(policy, used, pods)
    if job.active_deadline_s != seconds_left(policy, used):
        spec["activeDeadlineSeconds"] = seconds_left(policy, used)
    return Patch(name=job.name, body={**body, "spec": spec}) if spec else None


def adjusted(job: JobView, patch: Patch) -> JobView:
    """The Job as it is once the patch is applied."""
    spec = patch.body["spec"]
    return dataclasses.replace(
        job,
        suspended=spec.get("suspend", job.suspended),
        suspend_intent=spec.get("suspend", job.suspend_intent),
        backoff_limit=spec.get("backoffLimit", job.backoff_limit),
        active_deadline_s=spec.get("activeDeadlineSeconds", job.active_deadline_s),
    )
