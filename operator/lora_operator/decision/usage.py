"""What a run's GPUs worked for, and the steps that were lost: counted when it is certain, and kept in the status.

Time of a pod that trains is useful up to the last checkpoint, or to its end where the run succeeded; the rest of a pod
that ended has to be done again. Each moment counts once: what lies before `counted_until` is in the numbers already,
whenever and however often a pod is looked at. Of several nodes, the first one's pod counts for all.
"""

import enum
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any

from lora_operator.decision.case import Case
from lora_operator.decision.proof import Verdict, claims_success
from lora_operator.decision.retries import Cause, cause_of
from lora_operator.decision.rounds import PodEnd
from lora_operator.views.model import PodView
from lora_operator.views.names import TRAIN
from lora_operator.views.pods import condition_of, has_ended, summary_of
from lora_operator.views.wording import block_of, instant, integer_of, parse_instant
from lora_trainer.contract.exit_codes import FINAL

LARGEST = 2**53


class Loss(enum.StrEnum):
    """Why steps were lost; each is a field of `status.usage.lostSteps`. The first four are those of retries."""

    PREEMPTED = Cause.PREEMPTED.value
    OUT_OF_MEMORY = Cause.OUT_OF_MEMORY.value
    NODE_LOST = Cause.NODE_LOST.value
    ERROR = Cause.ERROR.value
    FAILED = "failed"
    STOPPED = "stopped"


@dataclass(frozen=True, slots=True, kw_only=True)
class Usage:
    """GPU seconds and steps of a run over all its pods, up to `counted_until`."""

    useful_gpu_s: int = 0
    wasted_gpu_s: int = 0
    lost_steps: Mapping[Loss, int] = field(default_factory=dict)
    counted_until: datetime | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class End:
    """That of the run: whether it succeeded, and when it was over."""

    succeeded: bool
    at: datetime


def stored_usage(status: Mapping[str, Any]) -> Usage:
    """As a status says it; what is odd reads as absent."""
    block = block_of(status, "usage")
    lost = block_of(block, "lostSteps")
    return Usage(
        useful_gpu_s=_number(block.get("usefulGpuSeconds")),
        wasted_gpu_s=_number(block.get("wastedGpuSeconds")),
        lost_steps={loss: number for loss in Loss if (number := _number(lost.get(loss.value)))},
        counted_until=parse_instant(block.get("countedUntil")),
    )


def usage_block(usage: Usage) -> dict[str, Any]:
    """The block of the status; empty before anything is certain."""
    if usage.counted_until is None:
        return {}
    parts = {
        "usefulGpuSeconds": usage.useful_gpu_s,
        "wastedGpuSeconds": usage.wasted_gpu_s,
        "lostSteps": {loss.value: steps for loss, steps in usage.lost_steps.items()},
        "countedUntil": instant(usage.counted_until),
    }
    return {key: part for key, part in parts.items() if part}


def count_usage(case: Case, progress: Mapping[str, Any], verdict: Verdict | None) -> Usage:
    """That of a run, up to date; `progress` is the block of its status, `verdict` that of a run that ends now."""
    pods, pod = case.observed.pods, case.request.pod
    over = min(verdict.finding.since or case.now, case.now) if verdict else case.now
    return follow_usage(
        stored_usage(case.finetune.status),
        pods,
        progress,
        gpus=pod.gpus * pod.nodes,
        cause_of=lambda ended: cause_of(PodEnd(ended), case.rounds),
        end=End(succeeded=verdict.succeeded, at=over) if verdict else None,
    )


def follow_usage(
    before: Usage,
    pods: Iterable[PodView],
    progress: Mapping[str, Any],
    *,
    gpus: int,
    cause_of: Callable[[PodView], Cause | None],
    end: End | None,
) -> Usage:
    """With what has become certain since. `gpus` are those of all nodes together, `progress` is the block of the
    status, `end` that of the run once it has one."""
    usage = before
    began = [(pod.trainer.started_at, pod) for pod in pods if pod.stage == TRAIN and pod.index == 0]
    in_turn = sorted(((at, pod) for at, pod in began if at), key=lambda pair: (pair[0], pair[1].name))
    for number, (started_at, pod) in enumerate(in_turn):
        later = number + 1 < len(in_turn)
        said = _said(progress, before=in_turn[number + 1][0] if later else None)
        usage = _with_checkpoint(usage, pod, started_at, said, gpus)
        ended_at = _ended_at(pod, end)
        start = _start(usage, started_at)
        if ended_at is None or ended_at <= start or (end is None and claims_success(pod)):
            continue  # nothing is certain yet, or all is counted
        usage = _with_end(usage, pod, said, start=start, ended_at=ended_at, gpus=gpus, cause_of=cause_of, end=end)
    return usage


@dataclass(frozen=True, slots=True, kw_only=True)
class _Said:
    """What was reported, and when: the step reached, and the last checkpoint."""

    step: int = 0
    at: datetime | None = None
    saved_step: int = 0
    saved_at: datetime | None = None


def _said(progress: Mapping[str, Any], before: datetime | None) -> _Said:
    """By a pod in whose place another began `before`, to which everything later belongs; None for the last pod."""
    at, saved_at = parse_instant(progress.get("lastUpdateTime")), parse_instant(progress.get("checkpointTime"))
    ours = before is None or (at is not None and at < before)
    saved_by_us = before is None or (saved_at is not None and saved_at < before)
    return _Said(
        step=_number(progress.get("step")) if ours else 0,
        at=at if ours else None,
        saved_step=_number(progress.get("checkpointStep")) if saved_by_us else 0,
        saved_at=saved_at if saved_by_us else None,
    )


def _start(usage: Usage, started_at: datetime) -> datetime:
    return max(started_at, usage.counted_until or started_at)


def _ended_at(pod: PodView, end: End | None) -> datetime | None:
    """None for a pod that goes on, and for one of which nobody knows when it ended."""
    if not has_ended(pod):
        return end.at if end else None
    return pod.trainer.finished_at or condition_of(pod, "DisruptionTarget").since or condition_of(pod, "Ready").since


def _with_checkpoint(usage: Usage, pod: PodView, started_at: datetime, said: _Said, gpus: int) -> Usage:
    """Up to the checkpoint that the pod has last reported, all was useful."""
    start = _start(usage, started_at)
    if said.saved_at is None or said.saved_at <= start:
        return usage
    until = min(said.saved_at, pod.trainer.finished_at or said.saved_at)
    return replace(
        usage,
        useful_gpu_s=_sum(usage.useful_gpu_s, gpus * _seconds(start, until)),
        counted_until=max(until, start),
    )


def _with_end(
    usage: Usage,
    pod: PodView,
    said: _Said,
    *,
    start: datetime,
    ended_at: datetime,
    gpus: int,
    cause_of: Callable[[PodView], Cause | None],
    end: End | None,
) -> Usage:
    """A pod's last stretch. Its summary may know of a later checkpoint than it was asked for: time is divided as steps
    are."""
    seconds = gpus * _seconds(start, ended_at)
    succeeded = end is not None and end.succeeded and claims_success(pod)
    known, summary = said.saved_step, summary_of(pod)
    saved = max(known, summary.checkpoint.step if summary and summary.checkpoint else 0)
    reached = said.step if said.at is not None and said.at >= start else 0
    lost = 0 if succeeded else max(0, reached - saved)
    useful = seconds if succeeded else seconds * (saved - known) // max(1, saved - known + lost)
    steps = dict(usage.lost_steps)
    if lost:
        cause = _loss(pod, cause_of(pod), end)
        steps[cause] = _sum(steps.get(cause, 0), lost)
    return Usage(
        useful_gpu_s=_sum(usage.useful_gpu_s, useful),
        wasted_gpu_s=_sum(usage.wasted_gpu_s, seconds - useful),
        lost_steps=steps,
        counted_until=ended_at,
    )


def _loss(pod: PodView, cause: Cause | None, end: End | None) -> Loss:
    if cause is not None:
        return Loss(cause.value)
    return Loss.FAILED if end is not None or pod.trainer.exit_code in FINAL else Loss.STOPPED


def _seconds(start: datetime, end: datetime) -> int:
    return max(0, int((end - start).total_seconds()))


def _sum(number: int, more: int) -> int:
    return min(number + more, LARGEST)


def _number(value: object) -> int:
    return min(max(integer_of(value) or 0, 0), LARGEST)
