"""How long a run has been active, over suspensions, deletions and the preflight."""

from datetime import datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.unit.builders import NOW, condition_object, ended_pod, finished_job, make_job, minutes_ago, running_pod

from lora_operator.decide.active_time import ActiveTime, follow_time, stored_time, time_block
from lora_operator.model.objects import JobView
from lora_operator.model.stored import read_stored
from lora_operator.model.wording import instant


def at(minutes: float) -> datetime:
    """That many minutes after an hour before `NOW`."""
    return minutes_ago(60 - minutes)


def job(started: float | None, *, suspended: float | None = None, **changes: Any) -> JobView:
    """A Job that started so many minutes after the hour, and is suspended since."""
    conditions = [] if suspended is None else [condition_object("Suspended", since=at(suspended))]
    start = {} if started is None else {"startTime": instant(at(started))}
    return make_job(status={"startTime": None, **start, "conditions": conditions}, **changes)


def spent(run_s: int = 0, since: float | None = None, until: float | None = None) -> ActiveTime:
    """What a status tells."""
    return ActiveTime(
        run_s=run_s,
        active_since=None if since is None else at(since),
        active_until=None if until is None else at(until),
    )


BEGUN = spent(since=2)
HELD = {"suspend": True}
CASES = {
    "a Job that has not started": (spent(), (job(None),), (), spent()),
    "a Job that has started": (spent(), (job(2),), (), BEGUN),
    "the same Job later": (BEGUN, (job(2),), (), BEGUN),
    "a suspension": (BEGUN, (job(2, suspended=5),), (), spent(180, until=5)),
    "the same suspension later": (spent(180, until=5), (job(2, suspended=5),), (), spent(180, until=5)),
    "a suspension whose start was never seen": (spent(), (job(2, suspended=5),), (), spent(180, until=5)),
    "a start that another clock put before the last end": (
        spent(180, since=4, until=5),
        (job(4, suspended=6),),
        (),
        spent(240, until=6),
    ),
    "a suspension by Kueue, which takes the start away at once": (BEGUN, (job(None, spec=HELD),), (), BEGUN),
    "the same a moment later, when the Job says since when": (
        BEGUN,
        (job(None, suspended=5, spec=HELD),),
        (),
        spent(180, until=5),
    ),
    "an old view of a period that is over": (spent(180, until=5), (job(2),), (), spent(180, since=5, until=5)),
    "the present view after that": (spent(180, since=5, until=5), (job(2, suspended=5),), (), spent(180, until=5)),
    "a resumption": (spent(180, until=5), (job(9),), (), spent(180, since=9, until=5)),
    "a suspension after a resumption": (
        spent(180, since=9, until=5),
        (job(9, suspended=10),),
        (),
        spent(240, until=10),
    ),
    "a suspension and a resumption that were slept over, with the pod's end": (
        BEGUN,
        (job(20),),
        (ended_pod(143, created_at=at(3)),),
        # It ended eleven minutes before NOW, which is after the resumption: so until then at most.
        spent(18 * 60, since=20, until=20),
    ),
    "a suspension and a resumption that were slept over, without a trace": (
        BEGUN,
        (job(20),),
        (),
        spent(0, since=20, until=2),
    ),
    "a queue that took back the Job's start": (BEGUN, (job(None, suspended=7),), (), spent(300, until=7)),
    "a deleted Job whose pod lives on": (BEGUN, (), (running_pod(created_at=at(3)),), BEGUN),
    "a deleted Job whose pod has ended": (BEGUN, (), (ended_pod(143, created_at=at(3)),), spent(47 * 60, until=49)),
    "a deleted Job whose pod has ended, by the clock of a node that is ahead": (
        BEGUN,
        (),
        (ended_pod(143, created_at=at(3), ended_at=at(240)),),
        spent(58 * 60, until=60),
    ),
    "a deleted Job without a trace": (BEGUN, (), (), spent(0, until=2)),
    "a Job in the place of a deleted one": (
        spent(180, until=5),
        (job(8, attempt=2),),
        (),
        spent(180, since=8, until=5),
    ),
    "a Job that has ended": (BEGUN, (finished_job("Failed"),), (), spent(48 * 60, until=50)),
    "a preflight that is over": (
        spent(since=2),
        (finished_job(stage="preflight"), job(None)),
        (),
        spent(48 * 60, until=50),
    ),
    "a preflight that is over, and the training after it": (
        spent(since=2),
        (finished_job(stage="preflight"), job(51)),
        (),
        spent(48 * 60, since=51, until=50),
    ),
    "both, slept over": (spent(), (finished_job(stage="preflight"), job(51)), (), spent(48 * 60, since=51, until=50)),
}


@pytest.mark.parametrize(("before", "jobs", "pods", "after"), CASES.values(), ids=CASES)
def test_each_period_counts_once(
    before: ActiveTime, jobs: tuple[JobView, ...], pods: tuple[Any, ...], after: ActiveTime
) -> None:
    """By the cluster's own times, and the same when it is looked at again."""
    found = follow_time(before, jobs, pods, NOW)
    assert found == after
    assert follow_time(found, jobs, pods, NOW) == after
    assert stored_time(read_stored(time_block(found))) == after


def test_the_end_of_a_run_closes_its_period() -> None:
    """And only an open one."""
    assert spent(60, since=5, until=1).ended_at(at(7)) == spent(180, until=7)
    assert spent(60, until=1).ended_at(at(7)) == spent(60, until=1)
    assert spent(60, since=5, until=1).ended_at(at(3)) == spent(60, until=5)


@pytest.mark.parametrize(
    "status", [{}, {"runSeconds": "many"}, {"runSeconds": True}, {"runSeconds": -5}, {"activeSince": "yesterday"}]
)
def test_an_odd_status_reads_as_nothing_spent(status: dict[str, Any]) -> None:
    """Foreign writers are no reason to fail."""
    assert stored_time(read_stored(status)) == ActiveTime()
    assert time_block(ActiveTime()) == {}


@given(st.lists(st.tuples(st.integers(1, 300), st.integers(1, 300), st.booleans()), max_size=8))
def test_the_sum_does_not_depend_on_when_the_operator_looks(periods: list[tuple[int, int, bool]]) -> None:
    """A Job that is suspended and resumed; the operator sees every suspension, but not always what came before it."""
    moment, total, status = NOW, 0, ActiveTime()
    for active_s, held_s, seen in periods:
        start = moment
        going = make_job(status={"startTime": instant(start)})
        if seen:
            status = follow_time(status, (going,), (), NOW)
        moment += timedelta(seconds=active_s)
        total += active_s
        held = make_job(
            status={"startTime": instant(start), "conditions": [condition_object("Suspended", since=moment)]}
        )
        status = follow_time(status, (held,), (), NOW)
        status = stored_time(read_stored(time_block(status)))
        assert (status.run_s, status.active_since) == (total, None)
        moment += timedelta(seconds=held_s)
