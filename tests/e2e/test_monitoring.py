"""A real Prometheus that scrapes a real operator and real runs by the chart's own monitors: no panel is empty, and what
goes wrong wakes somebody, once."""

import json
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from tests.e2e import panels
from tests.e2e.conftest import Installed
from tests.e2e.support import (
    BROKEN_MODEL,
    CLAIM,
    LONG,
    PATIENCE_S,
    SLOW,
    finetune,
    long_rows,
    pods,
    recorded,
    status,
    wait_end,
    wait_reason,
)

from dashgen import prometheus
from demoflow.monitoring import FLAGS
from demoflow.run import RELEASE, RELEASE_NAMESPACE
from localcluster import prometheus as addon
from localcluster import settings
from localcluster.client import HACK_CLUSTER, Client, output

_SCRAPE_S = 5
_ALERTS = "--set=metrics.prometheusRule.alerts"
_SHORT = (
    f"{_ALERTS}.LoRAOperatorDown.for=20s",
    f"{_ALERTS}.LoRAFineTuneStuckPending.for=20s",
    f"{_ALERTS}.LoRAFineTuneStalled.for=0s",
    f"{_ALERTS}.LoRAFineTuneStalled.seconds=20",
    f"{_ALERTS}.LoRAFineTuneRestartLoop.restarts=2",
)
_STOP = """\
import os, signal
for process in filter(str.isdigit, os.listdir("/proc")):
    if b"train" in open(f"/proc/{process}/cmdline", "rb").read().split(b"\\0"):
        os.kill(int(process), signal.SIGSTOP)
"""
# All at once on two processors.
_SMALL = {"gpus": 0, "cpu": "100m", "memory": "2Gi"}
RUNS = ("stalls", "good", "turns", "pends", "broken", "recorded")
_LEFT_OUT = "every namespace is looked after"
_BY_THE_EXPORTER = "the pod that exposes it is scraped without honorLabels"
NO_DATA: dict[str, dict[str, str]] = {
    "fleet": {"Namespaces left out: {{namespace}}": _LEFT_OUT},
    "run": {},
    "rules": {
        "LoRAOperatorNamespaceLeftOut: lora_operator_left_out_namespace": _LEFT_OUT,
        'LoRAFineTuneStalled: lorafinetune_state{group="Running", state="Stalled"}': "the trainer ends a "
        "stage that stands still for config.stallTimeoutSeconds, a minute at least",
        'LoRAFineTuneMemoryNearLimit: kube_pod_container_resource_limits{container="trainer", resource="memory"}': ""
        "without kube-state-metrics, cAdvisor's stands in",
        'LoRAFineTuneMemoryNearLimit: DCGM_FI_DEV_FB_USED{pod!="", exported_pod=""}': _BY_THE_EXPORTER,
        'LoRAFineTuneMemoryNearLimit: DCGM_FI_DEV_FB_FREE{pod!="", exported_pod=""}': _BY_THE_EXPORTER,
        'LoRAFineTuneGPUXid: DCGM_FI_DEV_XID_ERRORS{pod!="", exported_pod=""}': _BY_THE_EXPORTER,
    },
}
"""What has no data here, and why."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Scene:
    """Runs of all kinds, seen by a Prometheus at `url` since `began_s`; `woken` counts the notifications so far."""

    installed: Installed
    namespace: str
    url: str
    began_s: float = field(default_factory=time.time)

    @property
    def client(self) -> Client:
        return self.installed.client

    @property
    def span(self) -> prometheus.Span:
        """From the beginning until now."""
        return prometheus.Span(begin_s=self.began_s, end_s=time.time(), scrape_s=_SCRAPE_S)

    def woken(self) -> Counter[tuple[str, str]]:
        """How often Alertmanager has told of an alert and a run of this namespace, or of the operator."""
        log = self.client.kubectl("logs", "deployment/prometheus", "-c=follow", f"-n={addon.NAMESPACE}", "--tail=-1")
        told = [json.loads(line) for line in log.splitlines() if line.startswith('{"status": "firing"')]
        ours = (self.namespace, RELEASE_NAMESPACE)
        return Counter((alert["alertname"], alert["name"]) for alert in told if alert["namespace"] in ours)

    def until(self, condition: Callable[[], bool], what: str, timeout_s: float = PATIENCE_S) -> None:
        """Wait for something that Prometheus or its Alertmanager is to see."""
        deadline = time.monotonic() + timeout_s
        while not condition():
            assert time.monotonic() < deadline, f"{what}; woken so far: {self.woken()}"
            time.sleep(0.5)


@pytest.fixture(scope="module")
def scene(installed: Installed, module_namespace: str) -> Iterator[Scene]:
    """One run that trains and then hangs, one that waits for a quota and whose pods are deleted later, one that waits
    for its claim, one with a broken model, one that succeeds, and what a run on a GPU would expose."""
    output([str(HACK_CLUSTER), "addon", addon.NAME], timeout_s=600)
    url = addon.addresses(settings.places(settings.DEFAULT_NAME))["Prometheus"]
    installed.upgrade(*FLAGS, *_SHORT)
    made = Scene(installed=installed, namespace=module_namespace, url=url)
    try:
        _play(made)
        yield made
    finally:
        installed.client.kubectl("delete", "lft", "--all", f"--namespace={module_namespace}", "--wait=false")
        installed.upgrade()


def _play(scene: Scene) -> None:
    client, namespace = scene.client, scene.namespace
    # Steps so short that none lasts as long as the alert waits: one that came and went before would count twice.
    steps = {"maxSteps": 100_000, "effectiveBatchSize": 4, "evalSteps": 2}
    saved = {"checkpoint": {"intervalSeconds": 1}, "training": {**LONG["training"], **steps}}
    short = {**SLOW, "maxSteps": 2, "effectiveBatchSize": 2}
    client.apply(CLAIM, long_rows(), *recorded(namespace, scene.installed.images.operator), namespace=namespace)
    client.kubectl("create", "quota", "closed", "--hard=count/jobs.batch=0", f"--namespace={namespace}")
    client.wait("quota/closed", "jsonpath={.status.hard}", namespace=namespace, timeout_s=PATIENCE_S)
    client.apply(finetune("turns", resources=_SMALL, **LONG), namespace=namespace)
    wait_reason(client, namespace, "turns", "Accepted", "QuotaExceeded")
    client.kubectl("delete", "quota", "closed", f"--namespace={namespace}")
    client.apply(finetune("good", preflight="Run", training=short, resources=_SMALL), namespace=namespace)
    broken = finetune("broken", model={"uri": BROKEN_MODEL}, training=SLOW, resources=_SMALL)
    client.apply(broken, namespace=namespace)
    client.apply(finetune("stalls", resources=_SMALL, **saved), namespace=namespace)
    client.apply(finetune("pends", output={"uri": "pvc://nowhere/pends"}, resources=_SMALL), namespace=namespace)
    wait_end(client, namespace, "broken")
    for _ in range(2):
        _delete_pod(client, namespace, "turns")
    client.kubectl(
        "patch", "lft/turns", f"--namespace={namespace}", "--type=merge", '--patch={"spec":{"suspend":true}}'
    )
    client.kubectl("delete", "job", status(client, namespace, "pends")["jobName"], f"--namespace={namespace}")
    client.wait("lft/stalls", "jsonpath={.status.progress.checkpointStep}", namespace=namespace, timeout_s=PATIENCE_S)
    (stalls,) = (pod["metadata"]["name"] for pod in _pods(client, namespace, "stalls"))
    client.kubectl("exec", stalls, f"--namespace={namespace}", "--", "python", "-c", _STOP)
    wait_end(client, namespace, "good")


def _delete_pod(client: Client, namespace: str, run: str) -> None:
    """As soon as it runs. The one before it may still say so while it ends, and would be deleted twice."""
    deadline = time.monotonic() + PATIENCE_S
    while not (running := [pod for pod in _pods(client, namespace, run) if _runs(pod)]):
        assert time.monotonic() < deadline, f"no pod of {run} runs"
        time.sleep(0.5)
    (pod,) = running
    client.kubectl("delete", "pod", pod["metadata"]["name"], f"--namespace={namespace}", "--grace-period=1")


def _runs(pod: dict[str, Any]) -> bool:
    return pod["status"].get("phase") == "Running" and "deletionTimestamp" not in pod["metadata"]


def _pods(client: Client, namespace: str, run: str) -> list[dict[str, Any]]:
    return [pod for pod in pods(client, namespace) if pod["metadata"]["labels"]["lora-operator.io/name"] == run]


WOKEN = {
    ("LoRAFineTuneStalled", "stalls"),
    ("LoRAFineTuneNonFiniteLoss", "broken"),
    ("LoRAFineTuneRestartLoop", "turns"),
    ("LoRAFineTuneStuckPending", "pends"),
}


def test_what_goes_wrong_with_a_run_wakes_somebody_once(scene: Scene) -> None:
    """A trainer that hangs, a model that gives no numbers, pods that are taken away, a claim that does not exist: each
    by an alert with the run's name, and none by an alert of another."""
    scene.until(lambda: set(scene.woken()) >= WOKEN, "not all alerts came")
    assert {alert: scene.woken()[alert] for alert in WOKEN} == dict.fromkeys(WOKEN, 1)


def test_a_picture_of_a_run_is_drawn(scene: Scene, tmp_path: Path) -> None:
    """Of the Prometheus that watches it."""
    picture = tmp_path / "run.png"
    command = [sys.executable, "hack/dashboard-picture", "run", scene.url, str(picture)]
    run = ("--namespace", scene.namespace, "--name", "stalls", "--minutes", "180")
    subprocess.run([*command, *run], cwd=settings.REPOSITORY, check=True)
    assert picture.read_bytes().startswith(b"\x89PNG")


def _empty(scene: Scene, board: str, choices: list[dict[str, str]]) -> set[str]:
    """The questions of a dashboard that no choice of its variables has a number for."""
    span = scene.span
    return {
        title
        for title, query, over_time in panels.questions(panels.BOARDS[board])
        if not any(
            panels.has_data(scene.url, prometheus.filled(query, span, choice), span, over_time=over_time)
            for choice in choices
        )
    }


@pytest.mark.parametrize("board", panels.BOARDS)
def test_no_panel_of_a_dashboard_is_empty(scene: Scene, board: str) -> None:
    """Nor a mark or a variable; on *LoRA run* for one of the runs at least. What a run shows once it has ended is there
    with the scrape after that."""
    runs = [] if board == "fleet" else RUNS
    choices = [{"namespace": scene.namespace, "name": run} for run in runs] or [{"namespace": ".*", "name": ""}]
    deadline = time.monotonic() + 24 * _SCRAPE_S
    while (empty := _empty(scene, board, choices)) > NO_DATA[board].keys() and time.monotonic() < deadline:
        time.sleep(1)
    assert empty == NO_DATA[board].keys()
    for variable in panels.BOARDS[board]["templating"]["list"][1:]:
        assert panels.label_values(scene.url, variable["query"], choices[0]), variable["name"]


def test_every_rule_reads_what_is_there(scene: Scene) -> None:
    """Those that record have a value. An alert that does not fire reads series that there are."""
    (group,) = scene.client.get("prometheusrule", RELEASE, f"--namespace={RELEASE_NAMESPACE}")["spec"]["groups"]
    records = [rule["record"] for rule in group["rules"] if "record" in rule]
    empty = set()
    for rule in group["rules"]:
        name = rule.get("record") or rule["alert"]
        asked = [rule["expr"]] if "record" in rule else panels.selectors(rule["expr"], records)
        assert asked, name
        over = f"{(time.time() - scene.began_s) / 60 + 1:.0f}m"
        for query in asked:
            text = query if "record" in rule else f"last_over_time({query}[{over}])"
            if not panels.has_data(scene.url, text, scene.span, over_time=False):
                empty.add(f"{name}: {query}")
    assert empty == NO_DATA["rules"].keys()


def test_an_operator_that_is_gone_wakes_somebody_once(scene: Scene) -> None:
    """Scaled to nothing, and back."""
    down, where = ("LoRAOperatorDown", ""), f"--namespace={RELEASE_NAMESPACE}"
    before = scene.woken()[down]
    scene.client.kubectl("scale", f"deployment/{RELEASE}", "--replicas=0", where)
    try:
        scene.until(lambda: scene.woken()[down] > before, "nobody was woken")
    finally:
        scene.client.kubectl("scale", f"deployment/{RELEASE}", "--replicas=1", where)
        scene.client.kubectl(
            "rollout", "status", f"deployment/{RELEASE}", where, f"--timeout={PATIENCE_S}s", timeout_s=PATIENCE_S + 30
        )
    assert scene.woken()[down] == before + 1
