"""What is read back from a status. The status is output: this closed list is all of it that decides anything again."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from lora_operator.model.conditions import Type, result_of, state_of
from lora_operator.model.wording import block_of, integer_of, maps_of, parse_instant, text_of

MOST_ATTEMPTS = 9999
_LARGEST_S = 2**53
Block = dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Stored:
    """A status as it was last written. What is odd reads as absent, whoever wrote it.

    verdict           `succeeded`, `failed` or empty: it is final, and outlives Jobs and pods
    state             reason last shown: an Event and a transition time only where it changes
    state_since       likewise
    started_at        the first Job's start, which is gone with that Job
    conditions        their times, as a transition time moves only with the status; those of others are kept
    attempt           Jobs are deleted, and none is to be made twice; 0 before the first
    retries           what earlier Jobs, which are gone, used up, and how often the run was taken away at least
    run_s             seconds of activity in periods that are over: Kubernetes forgets them with each suspension
    active_since      the present period, whose Job may be gone when it ends
    active_until      the end of the last one, so that a late cache counts nothing twice
    preflight, plan   what the preflight found, whose pod is gone: every attempt trains by the same plan
    resolved          defaults as they were when the first Job was made: a changed setting reaches new runs alone
    progress          what the trainer last said, since an answer is rare
    advice            what stages advised, whose pods are gone
    pod_name          the pod that was last shown
    is_written        an operator has written it; else it is the definition's default
    """

    verdict: str = ""
    state: str = ""
    state_since: str = ""
    started_at: datetime | None = None
    conditions: tuple[Mapping[str, Any], ...] = ()
    attempt: int = 0
    retries: Mapping[str, Any] = field(default_factory=dict)
    run_s: int = 0
    active_since: datetime | None = None
    active_until: datetime | None = None
    preflight: Block = field(default_factory=dict)
    plan: Block = field(default_factory=dict)
    resolved: Block = field(default_factory=dict)
    progress: Block = field(default_factory=dict)
    advice: tuple[Mapping[str, Any], ...] = ()
    pod_name: str = ""
    is_written: bool = False

    def condition(self, kind: Type) -> Mapping[str, Any]:
        """The condition of this type; empty where there is none."""
        return next((c for c in self.conditions if c.get("type") == kind), {})

    def holds(self, kind: Type) -> bool | None:
        """Whether the condition is True or False; None where it is neither."""
        return {"True": True, "False": False}.get(str(self.condition(kind).get("status")))

    def since(self, kind: Type) -> datetime | None:
        """When the condition last changed."""
        return parse_instant(self.condition(kind).get("lastTransitionTime"))


def read_stored(status: Mapping[str, Any]) -> Stored:
    """The status of a resource."""
    attempt = integer_of(status.get("attempt")) or 0
    return Stored(
        verdict=result_of(status),
        state=state_of(status),
        state_since=text_of(status.get("stateSince")),
        started_at=parse_instant(status.get("startTime")),
        conditions=tuple(maps_of(status.get("conditions"))),
        attempt=attempt if 0 < attempt <= MOST_ATTEMPTS else 0,
        retries=block_of(status, "retries"),
        run_s=min(max(integer_of(status.get("runSeconds")) or 0, 0), _LARGEST_S),
        active_since=parse_instant(status.get("activeSince")),
        active_until=parse_instant(status.get("activeUntil")),
        preflight=block_of(status, "preflight"),
        plan=block_of(status, "plan"),
        resolved=block_of(status, "resolved"),
        progress=block_of(status, "progress"),
        advice=tuple(maps_of(status.get("advice"))),
        pod_name=text_of(status.get("podName")),
        is_written="observedGeneration" in status,
    )
