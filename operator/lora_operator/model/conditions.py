"""The conditions of a LoRAFineTune: the terminal pair Complete and Failed, and those that give details.

A condition's lastTransitionTime moves only when its status does, so that writing the same state twice changes nothing.
"""

import enum
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from lora_operator.model.objects import FineTune
from lora_operator.model.wording import instant, maps_of, parse_instant
from lora_trainer.spec.reasons import Reason
from lora_trainer.spec.summary import clip

UNTOUCHED = "Waiting for the operator"
"""The message of the definition's default, by which nobody has written a status yet."""
MESSAGE_LENGTH = 4096
MOST_CONDITIONS = 16


class Type(enum.StrEnum):
    """Types of condition that the operator writes, in the order in which they stand in the status."""

    ACCEPTED = "Accepted"
    QUOTA_RESERVED = "QuotaReserved"
    PREFLIGHT_PASSED = "PreflightPassed"
    PODS_READY = "PodsReady"
    CHECKPOINT_SAVED = "CheckpointSaved"
    SUSPENDED = "Suspended"
    ARTIFACT_PUBLISHED = "ArtifactPublished"
    COMPLETE = "Complete"
    FAILED = "Failed"


@dataclass(frozen=True, slots=True, kw_only=True)
class StateReason:
    """Why something is as it is: a reason, a sentence, and since when where the cause knows that itself."""

    reason: Reason
    message: str
    since: datetime | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Condition:
    """One condition; `holds` is None for Unknown."""

    type: Type
    holds: bool | None
    why: StateReason


def condition_in(status: Mapping[str, Any], kind: str) -> Mapping[str, Any]:
    """The condition of that type in a status; an empty one where there is none."""
    return next((c for c in maps_of(status.get("conditions")) if c.get("type") == kind), {})


def result_of(status: Mapping[str, Any]) -> str:
    """`succeeded` or `failed`; empty for a run that has not ended."""
    if condition_in(status, Type.COMPLETE).get("status") == "True":
        return "succeeded"
    return "failed" if condition_in(status, Type.FAILED).get("status") == "True" else ""


def has_just_ended(before: FineTune, status: Mapping[str, Any]) -> bool:
    """Whether the status is the first with a verdict."""
    return bool(result_of(status)) and not result_of(before.status)


def state_of(status: Mapping[str, Any]) -> str:
    """The reason of the condition Complete, which `kubectl get` shows as STATE; empty before the first."""
    return str(condition_in(status, Type.COMPLETE).get("reason") or "")


def is_untouched(status: Mapping[str, Any]) -> bool:
    """Whether no operator has written a status yet."""
    return str(condition_in(status, Type.COMPLETE).get("message", UNTOUCHED)).startswith(UNTOUCHED)


def is_finished(finetune: FineTune) -> bool:
    """Whether a verdict is stored. It is final: nothing that is observed later changes it."""
    return bool(result_of(finetune.status))


def write_conditions(finetune: FineTune, conditions: Iterable[Condition], now: datetime) -> list[dict[str, Any]]:
    """The list for the status: ours in their order, then those of other writers as they are."""
    order = list(Type)
    ours = [_written(finetune, c, now) for c in sorted(conditions, key=lambda c: order.index(c.type))]
    foreign = [dict(c) for c in maps_of(finetune.status.get("conditions")) if not _is_ours(c)]
    return (ours + foreign)[:MOST_CONDITIONS]


def refresh_conditions(finetune: FineTune) -> list[dict[str, Any]]:
    """The present conditions with ours speaking of the present generation, which `kubectl wait` looks at."""
    present = maps_of(finetune.status.get("conditions"))
    return [{**c, "observedGeneration": finetune.generation} if _is_ours(c) else dict(c) for c in present]


def _written(finetune: FineTune, condition: Condition, now: datetime) -> dict[str, Any]:
    status = {True: "True", False: "False", None: "Unknown"}[condition.holds]
    before = condition_in(finetune.status, condition.type)
    changed_at = parse_instant(before.get("lastTransitionTime"))
    if changed_at is None:  # never written, or by the CRD's default alone: so it has been since the beginning
        since = min(condition.why.since or finetune.created_at or now, now)
    else:
        since = changed_at if before.get("status") == status else min(condition.why.since or now, now)
    return {
        "type": condition.type.value,
        "status": status,
        "observedGeneration": finetune.generation,
        "lastTransitionTime": instant(since),
        "reason": condition.why.reason.value,
        "message": clip(condition.why.message, MESSAGE_LENGTH),
    }


def _is_ours(condition: Mapping[str, Any]) -> bool:
    return condition.get("type") in [kind.value for kind in Type]
