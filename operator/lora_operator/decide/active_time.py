"""How long a run has been active, over all its Jobs: what `activeDeadlineSeconds` limits.

Kubernetes counts a Job's time from its start, anew after each suspension and for each Job. Here every period in which a
Job was active is added up once, by the times that the cluster itself wrote down, whenever the operator looks.
"""

import dataclasses
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from lora_operator.model.jobs import ending_of, suspension_of
from lora_operator.model.objects import JobView, PodView
from lora_operator.model.pods import has_ended
from lora_operator.model.stored import Stored
from lora_operator.model.wording import instant

_LARGEST_S = 2**53


@dataclass(frozen=True, slots=True, kw_only=True)
class ActiveTime:
    """`run_s` seconds in periods that have ended, the last one at `active_until`; the present one began at
    `active_since`, None where the run is suspended, in a queue or without a Job."""

    run_s: int = 0
    active_since: datetime | None = None
    active_until: datetime | None = None

    def ended_at(self, moment: datetime) -> "ActiveTime":
        """With the present period closed, where there is one."""
        if self.active_since is None:
            return self
        seconds = max(0, int((moment - self.active_since).total_seconds()))
        return ActiveTime(run_s=min(self.run_s + seconds, _LARGEST_S), active_until=max(moment, self.active_since))


def time_block(spent: ActiveTime) -> dict[str, Any]:
    """The fields of the status; none for a run that was never active."""
    times = {"activeSince": spent.active_since, "activeUntil": spent.active_until}
    block: dict[str, Any] = {"runSeconds": spent.run_s} if spent.run_s or spent.active_until else {}
    return block | {key: instant(moment) for key, moment in times.items() if moment is not None}


def stored_time(stored: Stored) -> ActiveTime:
    """As the status says it."""
    return ActiveTime(run_s=stored.run_s, active_since=stored.active_since, active_until=stored.active_until)


def follow_time(before: ActiveTime, jobs: Iterable[JobView], pods: Iterable[PodView], now: datetime) -> ActiveTime:
    """The time spent, given all Jobs of the run that are there and their pods."""
    jobs, pods = tuple(jobs), tuple(pods)
    periods = sorted(filter(None, map(_period, jobs)), key=lambda period: period.start)
    spent = before
    if before.active_since is not None:
        known = any(period.covers(before.active_since) for period in periods)
        closed = dataclasses.replace(before, active_since=None)
        spent = closed if known else _close_unseen(before, jobs, pods, periods, now)
    for period in periods:
        # What is before the end of the last period has been counted, even if a stale cache shows it again.
        start = max(period.start, spent.active_until or period.start)
        if period.end is None:
            return dataclasses.replace(spent, active_since=start)
        if period.end > start:
            spent = dataclasses.replace(spent, active_since=start).ended_at(period.end)
    return spent


@dataclass(frozen=True, slots=True, kw_only=True)
class _Period:
    """In which a Job was active; `end` is None while it is."""

    start: datetime
    end: datetime | None

    def covers(self, moment: datetime) -> bool:
        """Whether the Job was active then."""
        return self.start <= moment and (self.end is None or moment <= self.end)


def _period(job: JobView) -> _Period | None:
    if job.started_at is None:
        return None
    ended = ending_of(job)
    stopped = ended or suspension_of(job)
    if stopped is None:
        return _Period(start=job.started_at, end=None)
    completed = job.completed_at if ended else None
    return _Period(start=job.started_at, end=completed or stopped.since or job.started_at)


def _close_unseen(
    spent: ActiveTime, jobs: Iterable[JobView], pods: Iterable[PodView], periods: Iterable[_Period], now: datetime
) -> ActiveTime:
    """The end of a period whose Job does not say it: it was deleted, or goes on already, or its queue reset its start.

    What nobody knows counts in favour of the run. A pod's end is by its node's clock, which may be ahead.
    """
    since = spent.active_since
    if since is None:
        return spent
    known = {job.uid for job in jobs}
    if any(pod.job_uid not in known and not has_ended(pod) for pod in pods):
        return spent  # the pod of a deleted Job still runs
    if any(job.suspended and job.started_at is None and suspension_of(job) is None for job in jobs):
        return spent  # Kueue takes the start away before the Job says when it was suspended
    stops = [c.since for c in map(suspension_of, jobs) if c is not None and c.since is not None]
    ends = (*stops, *(pod.trainer.finished_at for pod in pods if pod.trainer.finished_at))
    end = max(ends, default=since)
    later = [period.start for period in periods if period.start > since]
    return spent.ended_at(min([end, now, *later]))
