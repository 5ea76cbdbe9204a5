"""Parts about many who share one operator: a thousand trainings that report, and a namespace that means no good."""

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial

from benchmarks.scale.connections import Object, Watch
from benchmarks.scale.creation import WARM_UP, create
from benchmarks.scale.fleet import finetunes, finetunes_path, make_namespaces, pods_of_runs, running, suspended
from benchmarks.scale.machine import MIB, Busy, percentile
from benchmarks.scale.playing import CONTROLLER_RATE, connections_to, play, running_run, server_metrics, settle
from benchmarks.scale.processes import ControlPlane, a_control_plane, an_operator, wait_until
from benchmarks.scale.rows import Measure, Row
from benchmarks.scale.server import cpu_s
from benchmarks.scale.trainers import ANSWERING, SLOW, played_trainers

_RATE = 20
_PROBES = 200
_ANNOTATION = 256 * 1000


def training(count: int, watch_s: float) -> Iterator[Row]:
    """(d) Runs that all train, and report each time that they are asked."""
    namespace = "bench"
    with (
        played_trainers(),
        a_control_plane(controller_requests_per_second=CONTROLLER_RATE) as plane,
        an_operator(plane.kubeconfig) as operator,
    ):
        make_namespaces(plane.api, [namespace])
        create(plane.api, finetunes(namespace), [f"run-{number:05}" for number in range(count)], None)
        _let_run(plane, namespace, count, ANSWERING)
        time.sleep(watch_s / 2)  # until those that began together have drifted apart, as far as they do
        moments: list[float] = []
        with Watch(plane.api, finetunes_path(namespace), partial(_note, moments), names_only=True):
            busy, first, cost, server = Busy(), operator.requests(), operator.usage(), _server_s(plane)
            time.sleep(watch_s)
            last, used, after = operator.requests(), operator.usage(), _server_s(plane)
            share = busy.share()
        statuses = last.get("update", 0.0) - first.get("update", 0.0)
        reads = sum(last.values()) - sum(first.values()) - statuses
        yield Row(
            what=f"{count:,} runs that train, for {watch_s:.0f} s",
            wanted="<= 20 statuses/s",
            found=[
                Measure("statuses", statuses / watch_s, "1/s"),
                Measure("statuses in the fullest second", _most_in_a_second(moments)),
                Measure("other requests", reads),
                Measure("CPU of the operator", 100 * (used.cpu_s - cost.cpu_s) / watch_s, "% of a core"),
                Measure("CPU of the API server", 100 * (after - server) / watch_s, "% of a core"),
            ],
            busy=share,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Load:
    """What a namespace does to an operator: bytes of annotation of each suspended run, and where its pods are."""

    what: str
    annotation: int
    address: str


@dataclass(frozen=True, slots=True, kw_only=True)
class _Found:
    """p99 from apply to Job in another namespace, without and with the load, and the operator's memory with it."""

    alone_s: float
    beside_s: float
    memory_bytes: int
    peak_bytes: int


def hostile(suspended_runs: int, pods: int, round_s: float) -> Iterator[Row]:
    """(e) Suspended runs with huge annotations and pods that never answer, against small ones and pods that do.

    `round_s` is how long they go on before another namespace's runs are created beside them. 480 slow pods take two
    minutes for one round: two seconds each, in the eight slots of their namespace.
    """
    found: list[_Found] = []
    for load in (
        _Load(what="small ones", annotation=1, address=ANSWERING),
        _Load(what="hostile ones", annotation=_ANNOTATION, address=SLOW),
    ):
        busy = Busy()
        found.append(_measure(load, suspended_runs, pods, round_s))
        last = found[-1]
        more = (last.memory_bytes - found[0].memory_bytes) / MIB
        against = [Measure("memory above small ones", more, "MiB")] if len(found) > 1 else []
        yield Row(
            what=f"a namespace beside {suspended_runs:,} suspended runs and {pods:,} pods that train, {load.what}",
            wanted="p99 <= 2 x alone, memory <= 40 MiB above small ones" if len(found) > 1 else "",
            found=[
                Measure("apply to Job, p99", last.beside_s, "s"),
                Measure("alone, p99", last.alone_s, "s"),
                Measure("memory", last.memory_bytes / MIB, "MiB"),
                Measure("memory at most", last.peak_bytes / MIB, "MiB"),
                *against,
            ],
            busy=busy.share(),
        )


def _measure(load: _Load, suspended_runs: int, pods: int, round_s: float) -> _Found:
    with (
        played_trainers(),
        a_control_plane(controller_requests_per_second=CONTROLLER_RATE) as plane,
        an_operator(plane.kubeconfig) as operator,
    ):
        make_namespaces(plane.api, ["warm", "alone", "tenant", "beside"])
        create(plane.api, finetunes("warm"), _names(WARM_UP), _RATE)
        settle(operator, 0)
        alone = create(plane.api, finetunes("alone"), _names(_PROBES), _RATE)
        settle(operator, 0)
        create(plane.api, finetunes("tenant"), _names(pods), None)
        _let_run(plane, "tenant", pods, load.address)
        kind = finetunes("tenant", lambda name: suspended(name, load.annotation))
        create(plane.api, kind, _names(suspended_runs, "held"), None)
        time.sleep(round_s)
        beside = create(plane.api, finetunes("beside"), _names(_PROBES), _RATE)
        usage = operator.usage()
        return _Found(
            alone_s=percentile(alone.latencies_s, 0.99),
            beside_s=percentile(beside.latencies_s, 0.99),
            memory_bytes=usage.resident_bytes,
            peak_bytes=usage.peak_bytes,
        )


def _names(count: int, prefix: str = "run") -> list[str]:
    return [f"{prefix}-{number:05}" for number in range(count)]


def _let_run(plane: ControlPlane, namespace: str, count: int, address: str) -> None:
    """Wait until each run has its pod, let all of them run, and wait until their statuses say so."""
    wait_until(lambda: len(pods_of_runs(plane.api, namespace)) == count, "every run has a pod")
    with (
        connections_to(plane.api) as connections,
        Watch(plane.api, finetunes_path(namespace), running_run, names_only=False) as runs,
    ):
        pods = pods_of_runs(plane.api, namespace).values()
        play(connections, namespace, {pod: running(address) for pod in pods})
        runs.wait(count, 300)


def _server_s(plane: ControlPlane) -> float:
    return cpu_s(server_metrics(plane.api))


def _note(moments: list[float], _: Object) -> None:
    moments.append(time.monotonic())


def _most_in_a_second(moments: Sequence[float]) -> int:
    counts: dict[int, int] = {}
    for moment in moments:
        counts[int(moment)] = counts.get(int(moment), 0) + 1
    return max(counts.values(), default=0)
