"""What is used up of `maxRetries`. The Job is the book: its controller counts each end of a pod once."""

import dataclasses
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from lora_operator.views.conditions import Finding
from lora_operator.views.jobs import is_ending
from lora_operator.views.model import JobView, PodView
from lora_operator.views.names import TRAIN
from lora_operator.views.pods import failure_of, ignored_by_job, newest_first, was_short_of_something
from lora_operator.views.stored import Stored
from lora_operator.views.wording import integer_of
from lora_trainer.contract.reasons import Reason

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
    pods = tuple(pods)
    seen = [
        _used_by(job, [pod for pod in pods if pod.job_uid == job.uid], nodes if job.stage == TRAIN else 1)
        for job in jobs
    ]
    used = max(_number(stored.get("used")), deletions, *seen, 0)
    return Retries(used=used, preempted=_number(stored.get("preempted")))


def retries_block(retries: Retries) -> dict[str, Any]:
    """The block of the status; empty where no pod ended early."""
    return {key: n for key, n in (("used", retries.used), ("preempted", retries.preempted)) if n}


def with_preemption(retries: Retries, state: Finding, stored: Stored) -> Retries:
    """With one more, where the run has just been taken away: what begins and ends unseen is not counted."""
    taken = state.reason in _TAKEN_AWAY and stored.state not in _TAKEN_AWAY
    return dataclasses.replace(retries, preempted=min(retries.preempted + taken, _LARGEST))


def _used_by(job: JobView, pods: Iterable[PodView], nodes: int) -> int:
    """What is used up with this Job. One that is ending counts its living pods as failed, so it says nothing new.

    Of several nodes the Job counts all failures. The annotation of each node's newest pod tells those of that node
    (`batch.kubernetes.io/job-index-failure-count`; pkg/controller/job/indexed_job_utils.go of Kubernetes 1.34).
    """
    if is_ending(job) or not job.uid:
        return job.retries_before
    if nodes == 1:
        return job.retries_before + job.failed + sum(map(_is_left_out, pods))
    of_node: dict[int, list[PodView]] = {}
    for pod in newest_first(pods):
        of_node.setdefault(pod.index, []).append(pod)
    by_node = [
        of[0].failures_before
        + (failure_of(of[0]) is not None and not ignored_by_job(of[0]))
        + sum(map(_is_left_out, of))
        for of in of_node.values()
    ]
    return job.retries_before + max(math.ceil(job.failed / nodes), *by_node, 0)


def _is_left_out(pod: PodView) -> bool:
    """Whether the Job leaves out an end that may come again without bound: a new pod there may want as much."""
    return was_short_of_something(pod) and ignored_by_job(pod)


def _number(value: object) -> int:
    number = integer_of(value)
    return number if number is not None and 0 <= number <= _LARGEST else 0
