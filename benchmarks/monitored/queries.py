"""How long a Prometheus takes for what the dashboards ask and for the chart's rules."""

import json
import statistics
import time
import urllib.parse
import urllib.request
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks.monitored.serving import Prometheus, rules_of
from benchmarks.scale.machine import usage

from dashgen.board import Board, render
from dashgen.prometheus import Span, filled

_POLL_S = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Timed:
    """A query: where it stands, seconds each time that it was asked, how many series or values came, and for a query
    CPU seconds of Prometheus for one time, which do not depend on what else the machine does."""

    where: str
    seconds: Sequence[float]
    found: int
    cpu_s: float = 0.0

    @property
    def usual_s(self) -> float:
        """The median."""
        return statistics.median(self.seconds)


def dashboard(prometheus: Prometheus, board: Board, span: Span, chosen: Mapping[str, str], rounds: int) -> list[Timed]:
    """Every query of a dashboard as Grafana sends it: panels, annotations and variables. `chosen`: the values of the
    variables. Raises OSError where Prometheus refuses one."""
    document = render(board)
    over = {"start": span.begin_s, "end": span.end_s, "step": span.step_s}
    asked: list[tuple[str, str, dict[str, Any]]] = []
    for panel in document["panels"]:
        for target in panel.get("targets", ()):
            query = filled(target["expr"], span, chosen)
            way = ("query_range", {"query": query, **over}) if target["range"] else _now(query, span)
            asked.append((f"{panel['title']}: {target['legendFormat']}", *way))
    asked += [
        (note["name"], "query_range", {"query": filled(note["expr"], span, chosen), **over})
        for note in document["annotations"]["list"]
    ]
    for variable in board.variables:
        matched, _, label = filled(variable.query, span, chosen).removeprefix("label_values(")[:-1].rpartition(", ")
        asked.append(
            (variable.label, f"label/{label}/values", {"match[]": matched, "start": span.begin_s, "end": span.end_s})
        )
    return [_timed(prometheus, where, way, parameters, rounds) for where, way, parameters in asked]


def _now(query: str, span: Span) -> tuple[str, dict[str, Any]]:
    return "query", {"query": query, "time": span.end_s}


def _timed(prometheus: Prometheus, where: str, way: str, parameters: Mapping[str, object], rounds: int) -> Timed:
    url = f"{prometheus.url}/api/v1/{way}?{urllib.parse.urlencode(parameters)}"
    seconds: list[float] = []
    answer, before_s = b"", usage(prometheus.pid).cpu_s
    for _ in range(rounds):
        began_s = time.monotonic()
        with urllib.request.urlopen(url, timeout=120) as stream:  # noqa: S310 - of this machine
            answer = stream.read()
        seconds.append(time.monotonic() - began_s)
    cpu_s = (usage(prometheus.pid).cpu_s - before_s) / rounds
    data = json.loads(answer)["data"]
    found = len(data if isinstance(data, list) else data["result"])
    return Timed(where=where, seconds=seconds, found=found, cpu_s=cpu_s)


def told(timed: Sequence[Timed]) -> str:
    """In words: the slowest of the medians, the longest single time, most CPU, and how many had no data."""
    worst, longest = max(timed, key=lambda one: one.usual_s), max(timed, key=lambda one: max(one.seconds))
    most, empty = max(timed, key=lambda one: one.cpu_s), sum(not one.found for one in timed)
    half_s = statistics.median(one.usual_s for one in timed)
    parts = [
        f"slowest {worst.usual_s:.3f} s ({worst.where}), half of them within {half_s:.3f} s",
        f"longest single time {max(longest.seconds):.3f} s ({longest.where})",
        *([f"at most {most.cpu_s:.2f} CPU s ({most.where})"] if most.cpu_s else []),
        *([f"{empty} without data"] if empty else []),
    ]
    return "; ".join(parts)


def rules(url: str, watch_s: float) -> list[Timed]:
    """Every rule, as Prometheus itself says how long each evaluation within so many seconds took, and last the whole
    group. Raises SystemExit where one fails."""
    times: dict[tuple[int, str], dict[str, float]] = {}
    end_s = time.monotonic() + watch_s
    while time.monotonic() < end_s:
        for group in rules_of(url):
            for number, rule in enumerate(group["rules"]):
                if rule["health"] == "err":
                    raise SystemExit(f"{rule['name']}: {rule['lastError']}")
                times.setdefault((number, rule["name"]), {})[rule["lastEvaluation"]] = rule["evaluationTime"]
            times.setdefault((len(group["rules"]), "all of them"), {})[group["lastEvaluation"]] = group[
                "evaluationTime"
            ]
        time.sleep(_POLL_S)
    return [Timed(where=name, seconds=list(found.values()), found=1) for (_, name), found in sorted(times.items())]
