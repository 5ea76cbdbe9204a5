"""The parts of the benchmark. Each has a control plane of its own, says what it does, and returns rows of the table."""

import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from benchmarks.scale.connections import Watch
from benchmarks.scale.creation import WARM_UP, create, latencies
from benchmarks.scale.fleet import (
    Ending,
    add_finished,
    ended,
    finetunes,
    finetunes_path,
    finish_one,
    looked_at,
    make_namespaces,
    pods_of_runs,
    running,
)
from benchmarks.scale.machine import MIB, Busy, percentile
from benchmarks.scale.playing import (
    CONTROLLER_RATE,
    Preflights,
    condition_of,
    connections_to,
    failed_job,
    failed_run,
    play,
    running_run,
    server_metrics,
    settle,
)
from benchmarks.scale.processes import Operator, a_control_plane, an_operator, wait_until
from benchmarks.scale.rows import Measure, Row
from benchmarks.scale.server import cpu_s, write_percentile_s

from localcluster.api import Api
from lora_trainer.spec.reasons import Reason

_REST_S = 5
_TEAMS = [f"team-{number}" for number in range(10)]
# Two Jobs and two pods a run: at 5/s the control plane and not the operator would be what is measured.
_LOOKED_AT_A_SECOND = 2
_ENDINGS = (
    Ending(exit_code=70, reason=Reason.NON_FINITE_LOSS),
    Ending(exit_code=65, reason=Reason.DATASET_INVALID),
    Ending(exit_code=71, reason=Reason.CUDA_OUT_OF_MEMORY),
)


def creation(rate: float | None, count: int, wanted: str) -> Row:
    """(a) Creations, until each has its Job; without a preflight, whose pod takes as long as it takes."""
    with a_control_plane() as plane, an_operator(plane.kubeconfig) as operator:
        make_namespaces(plane.api, ["bench", "warm"])
        create(plane.api, finetunes("warm"), [f"run-{number:05}" for number in range(WARM_UP)], 20)
        time.sleep(_REST_S)
        busy, before, looked = Busy(), operator.usage(), operator.looks()
        done = create(plane.api, finetunes("bench"), [f"run-{number:05}" for number in range(count)], rate)
        after, looks = operator.usage(), (operator.looks() - looked) / count
        pace = f"at {rate:g}/s" if rate else "as fast as the API server takes them"
        return Row(
            what=f"apply to Job, {count} {pace}",
            wanted=wanted,
            found=[
                *done.measures(),
                Measure("CPU of the operator", after.cpu_s - before.cpu_s, "s"),
                Measure("passes a run", looks),
            ],
            busy=busy.share(),
        )


def preflights(count: int) -> Iterator[Row]:
    """(h) Creations of runs with a preflight that passes as soon as it has a pod, until each has its training's Job.

    The Job controller makes that pod and counts its end: once at Kubernetes' own rate, and once at a higher one.
    """
    for requests_per_second in (None, CONTROLLER_RATE):
        plane_of = a_control_plane(controller_requests_per_second=requests_per_second)
        with plane_of as plane, an_operator(plane.kubeconfig) as operator:
            make_namespaces(plane.api, ["bench", "warm"])
            create(plane.api, finetunes("warm"), [f"run-{number:05}" for number in range(WARM_UP)], 20)
            time.sleep(_REST_S)
            busy, before, asked = Busy(), operator.usage(), operator.requests()
            with Preflights(plane.api, "bench"):
                names = [f"run-{number:05}" for number in range(count)]
                done = create(plane.api, finetunes("bench", looked_at), names, None)
            after, reads = operator.usage(), operator.requests()["get"] - asked.get("get", 0)
            yield Row(
                what=f"apply to the training's Job, {count:,} as fast as the API server takes them, each with a "
                f"preflight; the controllers' requests: {requests_per_second or '20, the default,'} a second",
                found=[
                    *done.measures(),
                    Measure("CPU of the operator", after.cpu_s - before.cpu_s, "s"),
                    Measure("reads of the operator", reads),
                ],
                busy=busy.share(),
            )


def fleet(finished: int, active: int, rest_s: float) -> Iterator[Row]:
    """(b) A cluster that fills up with finished resources, and then the whole fleet: cold start, memory, rest.

    All have a preflight with Job and pod of its own; the latency is that of the training's Job behind it.
    """
    with a_control_plane(controller_requests_per_second=CONTROLLER_RATE) as plane:
        api = plane.api
        make_namespaces(api, _TEAMS)
        with an_operator(plane.kubeconfig) as operator:
            # An operator asks for its rights by POST, which stores nothing.
            questions = operator.writes()
            like = finish_one(api, _TEAMS[0])
        made, steps = 0, 5
        for step in range(steps):
            target = finished * step // (steps - 1)
            for number, team in enumerate(_TEAMS):
                names = [f"done-{i:05}" for i in range(made, target) if i % len(_TEAMS) == number]
                if names:
                    add_finished(api, like, team, names)
            made = target
            with an_operator(plane.kubeconfig) as operator:
                settle(operator, made)
                count, busy = active // steps, Busy()
                names = [f"wait-{step}-{number:05}" for number in range(count)]
                with Preflights(api, _TEAMS[step]):
                    done = create(api, finetunes(_TEAMS[step], looked_at), names, _LOOKED_AT_A_SECOND)
                settle(operator, made)
                yield Row(
                    what=f"apply to Job at {_LOOKED_AT_A_SECOND}/s among {made + count * (step + 1):,} LoRAFineTunes",
                    found=[
                        *latencies(done.latencies_s),
                        Measure("ready after", operator.ready_s, "s"),
                        Measure("memory", operator.usage().resident_bytes / MIB, "MiB"),
                    ],
                    busy=busy.share(),
                )
        yield from _whole_fleet(plane.kubeconfig, questions, finished, active, rest_s)


def _whole_fleet(kubeconfig: Path, questions: float, finished: int, active: int, rest_s: float) -> Iterator[Row]:
    busy = Busy()
    total = f"{active:,} waiting and {finished:,} finished"
    with an_operator(kubeconfig) as operator:
        settle(operator, finished + active)
        start, cost = operator.writes(), operator.usage()
        yield Row(
            what=f"cold start over {total}",
            wanted="ready <= 15 s, 0 writes",
            found=[
                Measure("ready after", operator.ready_s, "s"),
                Measure("writes", start - questions),
                Measure("CPU", cost.cpu_s, "s"),
            ],
            busy=busy.share(),
        )
        busy, before, first = Busy(), operator.requests(), operator.usage()
        time.sleep(rest_s)
        last, after, share = operator.usage(), operator.requests(), busy.share()
        reads = sum(after.values()) - sum(before.values())
        cpu = 100 * (last.cpu_s - first.cpu_s) / rest_s
        yield Row(
            what=f"idle for {rest_s:.0f} s, {total}",
            wanted="0 writes, <= 1 % of a core",
            found=[
                Measure("writes", operator.writes() - start),
                Measure("CPU", cpu, "% of a core"),
                Measure("requests", reads),
            ],
            busy=share,
        )
        memory = [Measure("idle", last.resident_bytes / MIB, "MiB"), Measure("at most", last.peak_bytes / MIB, "MiB")]
        yield Row(what=f"memory with {total}", wanted="<= 230 MiB", found=memory, busy=share)
        yield _scraped(operator, total, "<= 1.22 s, <= 230 MiB")


def scrape(count: int, wanted: str) -> Row:
    """(g) One scrape of finished runs, whose Jobs and pods are gone."""
    with a_control_plane() as plane:
        make_namespaces(plane.api, _TEAMS[:1])
        with an_operator(plane.kubeconfig):
            like = finish_one(plane.api, _TEAMS[0])
        add_finished(
            plane.api, replace(like, children=[]), _TEAMS[0], [f"done-{number:05}" for number in range(count - 1)]
        )
        with an_operator(plane.kubeconfig) as operator:
            return _scraped(operator, f"{count:,} finished", wanted)


def _scraped(operator: Operator, total: str, wanted: str) -> Row:
    """The second scrape, as the first one also makes what later ones use again."""
    operator.scrape()
    busy = Busy()
    text, plain = _timed_scrape(operator, "identity")
    share = busy.share()
    _, packed = _timed_scrape(operator, "gzip")
    series = sum(not line.startswith(b"#") for line in text.splitlines())
    peak = Measure("memory at most", operator.usage().peak_bytes / MIB, "MiB")
    found = [Measure("series", series), *plain, *packed, peak]
    return Row(what=f"one scrape of /metrics, {total}", wanted=wanted, found=found, busy=share)


def _timed_scrape(operator: Operator, encoding: str) -> tuple[bytes, list[Measure]]:
    """What came, and in what time."""
    begin_s, first = time.monotonic(), operator.usage()
    body = operator.scrape(encoding)
    seconds, last = time.monotonic() - begin_s, operator.usage()
    return body, [
        Measure(f"{encoding}, size", len(body) / 1e6, "MB"),
        Measure(f"{encoding}, time", seconds, "s"),
        Measure(f"{encoding}, CPU", last.cpu_s - first.cpu_s, "s"),
    ]


def mass_failure(count: int) -> list[Row]:
    """(c) Runs that all fail at once."""
    namespace = "bench"
    with a_control_plane(controller_requests_per_second=CONTROLLER_RATE) as plane, an_operator(plane.kubeconfig) as op:
        api = plane.api
        make_namespaces(api, [namespace])
        names, questions = [f"run-{number:05}" for number in range(count)], op.writes()
        server_first_s = cpu_s(server_metrics(api))
        create(api, finetunes(namespace), names, None)
        wait_until(lambda: len(pods_of_runs(api, namespace)) == count, "every run has a pod")
        pods = pods_of_runs(api, namespace)
        with connections_to(api) as connections:
            with Watch(api, finetunes_path(namespace), running_run, names_only=False) as watch:
                play(connections, namespace, {pods[name]: running("127.0.0.1") for name in names})
                watch.wait(count, 300)
            settle(op, 0)
            writes_before, server_before, busy, cost = op.writes(), server_metrics(api), Busy(), op.usage()
            failures = {pods[name]: ended(_ENDINGS[number % len(_ENDINGS)]) for number, name in enumerate(names)}
            with (
                Watch(api, f"/apis/batch/v1/namespaces/{namespace}/jobs", failed_job, names_only=False) as jobs,
                Watch(api, finetunes_path(namespace), failed_run, names_only=False) as runs,
            ):
                begin_s = time.monotonic()
                play(connections, namespace, failures)
                played_s = time.monotonic() - begin_s
                runs.wait(count, 300)
        told_s = max(runs.seen.values()) - begin_s
        lags = [runs.seen[name] - jobs.seen[name] for name in names]
        used, share = op.usage().cpu_s - cost.cpu_s, busy.share()
        p99_s = write_percentile_s(server_before, server_metrics(api), "lorafinetunes", 0.99)
        settle(op, 0)
        server_s = cpu_s(server_metrics(api)) - server_first_s
        found = _failures(api, namespace, names)
        for_all, for_the_end = ((op.writes() - earlier) / count for earlier in (questions, writes_before))
        return [
            Row(
                what=f"mass failure of {count:,} runs",
                wanted="all Failed with the right reason",
                found=[
                    Measure("runs with the right reason", found.right),
                    Measure("last after", told_s, "s"),
                    Measure("of it to play the failures", played_s, "s"),
                    Measure("Job failed to run Failed, p50", percentile(lags, 0.5), "s"),
                    Measure("Job failed to run Failed, p99", percentile(lags, 0.99), "s"),
                    Measure("CPU of the operator", used, "s"),
                    Measure("status writes, p99", p99_s, "s"),
                ],
                busy=share,
            ),
            Row(
                what="writes of a whole run beside progress, Events included",
                wanted="<= 8",
                found=[
                    Measure("from creation to Failed", for_all),
                    Measure("of them for the end", for_the_end),
                    Measure("Events", found.events / count),
                ],
                busy=share,
            ),
            Row(
                what="CPU of the API server for a whole run, its Job, pod and all watches included",
                found=[Measure("CPU", 1000 * server_s / count, "ms")],
                busy=share,
            ),
        ]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Failures:
    right: int
    events: int


def _failures(api: Api, namespace: str, names: list[str]) -> _Failures:
    items = api.get(f"{finetunes_path(namespace)}")["items"]
    seen = {item["metadata"]["name"]: condition_of(item, "Failed").get("reason") for item in items}
    wanted = {name: _ENDINGS[number % len(_ENDINGS)].reason.value for number, name in enumerate(names)}
    query = "fieldSelector=involvedObject.kind%3DLoRAFineTune"
    events = api.get(f"/api/v1/namespaces/{namespace}/events?{query}")["items"]
    return _Failures(right=sum(seen[name] == wanted[name] for name in names), events=len(events))
