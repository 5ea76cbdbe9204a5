"""The faults of the benchmark of alerts: each is found in what targets expose, and each alert of the chart has one."""

import re
import time
from pathlib import Path

import pytest
import yaml
from benchmarks.monitored.chart import Chart
from benchmarks.monitored.faults import FAULTS, Fault, altered, healthy
from benchmarks.monitored.firing import WORLDS
from benchmarks.monitored.targets import Fleet

VALUES = Path(__file__).parents[2] / "helm/lora-finetune-operator/values.yaml"
AT_S = 2e9
CHART = Chart(operator_labels={"job": "lora", "namespace": "lora-system", "pod": "lora-0"}, groups=[])


@pytest.fixture(scope="module")
def exposed() -> dict[str, bytes]:
    """By path."""
    targets = Fleet(100, CHART, "127.0.0.1:1").at(time.time())
    return {"/standby": b"lora_operator_leader 0\n"} | {target.path: healthy(target.text()) for target in targets}


def test_each_alert_of_the_chart_is_made_to_fire() -> None:
    """By its name, and where two rules have it, by the label that tells them apart."""
    alerts = yaml.safe_load(VALUES.read_text())["metrics"]["prometheusRule"]["alerts"]
    assert {alert.partition(" of ")[0] for world in WORLDS for alert in world.alerts} == set(alerts)


@pytest.mark.parametrize(
    "fault", [fault for faults in FAULTS.values() for fault in faults], ids=lambda fault: fault.path
)
def test_what_a_fault_changes_is_exposed(fault: Fault, exposed: dict[str, bytes]) -> None:
    """A metric that is renamed would else be missed after half an hour of waiting for an alert."""
    of = {path: text for path, text in exposed.items() if re.fullmatch(fault.path, path)}
    assert of
    for path, text in of.items():
        changed = re.sub(fault.found, fault.instead(AT_S), text)
        assert changed != text, path
        assert set(changed.splitlines()) <= {*altered(text, path, AT_S).splitlines(), *text.splitlines()}
