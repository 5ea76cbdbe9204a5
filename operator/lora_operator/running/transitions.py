"""What a new status says that the one before did not: the facts that are logged and counted, each once."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from lora_operator.cluster.cache import Key
from lora_operator.views.conditions import condition_in
from lora_operator.views.model import FineTune, Observed
from lora_operator.views.pods import failure_of
from lora_operator.views.wording import parse_instant

UNKNOWN_CAUSE = "Unknown"
JOB_RECREATED = "JobRecreated"


@dataclass(frozen=True, slots=True, kw_only=True)
class Ending:
    """A run ended. `result` is succeeded or failed, `reason` of the vocabulary, `duration_s` since its first start."""

    result: str
    reason: str
    duration_s: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Transition:
    """The step from one status to the next. `waited_s`: its first Job has just started, so long after it was created.

    `restart_cause`: another pod took the place of one that was there before, for this reason.
    """

    key: Key
    attempt: int
    state_before: str
    state: str
    message: str
    ending: Ending | None = None
    waited_s: float | None = None
    restart_cause: str | None = None


def read_transition(before: FineTune, observed: Observed, status: Mapping[str, Any]) -> Transition:
    """Compare a resource, as it was when its status was written, with that status."""
    state = condition_in(status, "Complete")
    return Transition(
        key=Key(before.namespace, before.name),
        attempt=int(status.get("attempt", 0)),
        state_before=str(condition_in(before.status, "Complete").get("reason", "")),
        state=str(state.get("reason", "")),
        message=str(state.get("message", "")),
        ending=None if result_of(before.status) else _ending(status),
        waited_s=_waited_s(before, status),
        restart_cause=_restart_cause(before, observed, status),
    )


def result_of(status: Mapping[str, Any]) -> str:
    """`succeeded` or `failed`; empty for a run that has not ended."""
    if condition_in(status, "Complete").get("status") == "True":
        return "succeeded"
    return "failed" if condition_in(status, "Failed").get("status") == "True" else ""


def _ending(status: Mapping[str, Any]) -> Ending | None:
    result = result_of(status)
    if not result:
        return None
    started, ended = parse_instant(status.get("startTime")), parse_instant(status.get("completionTime"))
    duration_s = max(0.0, (ended - started).total_seconds()) if started and ended else None
    return Ending(result=result, reason=str(condition_in(status, "Failed").get("reason", "")), duration_s=duration_s)


def _waited_s(before: FineTune, status: Mapping[str, Any]) -> float | None:
    started = parse_instant(status.get("startTime"))
    metadata = before.manifest.get("metadata")
    created = parse_instant(metadata.get("creationTimestamp")) if isinstance(metadata, Mapping) else None
    if "startTime" in before.status or started is None or created is None:
        return None
    return max(0.0, (started - created).total_seconds())


def _restart_cause(before: FineTune, observed: Observed, status: Mapping[str, Any]) -> str | None:
    pod_before, pod = before.status.get("podName"), status.get("podName")
    if not pod_before or not pod or pod == pod_before:
        return None
    failures = (failure_of(view) for view in observed.pods if view.name == pod_before)
    failure = next(failures, None)
    if failure is not None:
        return failure.reason.value
    return JOB_RECREATED if status.get("attempt") != before.status.get("attempt") else UNKNOWN_CAUSE
