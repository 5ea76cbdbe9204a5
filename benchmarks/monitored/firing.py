"""How soon alerts fire once what they tell of has begun: what targets expose is changed, and a Prometheus is asked."""

import random
import re
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from benchmarks.monitored.chart import Chart, rendered
from benchmarks.monitored.serving import a_prometheus, announce, rules_of, serve
from benchmarks.monitored.targets import Fleet, Target

from localcluster import ports

SCRAPE_S = 15
_RUNS = 40
_DOWN = "LoRAOperatorDown"
_OPERATOR = "/operator"
_PATIENCE_S = 300
_UNITS = {"s": 1, "m": 60, "h": 3600}


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """What a target exposes from then on: `path` is a pattern of the targets' paths."""

    path: str
    found: bytes
    instead: bytes


FAULTS: Mapping[str, Fault] = {
    "LoRAFineTuneNonFiniteLoss": Fault(
        path="/run-.*", found=rb"(?m)^(lora_training_nonfinite_values_total) .*", instead=rb"\1 5"
    ),
    "LoRAFineTuneGPUXid": Fault(path="/dcgm", found=rb"(?m)^(DCGM_FI_DEV_XID_ERRORS\{.*\}) .*", instead=rb"\1 79"),
    "LoRAFineTuneMemoryNearLimit": Fault(
        path="/run-.*", found=rb"(?m)^(lora_training_gpu_memory_peak_bytes\{.*\}) .*", instead=rb"\1 2.34e+10"
    ),
}
"""Beside these the operator ends."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Fired:
    """An alert: how long its condition must last, and how long after the fault it fired."""

    alert: str
    for_s: float
    after_s: float


def fired() -> list[Fired]:
    """Each alert in the order in which they fire. Raises SystemExit where one fires before its fault, or never."""
    chart = rendered()
    exposed, port = ports.choose(2, random.Random())  # noqa: S311 - a port number is no secret
    fleet, broken = Fleet(_RUNS, chart, f"127.0.0.1:{exposed}"), False

    def targets() -> list[Target]:
        healthy = fleet.at(time.time())
        return list(_broken(healthy)) if broken else healthy

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        announce(folder, targets())
        with (
            serve(exposed, targets),
            a_prometheus(folder, chart, port, scrape_s=SCRAPE_S, evaluate_s=SCRAPE_S) as prometheus,
        ):
            time.sleep(6 * SCRAPE_S)
            if early := _firing(prometheus.url):
                raise SystemExit(f"before any fault these fire: {sorted(early)}")
            broken, began_s = True, time.monotonic()
            return list(_as_they_fire(prometheus.url, _durations(chart), began_s))


def _broken(targets: Sequence[Target]) -> Iterator[Target]:
    """Without the operator: nothing answers under its path."""
    for target in targets:
        if target.path == _OPERATOR:
            continue
        faults = [fault for fault in FAULTS.values() if re.fullmatch(fault.path, target.path)]
        yield replace(target, text=partial(_altered, target.text, faults))


def _altered(healthy: Callable[[], bytes], faults: Sequence[Fault]) -> bytes:
    text = healthy()
    for fault in faults:
        text = re.sub(fault.found, fault.instead, text)
    return text


def _as_they_fire(url: str, durations: Mapping[str, float], began_s: float) -> Iterator[Fired]:
    left = {*FAULTS, _DOWN}
    while left:
        after_s = time.monotonic() - began_s
        if after_s > max(durations[alert] for alert in left) + _PATIENCE_S:
            raise SystemExit(f"{after_s:.0f} s after the faults these do not fire: {sorted(left)}")
        for alert in sorted(left & _firing(url)):
            left.discard(alert)
            yield Fired(alert=alert, for_s=durations[alert], after_s=after_s)
        time.sleep(0.5)


def _firing(url: str) -> set[str]:
    rules = [rule for group in rules_of(url) for rule in group["rules"]]
    return {rule["name"] for rule in rules if rule.get("state") == "firing"}


def _durations(chart: Chart) -> dict[str, float]:
    """How long the condition of each alert must last, in seconds; of two by one name, the longer."""
    found: dict[str, float] = {}
    for rule in (rule for group in chart.groups for rule in group["rules"] if "alert" in rule):
        parts = re.findall(r"(\d+)([smh])", rule.get("for", "0s"))
        lasts_s = float(sum(int(number) * _UNITS[unit] for number, unit in parts))
        found[rule["alert"]] = max(lasts_s, found.get(rule["alert"], 0.0))
    return found
