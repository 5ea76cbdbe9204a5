"""Faults of the API server and of the way to it: every run ends as it would have, and nothing is made twice."""

import time
from collections import defaultdict
from datetime import UTC, datetime, timedelta
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

import pytest
from tests.component.documents import succeeded
from tests.component.operator_process import OperatorProcess
from tests.component.patience import eventually
from tests.component.stage import Stage, gone
from tests.faults.calls import Call
from tests.faults.hostile_pods import answer, played_pods, progress
from tests.faults.injections import (
    Answer,
    Cut,
    Delay,
    Freeze,
    HalfDocument,
    LostAnswer,
    RequestFault,
    Reset,
    Rule,
    StreamFault,
    WatchError,
)
from tests.faults.kubelet import KeptAlive
from tests.faults.moments import Kept
from tests.faults.one_run import Run, begin
from tests.faults.outage import keep_away, wait_api_server
from tests.faults.seen import Sees, kept, remember, saw
from tests.ports import free_address

from lora_trainer.spec.reasons import Reason

# The metrics of watches follow every second.
METRICS_LAG_S = 3.0
# Generous for a restart of the operator on a busy machine.
SOON_S = 300.0
WATCHED = ("lorafinetunes", "jobs", "pods")
STREAM_FAULTS: tuple[StreamFault, ...] = (
    WatchError(code=410, reason="Expired"),
    WatchError(code=500, reason="InternalError"),
    WatchError(code=403, reason="Forbidden"),
    WatchError(code=429, reason="TooManyRequests"),
    Cut(),
    HalfDocument(),
    Reset(),
)
# An error other than 410, and what is no JSON.
ENDS_KOPF = {fault for fault in STREAM_FAULTS if getattr(fault, "code", None) in (403, 429, 500)} | {HalfDocument()}
REQUEST_FAULTS: tuple[RequestFault, ...] = (
    Answer(code=429, reason="TooManyRequests", retry_after_s=1),
    Answer(code=500, reason="InternalError"),
    Answer(code=403, reason="Forbidden"),
    Reset(),
)


def _uids(objects: list[dict[str, Any]]) -> set[str]:
    return {item["metadata"]["uid"] for item in objects}


@pytest.mark.parametrize(
    "seconds", [5, pytest.param(30, marks=pytest.mark.soak), pytest.param(120, marks=pytest.mark.soak)]
)
def test_an_outage_of_the_api_server_harms_no_run_in_whatever_state(stage: Stage, seconds: float) -> None:
    """Runs that wait, run, are suspended and have ended: afterwards each goes on with the pod that it had."""
    operator = stage.start()
    runs = {name: Run(stage=stage, name=name) for name in ("waits", "runs", "suspended", "ended")}
    for name in runs:
        stage.apply(name, suspend=name == "suspended")
    busy = free_address()
    stage.run_pod(runs["runs"].pod(), ip=busy)
    runs["ended"].running_pod()
    runs["suspended"].wait("Suspended", "True")
    stage.end_pod(runs["ended"].pod(), 0, succeeded())
    runs["ended"].wait("Complete", "True")
    runs["waits"].wait("PodsReady", "False", "VolumeNotReady")
    with played_pods() as pods:
        # What it answers changes at each question, so that there is always something to write.
        steps = count(1)
        pods.play(busy, lambda _, writer: answer(_, writer, body=progress(step=next(steps), total_steps=10**6)))
        runs["runs"].wait_state("Training")
        for run in runs.values():
            run.wait_told()
        before = remember(*runs.values())
        keep_away(stage, seconds)
        wait_api_server(stage)
        # Once the operator has looked at each of them again.
        last = before.finetunes["runs"]["status"]["progress"]["step"]
        eventually(lambda: runs["runs"].status["progress"]["step"] > last, "its progress goes on")
        for name in ("waits", "suspended"):
            runs[name].be_looked_at()
        saw(Sees(nothing=True), since=before)

    saw(Sees(metric='lora_operator_reconcile_total{result="retry"}'), since=before)
    kept(Kept.PODS, before)
    kept(Kept.JOBS, before)
    runs["suspended"].change(suspend=False)
    for name in ("waits", "suspended"):
        runs[name].running_pod()
    kept(Kept.ENDS_WELL, before)
    kept(Kept.VERDICT, before)
    assert kept(Kept.ONE_JOB, before).jobs.keys() == runs.keys()
    assert _uids(stage.objects("jobs")) == _uids(before.all_jobs())
    assert operator.process.poll() is None


def test_an_outage_in_which_the_lease_cannot_be_renewed_ends_the_operator_and_the_next_one_waits(
    stage: Stage,
) -> None:
    """The next one is not ready until the API server answers, and goes on with the pod that is there."""
    proxy = stage.proxy()
    short: dict[str, Any] = {"leaseDurationSeconds": 6, "renewDeadlineSeconds": 5, "retryPeriodSeconds": 0.3}
    first = stage.start(proxy=proxy, **short)
    run = begin(stage, "outlasts")
    run.running_pod()
    run.wait_told()
    before = remember(run)
    away = [proxy.add(Rule(fault=Reset(), what=what)) for what in ("*", "* leases")]
    proxy.inject(Reset())
    assert first.end_by_itself() == 1
    saw(Sees(log=("could not be renewed for 5 s",)), since=before, text=first.text())
    second = stage.start(proxy=proxy, wait=False, **short)
    eventually(lambda: "waiting for the API server" in second.text(), "the next one waits")
    assert second.get("/readyz")[0] == 503
    for rule in away:
        rule.lift()
    second.wait_ready()
    run.be_looked_at()
    kept(Kept.PODS, before)
    kept(Kept.JOBS, before)
    kept(Kept.ENDS_WELL, before)


def test_a_status_write_whose_answer_is_lost_is_decided_anew(stage: Stage) -> None:
    """The server wrote it and nobody heard: the next write is a conflict with one's own, and the end is the same."""
    proxy = stage.proxy()
    stage.start(proxy=proxy)
    lost = proxy.add(Rule(fault=LostAnswer(), what="update lorafinetunes/status", every=2))
    stage.apply()
    run = Run(stage=stage, name="tone")
    # Three writes are sure, whatever the operator is too late to see in between: it waits, it runs, it is complete.
    run.wait("PodsReady", "False", Reason.VOLUME_NOT_READY)
    stage.run_pod(run.pod())
    run.wait("PodsReady", "True")
    kept(Kept.ENDS_WELL, remember(run))
    assert lost.hits >= 2
    assert len(kept(Kept.ONE_JOB, remember(run)).all_jobs()) == 1


def test_a_job_that_is_deleted_while_its_watch_gets_410_is_made_again(stage: Stage) -> None:
    """The list with which the watch begins anew shows that it is gone, long before the resync would."""
    proxy = stage.proxy()
    stage.start(proxy=proxy)
    stage.apply()
    run = Run(stage=stage, name="tone")
    job = run.job()
    run.pod()
    run.wait("Accepted", "True")
    deaf = [True]
    proxy.lose(lambda call, _: deaf[0] and call.resource == "jobs")
    path = stage.path("jobs", job["metadata"]["name"])
    stage.api.delete(path + "?propagationPolicy=Background")
    eventually(partial(gone, stage.api, path), "the Job is gone")
    expired = partial(proxy.inject, WatchError(code=410, reason="Expired"), "watch jobs")
    # An API server that was started a moment ago may just have ended the first one.
    eventually(expired, "a watch that goes on gets 410")
    deaf[0] = False
    assert run.job(2)["metadata"]["uid"] != job["metadata"]["uid"]
    saw(Sees(says=(job["metadata"]["name"],), event=("Warning", Reason.JOB_RECREATED)), run)
    kept(Kept.ONE_JOB, remember(run))


@pytest.mark.parametrize(
    "kinds",
    [
        ("lorafinetunes", "jobs", "pods"),
        *(pytest.param((kind,), marks=pytest.mark.soak) for kind in ("lorafinetunes", "jobs", "pods")),
    ],
    ids="-".join,
)
def test_whatever_breaks_a_watch_the_operator_hears_again_soon(stage: Stage, kinds: tuple[str, ...]) -> None:
    """In the stream and at its opening, by the same process, but where kopf ends with what its own watch brings."""
    proxy = stage.proxy()
    alive = KeptAlive(stage, proxy=proxy)
    runs: list[Run] = []
    for number, fault in enumerate((*STREAM_FAULTS, *REQUEST_FAULTS)):
        broken, restarts = str(fault), alive.restarts
        rules = []
        if isinstance(fault, StreamFault):
            for kind in kinds:
                # The operator may just be ending, of what was done to the watch before.
                alive.eventually(partial(proxy.inject, fault, f"watch {kind}"), f"a watch of {kind} meets {broken}")
        else:
            for kind in kinds:
                rules.append(proxy.add(Rule(fault=fault, what=f"watch {kind}", times=2)))
                proxy.inject(Cut(), f"watch {kind}")
        run = Run(stage=stage, name=f"tone-{number}")
        runs.append(run)
        stage.apply(run.name)
        alive.eventually(partial(_jobs, run), f"a new resource gets its Job after {broken}", deadline_s=SOON_S)
        stage.end_pod(run.pod(), 0, succeeded())
        complete = partial(_is_complete, run)
        alive.eventually(complete, f"the end of its pod is noticed after {broken}", deadline_s=SOON_S)
        ends_kopf = "lorafinetunes" in kinds and fault in ENDS_KOPF
        assert alive.restarts - restarts <= ends_kopf, alive.operator.text()[-4000:]
        for rule in rules:
            eventually(partial(_has_hit, rule), f"{rule.what} meets {broken}")
            rule.lift()
    assert len(kept(Kept.ONE_JOB, remember(*runs)).all_jobs()) == len(runs)


def test_a_frozen_watch_is_restarted_and_misses_nothing(stage: Stage) -> None:
    """No byte comes: after the patience with a silent watch another one reports what happened, deletions too."""
    proxy = stage.proxy()
    # Long enough for two looks at the metrics before another watch is opened, on a busy machine too.
    operator = stage.start(proxy=proxy, watchInactivitySeconds=20)
    run, other, ending = (Run(stage=stage, name=name) for name in ("tone", "other", "ending"))
    stage.apply(run.name)
    stage.apply(ending.name)
    job = run.job()
    ending.running_pod()
    run.wait("PodsReady", "False", Reason.VOLUME_NOT_READY)
    eventually(lambda: proxy.watching() >= 3, "all is watched")
    _stir(stage, operator)
    proxy.inject(Freeze())
    time.sleep(METRICS_LAG_S)
    frozen = remember(run)
    stage.apply(other.name)
    stage.api.delete(stage.path("jobs", job["metadata"]["name"]) + "?propagationPolicy=Background")
    stage.end_pod(ending.pod(), 0, succeeded())
    time.sleep(METRICS_LAG_S)
    for resource in WATCHED:
        saw(
            Sees(
                metric=f'lora_operator_watch_last_event_timestamp_seconds{{resource="{resource}"}}',
                metric_does="stands still",
            ),
            since=frozen,
        )
    other.job()
    run.job(2)
    ending.wait("Complete", "True")
    for resource in WATCHED:
        saw(
            Sees(
                metric=f'lora_operator_watch_last_event_timestamp_seconds{{resource="{resource}"}}',
                metric_does="goes on",
            ),
            since=frozen,
        )
    kept(Kept.ONE_JOB, remember(run, other, ending))
    assert operator.process.poll() is None


def test_lost_events_change_nothing_about_the_end(stage: Stage) -> None:
    """Every third event of every watch is lost: a short resync brings each run to where it would have come."""
    proxy = stage.proxy()
    numbers: dict[str, count[int]] = defaultdict(count)
    lost: list[str] = []

    def lose(call: Call, event: dict[str, Any]) -> bool:
        if event["type"] == "BOOKMARK" or next(numbers[call.resource]) % 3:
            return False
        lost.append(event["type"])
        return True

    stage.start(proxy=proxy, resyncIntervalSeconds=1)
    proxy.lose(lose)
    runs = [Run(stage=stage, name=f"tone-{number}") for number in range(4)]
    for run in runs:
        stage.apply(run.name)
    runs[0].change(suspend=True)
    runs[0].wait("Suspended", "True")
    stage.wait_held(runs[0].job())
    runs[0].change(suspend=False)
    runs[0].wait("Suspended", "False")
    stage.api.delete(stage.path("jobs", runs[1].job()["metadata"]["name"]) + "?propagationPolicy=Background")
    runs[1].job(2)
    for run in runs:
        run.running_pod()
    kept(Kept.ENDS_WELL, remember(*runs))
    now = kept(Kept.ONE_JOB, remember(*runs))
    assert {name: len(jobs) for name, jobs in now.jobs.items()} == {run.name: 1 for run in runs}
    assert len(lost) >= 10


def test_an_overloaded_api_server_is_given_the_time_that_it_asks_for(stage: Stage) -> None:
    """Every third request is answered with 429, from the start on: all runs end, and nobody comes again too early."""
    proxy = stage.proxy()
    busy = Answer(code=429, reason="TooManyRequests", retry_after_s=1)
    proxy.add(Rule(fault=busy, every=3))
    alive = KeptAlive(stage, proxy=proxy)
    assert alive.restarts == 0
    runs = [Run(stage=stage, name=f"tone-{number}") for number in range(4)]
    for run in runs:
        stage.apply(run.name)
    for run in runs:
        stage.end_pod(run.pod(), 0, succeeded())
    for run in runs:
        alive.eventually(partial(_is_complete, run), f"{run.name} is complete")
    assert alive.restarts == 0
    calls = proxy.made()
    assert len([call for call in calls if call.code == 429]) >= 10
    too_early = [
        (call.what, call.about, later.at_s - call.at_s)
        for number, call in enumerate(calls)
        if call.code == 429
        for later in calls[number + 1 :]
        if _is_again(call, later) and later.at_s - call.at_s < 1.0
    ]
    assert too_early == []
    now = remember(*runs)
    saw(Sees(metric='lora_operator_api_requests_total{code="429"'), runs[0])
    kept(Kept.ENDS_WELL, now)
    assert len(kept(Kept.ONE_JOB, now).all_jobs()) == len(runs)


def _is_again(call: Call, later: Call) -> bool:
    """Whether a request is an earlier one's again: a change of the same object, or a read of the same."""
    if call.mutates:
        return (later.what, later.name) == (call.what, call.name)
    # A watch goes on from another version.
    versions = {"resourceVersion", "timeoutSeconds", "allowWatchBookmarks"}
    asked, again = ({key: value for key, value in one.query.items() if key not in versions} for one in (call, later))
    return (later.method, later.path, again, later.body) == (call.method, call.path, asked, call.body)


@pytest.mark.parametrize("fault", [Answer(code=500, reason="InternalError"), Reset(), Delay(seconds=120)], ids=repr)
def test_without_events_the_conditions_are_right(stage: Stage, fault: RequestFault) -> None:
    """Events that can be neither read nor written, or not in time, hold nothing up."""
    proxy = stage.proxy()
    proxy.add(Rule(fault=fault, what="* events"))
    stage.start(proxy=proxy)
    run, held = Run(stage=stage, name="tone"), Run(stage=stage, name="held")
    stage.apply(run.name)
    stage.apply(held.name)
    stage.wait_pod_state(held.pod(), "ImagePullBackOff", "Back-off pulling image")
    saw(Sees(conditions={"PodsReady": ("False", Reason.IMAGE_PULL_BACK_OFF)}, says=("Back-off pulling image",)), held)
    run.running_pod()
    kept(Kept.ENDS_WELL, remember(run))
    assert len(kept(Kept.ONE_JOB, remember(run, held)).all_jobs()) == 2
    assert proxy.made("list events")
    eventually(lambda: proxy.made("create events"), "one is to be written")
    assert [event for event in stage.objects("events") if event["involvedObject"]["kind"] == "LoRAFineTune"] == []


@pytest.mark.parametrize("skew_hours", [2, -2])
def test_an_operator_whose_clock_is_wrong_fires_no_deadline_and_shows_the_right_time(
    stage: Stage, skew_hours: int
) -> None:
    """Two hours ahead or behind: neither patience nor deadline nor time to live are over, and no age is negative."""
    (library,) = Path("/usr/lib").glob("*/faketime/libfaketime.so.1")
    clock = {"LD_PRELOAD": str(library), "FAKETIME": f"{skew_hours:+}h", "FAKETIME_DONT_FAKE_MONOTONIC": "1"}
    # Without TLS: the certificates of this young control plane are not valid yet two hours ago.
    operator = stage.start(proxy=stage.proxy(), environment=clock)
    run = begin(stage, "tone", pendingTimeoutSeconds=3600, activeDeadlineSeconds=3600, ttlSecondsAfterFinished=3600)
    stage.wait_pod_state(run.pod(), "ImagePullBackOff", "Back-off pulling image")
    run.wait("PodsReady", "False", "ImagePullBackOff")
    run.running_pod()
    eventually(partial(_counts_active_seconds, operator), "its time counts, by the server's clock")
    kept(Kept.ENDS_WELL, remember(run))
    run.be_looked_at(writes=False)
    assert len(kept(Kept.ONE_JOB, remember(run)).all_jobs()) == 1
    times = [run.status["startTime"], run.status["completionTime"]]
    times += [condition["lastTransitionTime"] for condition in run.status["conditions"]]
    now = datetime.now(UTC)
    assert all(timedelta(minutes=-1) < now - datetime.fromisoformat(time) < timedelta(minutes=10) for time in times)
    assert {name: value for name, value in operator.metrics().items() if value < 0} == {}


def _stir(stage: Stage, operator: OperatorProcess) -> None:
    """Have every watch bring something until the metrics say so: none is about to be restarted for its silence then."""
    before, numbers = _last_heard(operator), count()

    def all_heard() -> bool:
        for plural in WATCHED:
            for item in stage.objects(plural):
                marks = {"annotations": {"stirred": str(next(numbers))}}
                stage.api.patch(stage.path(plural, item["metadata"]["name"]), {"metadata": marks})
        now = _last_heard(operator)
        # A time since 1970 differs a little at each look, by as much as the two clocks that it is reckoned from.
        return all(now.get(plural, 0.0) > before.get(plural, 0.0) + 1 for plural in WATCHED)

    eventually(all_heard, "the metrics say that each watch has just brought something")


def _last_heard(operator: OperatorProcess) -> dict[str, float]:
    """When each watch last brought something, by the metrics, which follow after a while."""
    name, metrics = "lora_operator_watch_last_event_timestamp_seconds", operator.metrics()
    return {plural: metrics.get(f'{name}{{resource="{plural}"}}', 0.0) for plural in WATCHED}


def _has_hit(rule: Rule) -> bool:
    return rule.hits > 0


def _counts_active_seconds(operator: OperatorProcess) -> bool:
    shown = [value for series, value in operator.metrics().items() if series.startswith("lorafinetune_active_seconds")]
    return any(1 < value < 600 for value in shown)


def _jobs(run: Run) -> list[dict[str, Any]]:
    return run.jobs


def _is_complete(run: Run) -> bool:
    return bool(run.condition("Complete").get("status") == "True")
