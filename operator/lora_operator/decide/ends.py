"""What is used up of `maxRetries`. The Job is the book: its controller counts each end of a pod once, whoever looks.

Of one pod at a time the count is `status.failed`. Of pods that train together each index hands its own on to its next
pod, as an annotation, also where the failed one is gone; the Job's lacks the last failed pod of each index until
another has that (pkg/controller/job of Kubernetes 1.34, which `tests/component/test_job_controller.py` asks):

    used = before the Job + max(ceil(status.failed / nodes), most of any index)

That is never too high, and too low where nodes fail in turns after a suspension, which takes annotations with it. Pods
that stop with their Job are in neither: a suspension takes them out of the book, and a Job that fails for another
reason than its failures counts those that still live, and is not asked any more.
"""

import dataclasses
import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from lora_operator.model.conditions import StateReason
from lora_operator.model.jobs import failing_of
from lora_operator.model.names import TRAIN
from lora_operator.model.objects import JobView, PodView
from lora_operator.model.pods import evicted_by_node_pressure, failure_of, ignored_by_job, is_done, was_disrupted
from lora_operator.model.stored import Stored
from lora_operator.model.wording import integer_of
from lora_trainer.spec.exit_codes import FINAL
from lora_trainer.spec.reasons import Reason

_LARGEST = 2**31 - 1
_TAKEN_AWAY = frozenset({Reason.PREEMPTED, Reason.EVICTED})


@dataclass(frozen=True, slots=True, kw_only=True)
class Retries:
    """`used` is what counts against `maxRetries`; `preempted` how often the run was taken away, at least."""

    used: int = 0
    preempted: int = 0


def count_ends(
    stored: Mapping[str, Any], jobs: Iterable[JobView], pods: Iterable[PodView], *, nodes: int, deletions: int
) -> Retries:
    """With what the run's Jobs, those that are gone included, and their pods say; each deletion of a Job is a retry."""
    of_job = defaultdict[str, list[PodView]](list)
    for pod in pods:
        if pod.job_uid:
            of_job[pod.job_uid].append(pod)
    seen = [
        job.retries_before + failures_of_job(job, of_job.get(job.uid, ()), nodes if job.stage == TRAIN else 1)
        for job in jobs
    ]
    used = max(_number(stored.get("used")), deletions, *seen, 0)
    return Retries(used=min(used, _LARGEST), preempted=_number(stored.get("preempted")))


def retries_block(retries: Retries) -> dict[str, Any]:
    """The block of the status; empty where no pod ended early."""
    return {key: n for key, n in (("used", retries.used), ("preempted", retries.preempted)) if n}


def with_preemption(retries: Retries, state: StateReason, stored: Stored) -> Retries:
    """With one more, where the run has just been taken away: what begins and ends unseen is not counted."""
    taken = state.reason in _TAKEN_AWAY and stored.state not in _TAKEN_AWAY
    return dataclasses.replace(retries, preempted=min(retries.preempted + taken, _LARGEST))


def failures_of_job(job: JobView, pods: Sequence[PodView], nodes: int) -> int:
    """How often pods of this Job, which has so many at a time, failed: those of all nodes in one round as one."""
    ending = failing_of(job)
    if ending is not None and ending.reason != "BackoffLimitExceeded":
        return 0
    of_index = defaultdict[int, list[PodView]](list)
    for pod in pods:
        if pod.index < nodes:
            of_index[pod.index].append(pod)
    done_at = max((pod.created_at for pod in pods if is_done(pod)), default=None) if nodes > 1 else None
    of_indexes = [_failures_of_index(job, own, done_at, by_index=nodes > 1) for own in of_index.values()]
    return max(math.ceil(job.failed / nodes), *of_indexes, 0)


def _failures_of_index(job: JobView, pods: Sequence[PodView], done_at: datetime | None, *, by_index: bool) -> int:
    """What the Job counts, and ends that it ignores and that may come again without bound: for want of memory or disk
    on a node, as a new pod may want as much, and since the pod waits for a node that is done, and comes no more."""
    if by_index:
        counted = max(pod.failures_before + _fails(pod) for pod in pods)
    else:
        counted = max(job.failed, sum(map(_fails, pods)))
    ignored = [pod for pod in pods if ignored_by_job(pod) and failure_of(pod) is not None]
    alone = [pod for pod in ignored if done_at and pod.created_at > done_at and not was_disrupted(pod)]
    return counted + sum(map(evicted_by_node_pressure, ignored)) + len(alone)


def _fails(pod: PodView) -> bool:
    """Whether the Job counts this end, or is about to. One that is being deleted may have been stopped with its Job: if
    it counts, the Job says so, or the next pod of its index."""
    final = pod.trainer.exit_code in FINAL
    return failure_of(pod) is not None and not (final or pod.deleting or ignored_by_job(pod))


def _number(value: object) -> int:
    number = integer_of(value)
    return number if number is not None and 0 <= number <= _LARGEST else 0
