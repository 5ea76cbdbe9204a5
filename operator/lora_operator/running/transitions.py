"""What a new status says that the one before did not: the facts that are counted, each once."""

from collections.abc import Mapping
from typing import Any

from lora_operator.views.conditions import result_of
from lora_operator.views.model import FineTune, Observed
from lora_operator.views.names import TRAIN
from lora_operator.views.pods import failure_of
from lora_operator.views.wording import parse_instant
from lora_trainer.contract.reasons import Reason

UNKNOWN_CAUSE = "Unknown"


def has_just_ended(before: FineTune, status: Mapping[str, Any]) -> bool:
    """Whether the status is the first with a verdict."""
    return bool(result_of(status)) and not result_of(before.status)


def run_s(status: Mapping[str, Any]) -> float | None:
    """Seconds from the first start of a run to its end; None where it never started."""
    started, ended = parse_instant(status.get("startTime")), parse_instant(status.get("completionTime"))
    return max(0.0, (ended - started).total_seconds()) if started and ended else None


def waited_s(before: FineTune, observed: Observed, status: Mapping[str, Any]) -> float | None:
    """Seconds from a run's creation to its first pod that trains; None unless the status is the first to name one.

    Not to a start of a Job: the preflight's comes before the wait for GPUs, and the training's is often known only
    after its pod.
    """
    created = before.created_at
    made = min((pod.created_at for pod in observed.pods if pod.stage == TRAIN), default=None)
    if before.status.get("podName") or not status.get("podName") or made is None or created is None:
        return None
    return max(0.0, (made - created).total_seconds())


def restart_cause(before: FineTune, observed: Observed, status: Mapping[str, Any]) -> str | None:
    """Why another pod took the place of the one that was there before; None where none did."""
    pod_before, pod = before.status.get("podName"), status.get("podName")
    if not pod_before or not pod or pod == pod_before:
        return None
    failures = (failure_of(view) for view in observed.pods if view.name == pod_before)
    failure = next(failures, None)
    if failure is not None:
        return failure.reason.value
    is_next_attempt = status.get("attempt") != before.status.get("attempt")
    return Reason.JOB_RECREATED.value if is_next_attempt else UNKNOWN_CAUSE
