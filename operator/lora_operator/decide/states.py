"""The states of a run, STATE being the reason of the condition `Complete`: their groups, and which are good news."""

import enum
from collections.abc import Mapping
from typing import Any

from lora_operator.model.conditions import result_of, state_of
from lora_trainer.spec.reasons import FAILURES, Reason


class Group(enum.StrEnum):
    """What states have in common. A reason may be in two: `OOMKilled` may be failing, and then failed."""

    WAITING = "Waiting"
    HELD = "Held"
    RUNNING = "Running"
    RETRYING = "Retrying"
    FAILING = "Failing"
    SUCCEEDED = "Succeeded"
    FAILED = "Failed"


ENDS = frozenset({Group.SUCCEEDED, Group.FAILED})

STATES: Mapping[Group, frozenset[Reason]] = {
    # But for Pending, something stands against the run, which goes on by itself once that is put right.
    Group.WAITING: frozenset(
        {
            Reason.PENDING,
            Reason.UNSCHEDULABLE,
            Reason.QUOTA_EXCEEDED,
            Reason.IMAGE_PULL_BACK_OFF,
            Reason.SECRET_NOT_FOUND,
            Reason.CONFIG_MAP_NOT_FOUND,
            Reason.VOLUME_NOT_READY,
            Reason.CONTAINER_NOT_STARTED,
            Reason.ADMISSION_DENIED,
            Reason.FORBIDDEN,
            Reason.POD_SECURITY_VIOLATION,
            Reason.NAME_CONFLICT,
            Reason.NODE_UNREACHABLE,
        }
    ),
    Group.HELD: frozenset({Reason.QUEUED, Reason.PREEMPTED, Reason.SUSPENDED_BY_USER, Reason.SUSPENDED_EXTERNALLY}),
    Group.RUNNING: frozenset(
        {
            Reason.STARTING,
            Reason.PREFLIGHT,
            Reason.PREPARING,
            Reason.LOADING_MODEL,
            Reason.TRAINING,
            Reason.EVALUATING,
            Reason.CHECKPOINTING,
            Reason.PUBLISHING,
            Reason.STALLED,
        }
    ),
    Group.RETRYING: frozenset({Reason.RESTARTING, Reason.EVICTED}),
    Group.FAILING: FAILURES - {Reason.RESTARTING, Reason.EVICTED},
    Group.SUCCEEDED: frozenset({Reason.SUCCEEDED}),
    Group.FAILED: FAILURES,
}
"""The reasons that STATE may have. Failing: the last pod has failed, and its Job has not said so yet."""


def is_good_news(reason: str) -> bool:
    """Whether a state is worth a Normal Event: nobody has to do anything about it, and nothing was lost."""
    return reason in _GOOD


_GOOD = (
    STATES[Group.HELD] - {Reason.PREEMPTED} | STATES[Group.RUNNING] - {Reason.STALLED} | STATES[Group.SUCCEEDED]
) | {Reason.PENDING}


def group_of(status: Mapping[str, Any]) -> Group | None:
    """The group of the state that a status is in; None for a status without a state, or with an unknown one."""
    ended, state = bool(result_of(status)), state_of(status)
    return next((group for group in Group if (group in ENDS) == ended and state in STATES[group]), None)
