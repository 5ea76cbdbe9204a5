"""The few fields of a Job that follow the LoRAFineTune while it runs: suspension, retries, deadline."""

import dataclasses
from typing import Any

from lora_operator.model import JobPatch, JobView
from lora_operator.render import backoff_limit, suspend_annotation
from lora_operator.request import Policy


def adjust(job: JobView, policy: Policy, pods: int) -> JobPatch | None:
    """The patch that the policy asks for; None where the Job, which has so many pods at a time, follows it already.

    The suspension is written only when the user's wish changed since it was last applied: a Job that a queue or a
    person suspended, or let go, is left as it is.
    """
    spec: dict[str, Any] = {}
    body: dict[str, Any] = {}
    if bool(job.suspend_intent) != policy.suspend:
        spec["suspend"] = policy.suspend
        body["metadata"] = {"annotations": suspend_annotation(policy.suspend)}
    if job.backoff_limit != backoff_limit(policy, pods):
        spec["backoffLimit"] = backoff_limit(policy, pods)
    if job.active_deadline_s != policy.active_deadline_s:
        spec["activeDeadlineSeconds"] = policy.active_deadline_s
    return JobPatch(name=job.name, body={**body, "spec": spec}) if spec else None


def adjusted(job: JobView, patch: JobPatch) -> JobView:
    """The Job as it is once the patch is applied."""
    spec = patch.body["spec"]
    return dataclasses.replace(
        job,
        suspended=spec.get("suspend", job.suspended),
        suspend_intent=spec.get("suspend", job.suspend_intent),
        backoff_limit=spec.get("backoffLimit", job.backoff_limit),
        active_deadline_s=spec.get("activeDeadlineSeconds", job.active_deadline_s),
    )
