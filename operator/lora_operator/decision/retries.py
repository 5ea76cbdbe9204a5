"""How often a pod of a run ended early in a way that is tried again, by cause, and what that leaves of `maxRetries`.

Every pod counts once, whenever, however often and by whichever process it is looked at: the uids of those counted last
are kept in the status, also of pods that are gone. A process that stood by, or whose watch lags, may still see one, and
a live read may bring one back. Of pods that train together one counts for each round.
"""

import dataclasses
import enum
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from lora_operator.decision.rounds import (
    PodEnd,
    Rounds,
    follows_from_a_peer,
    is_counted_with_a_peer,
    waits_for_peers,
)
from lora_operator.views.jobs import is_ending, suspension_of
from lora_operator.views.model import PodView
from lora_operator.views.pods import condition_of, was_disrupted, was_short_of_something, was_shut_down
from lora_operator.views.wording import block_of, integer_of
from lora_trainer.contract.exit_codes import FINAL
from lora_trainer.contract.reasons import Reason

# As many as the definition admits. With 36 characters each they are some 10 KB of a status.
MOST_COUNTED = 256
_LARGEST = 2**31 - 1
_BEGINNING = datetime.min.replace(tzinfo=UTC)


class Cause(enum.StrEnum):
    """Why a pod ended early; each is a field of `status.retries`."""

    PREEMPTED = "preempted"
    OUT_OF_MEMORY = "outOfMemory"
    NODE_LOST = "nodeLost"
    ERROR = "error"


# Reasons of the condition DisruptionTarget for a node that is gone; all others, such as PreemptionByScheduler and
# EvictionByEvictionAPI, take a pod away for the sake of others.
_OF_A_LOST_NODE = frozenset({"DeletionByTaintManager", "DeletionByPodGC"})
_COUNTING = (Cause.ERROR, Cause.OUT_OF_MEMORY)


@dataclass(frozen=True, slots=True, kw_only=True)
class Retries:
    """Pods by cause. `counted` are the uids of the last `MOST_COUNTED` that are in these numbers, or were found to
    belong to none, in the order in which they were counted."""

    counts: Mapping[Cause, int] = field(default_factory=dict)
    counted: tuple[str, ...] = ()

    def of(self, cause: Cause) -> int:
        """The number of one cause."""
        return self.counts.get(cause, 0)

    def with_one_more(self, cause: Cause) -> "Retries":
        """After another pod, or another suspension by a queue."""
        return dataclasses.replace(self, counts={**self.counts, cause: min(self.of(cause) + 1, _LARGEST)})

    def used(self, deleted_jobs: int) -> int:
        """What is used up of `maxRetries`."""
        return deleted_jobs + sum(map(self.of, _COUNTING))


def stored_retries(status: Mapping[str, Any]) -> Retries:
    """As a status says it; what is odd reads as absent."""
    block = block_of(status, "retries")
    counts = {cause: _number(block.get(cause.value)) for cause in Cause}
    counted = block.get("counted")
    uids = [uid for uid in counted if isinstance(uid, str)] if isinstance(counted, list) else []
    return Retries(counts=counts, counted=tuple(uids[-MOST_COUNTED:]))


def retries_block(retries: Retries) -> dict[str, Any]:
    """The block of the status; empty where no pod ended early."""
    numbers = {cause.value: retries.of(cause) for cause in Cause}
    if not any(numbers.values()) and not retries.counted:
        return {}
    return {**numbers, **({"counted": list(retries.counted)} if retries.counted else {})}


def count_ends(before: Retries, rounds: Rounds) -> Retries:
    """With the pods that failed since, of those that a Job counts."""
    counted, forgotten_before = set(before.counted), _forgotten_before(before, rounds)
    retries = before
    done: list[str] = []
    for end in rounds.counted_by_a_job():
        pod = end.pod
        if pod.uid in counted or not pod.uid or len(pod.uid) > 64 or pod.created_at < forgotten_before:
            continue
        cause = cause_of(end, rounds)
        peers = rounds.peers(end) if cause is not None else []
        if cause is None or waits_for_peers(end, peers):
            continue
        if not follows_from_a_peer(end, peers) and not is_counted_with_a_peer(end, peers, counted):
            retries = retries.with_one_more(cause)
        counted.add(pod.uid)
        done.append(pod.uid)
    if not done:
        return before
    return dataclasses.replace(retries, counted=_last((*before.counted, *done), seen={end.pod.uid for end in rounds}))


def _forgotten_before(before: Retries, rounds: Rounds) -> datetime:
    """The creation before which a pod whose uid is not kept may have been counted all the same.

    Pods are counted in the order in which they were made. A list that is full has lost some of its beginning: what is
    older than a pod of its first half is one of those, and not counted twice. That half is of earlier rounds than the
    present one, however many nodes that has, and so says nothing of what ends now.
    """
    if len(before.counted) < MOST_COUNTED:
        return _BEGINNING
    kept = set(before.counted[: MOST_COUNTED // 2])
    return max((end.pod.created_at for end in rounds if end.pod.uid in kept), default=_BEGINNING)


def _last(uids: Sequence[str], *, seen: Set[str]) -> tuple[str, ...]:
    """As many of them as the status holds: the newest, and of the others those that are still seen before those that
    are not, newer ones before older.

    One of the newest may be out of sight for a moment, and no creation tells that it was counted.
    """
    excess = len(uids) - MOST_COUNTED
    if excess <= 0:
        return tuple(uids)
    older = uids[: -MOST_COUNTED // 2]
    dropped = set(sorted(older, key=lambda uid: uid in seen)[:excess])
    return tuple(uid for uid in uids if uid not in dropped)


def cause_of(end: PodEnd, rounds: Rounds) -> Cause | None:
    """Why a pod ended early; None for one that lives, did its work, failed for good, or was stopped with its Job.

    `rounds` are all pods of the run that are known.
    """
    pod, failure = end.pod, end.failure
    if failure is None or pod.trainer.exit_code in FINAL:
        return None
    if was_disrupted(pod):
        return _cause_of_a_disruption(pod)
    if failure.reason is Reason.OOM_KILLED:
        return Cause.OUT_OF_MEMORY
    if failure.reason is Reason.NODE_LOST:
        return Cause.NODE_LOST
    if pod.deleting and (failure.reason is Reason.EVICTED or pod.trainer.exit_code is None):
        return None if _stopped_with_its_job(pod, rounds) else Cause.PREEMPTED
    return Cause.ERROR


def _cause_of_a_disruption(pod: PodView) -> Cause:
    # A new pod may meet the same on that node: it is an error, whose number is bounded.
    if was_short_of_something(pod):
        return Cause.ERROR
    lost = condition_of(pod, "DisruptionTarget").reason in _OF_A_LOST_NODE or was_shut_down(pod)
    return Cause.NODE_LOST if lost else Cause.PREEMPTED


def _stopped_with_its_job(pod: PodView, rounds: Rounds) -> bool:
    """Whether the pod was stopped because its Job was suspended, ended or deleted."""
    job = rounds.job_of(pod)
    if job is None or job.deleting or job.suspended or suspension_of(job) is not None or is_ending(job):
        return True
    # The Job controller stops the pods of the other nodes before it writes that the Job has met its end.
    if rounds.are_to_end(pod.job_uid):
        return True
    # It is of a time before the last suspension.
    return job.started_at is not None and pod.created_at < job.started_at


def _number(value: object) -> int:
    number = integer_of(value)
    return number if number is not None and 0 <= number <= _LARGEST else 0
