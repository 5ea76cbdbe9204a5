"""How soon alerts fire once what they tell of has begun: what targets expose is changed, and a Prometheus is asked."""

import random
import re
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from benchmarks.monitored.chart import Chart, rendered
from benchmarks.monitored.faults import FAULTS, altered, healthy
from benchmarks.monitored.serving import a_prometheus, announce, rules_of, serve
from benchmarks.monitored.targets import Fleet, Target

from localcluster import ports

SCRAPE_S = 15
_RUNS = 100
_OPERATOR = "/operator"
_PATIENCE_S = 300
_UNITS = {"s": 1, "m": 60, "h": 3600}
_DISTINGUISHING = ("group", "memory")

# Of the 60 looks in 15 minutes fewer than half find a leader that is there for one scrape of five.
_RESTARTS_EVERY_S = 5 * SCRAPE_S
_RESTARTING_S = 8 * _RESTARTS_EVERY_S


@dataclass(frozen=True, slots=True, kw_only=True)
class Fired:
    """An alert: how long after the fault its condition holds, how long that must last, and how long after the fault it
    fired."""

    alert: str
    holds_after_s: float
    for_s: float
    after_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class World:
    """A fleet of its own with faults: which alerts they make fire, so many seconds until their conditions hold, how
    long all is well before them, and what becomes of a healthy target, None where it no longer answers, so many
    seconds after they began."""

    alerts: Mapping[str, float]
    healthy_s: float
    turned: Callable[[Target, float], Target | None]


def _troubled(target: Target, age_s: float) -> Target:
    """Everything else than an operator that is gone: all faults in one fleet, since no alert silences another."""
    at_s = time.time() - age_s
    return replace(target, text=lambda: altered(target.text(), target.path, at_s))


def _ended(target: Target, age_s: float) -> Target | None:
    return None if target.path == _OPERATOR else target


def _restarting(target: Target, age_s: float) -> Target | None:
    return None if target.path == _OPERATOR and age_s % _RESTARTS_EVERY_S > SCRAPE_S else target


WORLDS = (
    World(
        alerts={alert: max(fault.holds_after_s for fault in faults) for alert, faults in FAULTS.items()},
        healthy_s=6 * SCRAPE_S,
        turned=_troubled,
    ),
    World(alerts={"LoRAOperatorDown": 0.0}, healthy_s=6 * SCRAPE_S, turned=_ended),
    World(alerts={"LoRAOperatorRestarting": _RESTARTING_S}, healthy_s=15 * 60, turned=_restarting),
)


def fired() -> Iterator[Fired]:
    """Each alert of the chart, world by world. Raises SystemExit where one fires too early, or never, or has no
    fault."""
    chart = rendered()
    durations = _durations(chart)
    played = {alert for world in WORLDS for alert in world.alerts}
    if played != set(durations):
        raise SystemExit(f"the chart's alerts and the faults differ by {sorted(played ^ set(durations))}")
    exposed = ports.choose(2 * len(WORLDS), random.Random())  # noqa: S311 - a port number is no secret
    given_up = threading.Event()
    with ThreadPoolExecutor() as pool:
        found = [
            pool.submit(_fired, world, chart, durations, exposed[2 * place : 2 * place + 2], given_up)
            for place, world in enumerate(WORLDS)
        ]
        try:
            for one in as_completed(found):
                yield from one.result()
        finally:
            given_up.set()


def _fired(
    world: World, chart: Chart, durations: Mapping[str, float], free: Sequence[int], given_up: threading.Event
) -> list[Fired]:
    """Of one world, in the order in which they fire; `free` are two ports. With another world it is `given_up`."""
    exposed, port = free
    address = f"127.0.0.1:{exposed}"
    fleet = Fleet(_RUNS, chart, address)
    began_s: float | None = None

    def targets() -> list[Target]:
        well = [_well(target) for target in fleet.at(time.time())]
        well.append(_standby(chart, address))
        if began_s is None:
            return well
        age_s = time.monotonic() - began_s
        return [turned for target in well if (turned := world.turned(target, age_s)) is not None]

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        announce(folder, targets())
        with (
            serve(exposed, targets),
            a_prometheus(folder, chart, port, scrape_s=SCRAPE_S, evaluate_s=SCRAPE_S) as prometheus,
        ):
            given_up.wait(world.healthy_s)
            if early := _in_state(prometheus.url, "pending", "firing") & set(world.alerts):
                raise SystemExit(f"before any fault the conditions of these hold: {sorted(early)}")
            began_s = time.monotonic()
            return list(_as_they_fire(prometheus.url, world.alerts, durations, began_s, given_up))


def _well(target: Target) -> Target:
    return replace(target, text=lambda: healthy(target.text()))


def _standby(chart: Chart, address: str) -> Target:
    """The operator's second replica, which does not lead."""
    labels = {**chart.operator_labels, "pod": "lora-1", "instance": address}
    return Target(path="/standby", labels=labels, honors=True, text=lambda: b"lora_operator_leader 0\n")


def _as_they_fire(
    url: str,
    alerts: Mapping[str, float],
    durations: Mapping[str, float],
    began_s: float,
    given_up: threading.Event,
) -> Iterator[Fired]:
    left = set(alerts)
    latest_s = max(alerts[alert] + durations[alert] for alert in alerts)
    while left and not given_up.wait(0.5):
        after_s = time.monotonic() - began_s
        if after_s > latest_s + _PATIENCE_S:
            raise SystemExit(f"{after_s:.0f} s after the faults these do not fire: {sorted(left)}")
        for alert in sorted(left & _in_state(url, "firing")):
            left.discard(alert)
            if after_s < alerts[alert] + durations[alert] - SCRAPE_S:
                raise SystemExit(f"{alert} fires {after_s:.0f} s after its fault, which is too early")
            yield Fired(alert=alert, holds_after_s=alerts[alert], for_s=durations[alert], after_s=after_s)


def _in_state(url: str, *states: str) -> set[str]:
    rules = [rule for group in rules_of(url) for rule in group["rules"]]
    return {_called(rule["name"], rule["labels"]) for rule in rules if rule.get("state") in states}


def _called(alert: str, labels: Mapping[str, str]) -> str:
    """The alert's name, and where two rules have it, the label that tells them apart."""
    return alert + "".join(f" of {label} {labels[label]}" for label in _DISTINGUISHING if label in labels)


def _durations(chart: Chart) -> dict[str, float]:
    """How long the condition of each alert must last, in seconds."""
    rules: list[Mapping[str, Any]] = [rule for group in chart.groups for rule in group["rules"] if "alert" in rule]
    return {_called(rule["alert"], rule.get("labels", {})): _seconds(rule.get("for", "0s")) for rule in rules}


def _seconds(duration: str) -> float:
    parts = re.findall(r"(\d+)([smh])", duration)
    return float(sum(int(number) * _UNITS[unit] for number, unit in parts))
