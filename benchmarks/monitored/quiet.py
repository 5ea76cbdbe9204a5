"""Healthy runs under a real operator that is restarted again and again, and a Prometheus with the chart's alerts."""

import json
import random
import re
import tempfile
import time
import urllib.parse
import urllib.request
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.monitored.chart import Chart, rendered
from benchmarks.monitored.serving import a_prometheus, announce, serve
from benchmarks.monitored.targets import Target, pod_labels, train
from benchmarks.scale.connections import Object
from benchmarks.scale.creation import create
from benchmarks.scale.fleet import (
    SUCCESS,
    ended,
    finetunes,
    looked_at,
    make_namespaces,
    pods_of_runs,
    running,
)
from benchmarks.scale.playing import CONTROLLER_RATE, Preflights, connections_to, play
from benchmarks.scale.processes import ControlPlane, Operator, a_control_plane, an_operator, wait_until
from benchmarks.scale.trainers import played_trainers

from localcluster import ports
from lora_trainer.host.metrics import TrainingMetrics

_NAME = "bench-quiet"
_TEAM = "team"
# Beside a Prometheus of somebody else's, which has the same port.
_TRAINERS = "127.0.0.3"
_SCRAPE_S = 15
_RESTART_S = 180
_CHANGED = 5
"""Runs that end, and as many that begin, between two restarts."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """What the Prometheus saw: names of alerts with `pending` or `firing`, evaluations of rules, and of how many runs
    there were a state and a heartbeat at the end."""

    alerts: Sequence[tuple[str, str]]
    evaluations: int
    told: int
    training: int
    restarts: int
    ended: int


def watched(count: int, minutes: float) -> Seen:
    """For so long. Raises SystemExit where a rule cannot be evaluated, or the runs are not seen."""
    chart = rendered()
    exposed, port = ports.choose(2, random.Random())  # noqa: S311 - a port number is no secret
    with (
        tempfile.TemporaryDirectory() as place,
        played_trainers(_TRAINERS),
        a_control_plane(name=_NAME, controller_requests_per_second=CONTROLLER_RATE) as plane,
    ):
        make_namespaces(plane.api, [_TEAM])
        team = _Team(plane, f"127.0.0.1:{exposed}")
        folder = Path(place)
        announce(folder, [])
        with (
            serve(exposed, team.targets),
            a_prometheus(folder, chart, port, scrape_s=_SCRAPE_S, evaluate_s=_SCRAPE_S) as prometheus,
        ):
            end_s, turn = time.monotonic() + 60 * minutes, 0
            while True:
                with an_operator(plane.kubeconfig) as operator:
                    scraped = _operator(chart, operator, turn)
                    announce(folder, [scraped, *team.targets()])
                    if not turn:
                        team.change(begin=count, end=0)
                    elif end_s - time.monotonic() > _RESTART_S:
                        team.change(begin=_CHANGED, end=_CHANGED)
                    announce(folder, [scraped, *team.targets()])
                    time.sleep(max(0.0, min(_RESTART_S, end_s - time.monotonic())))
                    if time.monotonic() >= end_s:
                        return _seen(prometheus.url, minutes, restarts=turn, ended=team.ended)
                turn += 1


class _Team:
    """Runs of a namespace and the pods that train for them; a kubelet is played."""

    def __init__(self, plane: ControlPlane, address: str) -> None:
        self._plane, self._address = plane, address
        self._pods: dict[str, Target] = {}
        self._made = 0
        self.ended = 0

    def targets(self) -> list[Target]:
        """Pods that train now, the oldest first."""
        return list(self._pods.values())

    def change(self, *, begin: int, end: int) -> None:
        """Let new runs begin and the oldest ones succeed."""
        api = self._plane.api
        names = [f"run-{number:05}" for number in range(self._made, self._made + begin)]
        self._made += begin
        # Anew each time: an API server hangs up on a connection that is idle for so long.
        with Preflights(api, _TEAM):
            create(api, finetunes(_TEAM, looked_at), names, 20)
        wait_until(lambda: set(names) <= set(pods_of_runs(api, _TEAM)), "every run has a pod")
        pods = pods_of_runs(api, _TEAM)
        over = list(self._pods)[:end]
        with connections_to(api) as connections:
            play(connections, _TEAM, {pods[name]: running(_TRAINERS) for name in names})
            play(connections, _TEAM, {pods[name]: ended(SUCCESS) for name in over})
        self._pods = {name: target for name, target in self._pods.items() if name not in over}
        self._pods |= {name: self._target(api.get(f"/api/v1/namespaces/{_TEAM}/pods/{pods[name]}")) for name in names}
        self.ended += end

    def _target(self, pod: Object) -> Target:
        metrics, began_s = TrainingMetrics(), time.time()
        metrics.leads = True
        metrics.checkpoint_interval(600)

        def text() -> bytes:
            train(metrics, time.time() - began_s)
            return metrics.text()

        name = pod["metadata"]["name"]
        labels = {**pod_labels(_TEAM, name, pod["metadata"]["labels"]), "instance": self._address}
        return Target(path=f"/{name}", labels=labels, honors=False, text=text)


def _operator(chart: Chart, operator: Operator, turn: int) -> Target:
    """The one that runs now: another pod than the one before."""
    labels = {**chart.operator_labels, "pod": f"operator-{turn}", "instance": f"127.0.0.1:{operator.port}"}
    return Target(path="/metrics", labels=labels, honors=True, text=operator.scrape)


def _seen(url: str, minutes: float, *, restarts: int, ended: int) -> Seen:
    counts = _numbers(f"{url}/metrics")
    failed = counts.get("prometheus_rule_evaluation_failures_total", 0)
    if failed:
        raise SystemExit(f"{failed} evaluations of rules failed")
    alerts = _ask(url, f"count by (alertname, alertstate) (count_over_time(ALERTS[{minutes + 10:.0f}m]))")
    told, training = (
        sum(float(one["value"][1]) for one in _ask(url, f"count({name})"))
        for name in ("lorafinetune_state", "lora_training_heartbeat_timestamp_seconds")
    )
    if not told or not training:
        raise SystemExit(f"Prometheus saw {told:.0f} runs with a state and {training:.0f} with a heartbeat")
    return Seen(
        alerts=[(one["metric"]["alertname"], one["metric"]["alertstate"]) for one in alerts],
        evaluations=int(counts["prometheus_rule_evaluations_total"]),
        told=int(told),
        training=int(training),
        restarts=restarts,
        ended=ended,
    )


def _ask(url: str, query: str) -> list[Object]:
    with urllib.request.urlopen(f"{url}/api/v1/query?{urllib.parse.urlencode({'query': query})}", timeout=60) as answer:  # noqa: S310 - of this machine
        return list(json.load(answer)["data"]["result"])


def _numbers(url: str) -> dict[str, float]:
    """Sums over all series of each counter."""
    with urllib.request.urlopen(url, timeout=60) as answer:  # noqa: S310 - of this machine
        lines = answer.read().decode().splitlines()
    sums: dict[str, float] = {}
    for line in lines:
        match = re.match(r"(\w+)(?:\{.*\})? (\S+)$", line)
        if match:
            sums[match[1]] = sums.get(match[1], 0.0) + float(match[2])
    return sums
