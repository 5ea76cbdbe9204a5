"""The real Prometheus Operator in the cluster: a Prometheus of its making reads the chart's monitors and rules by their
label, and no others."""

import contextlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest
from tests.chart.selection import LABEL, METRICS, Object, prometheus
from tests.chart.target import Target, make_target
from tests.component.patience import eventually
from tests.e2e.support import recorded

from localcluster import prometheus_operator, settings, tools
from localcluster.client import HACK_CLUSTER, Client, output

pytestmark = pytest.mark.soak

_DEFINITION = "lorafinetunes.lora-operator.io"
_ACCOUNT = "prometheus-of-tests"
# The kubelet writes a changed Secret within two minutes; the reloader looks every three where it misses the event.
_RELOAD_S = 400
_SPEC = {
    "image": prometheus_operator.references()[-1],
    "version": prometheus_operator.PROMETHEUS_RELEASE,
    "serviceAccountName": _ACCOUNT,
    "securityContext": {
        "runAsNonRoot": True,
        "runAsUser": 65532,
        "fsGroup": 65532,
        "seccompProfile": {"type": "RuntimeDefault"},
    },
    "resources": {"requests": {"cpu": "50m", "memory": "128Mi"}, "limits": {"memory": "1Gi"}},
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Stack:
    """A release of the chart beside a Prometheus that selects by its label."""

    target: Target

    @property
    def client(self) -> Client:
        return self.target.client

    @property
    def system(self) -> str:
        """The namespace of both, as a flag of kubectl."""
        return f"--namespace={self.target.system}"

    def ask(self, path: str) -> Any:
        """What Prometheus answers, through the API server's proxy."""
        pod = f"/api/v1/namespaces/{self.target.system}/pods/prometheus-ours-0:9090"
        return json.loads(self.client.kubectl("get", f"--raw={pod}/proxy/api/v1/{path}"))["data"]

    def targets(self) -> dict[str, Object]:
        """Each target, by the monitor that it comes from."""
        return {target["scrapePool"]: target for target in self.ask("targets?state=active")["activeTargets"]}

    def of_chart(self, kind: str) -> Object:
        """The chart's object of a kind."""
        (found,) = self.client.get(kind, "--selector=app.kubernetes.io/managed-by=Helm", self.system)["items"]
        return dict(found)

    def pool(self, kind: str) -> str:
        """The scrape pool of a monitor of the chart."""
        found = self.of_chart(kind)
        return f"{found['kind'][0].lower()}{found['kind'][1:]}/{self.target.system}/{found['metadata']['name']}/0"


@pytest.fixture(scope="module")
def stack(cluster: Client) -> Iterator[Stack]:
    """A copy of the PodMonitor and a rule have not the label."""
    output([str(HACK_CLUSTER), "addon", prometheus_operator.NAME, f"--name={cluster.name}"], timeout_s=1800)
    image = cluster.images("operator")["operator"]
    helm = tools.folder(tools.HELM, settings.cache_directory())
    with _definition(cluster), make_target(cluster, helm) as target, _rights(cluster, target.system):
        made = Stack(target=target)
        repository, _, tag = image.rpartition(":")
        values = {"metrics": METRICS, "crds": {"install": False}, "watch": {"namespaces": [target.team]}}
        flags = (f"--set=image.repository={repository}", f"--set-string=image.tag={tag}")
        target.install(*flags, "--wait", "--timeout=180s", values=values)
        cluster.apply(*recorded(target.team, image), namespace=target.team)
        cluster.apply(*_unlabelled(made), namespace=target.system)
        cluster.apply(prometheus("ours", LABEL["release"], **_SPEC), namespace=target.system)
        try:
            cluster.wait("prometheus/ours", "condition=Available", namespace=target.system, timeout_s=300)
            yield made
        finally:
            print(cluster.kubectl("describe", "prometheus,statefulset,pod", made.system)[-6000:])
            cluster.kubectl("delete", "prometheus", "ours", made.system)


@contextlib.contextmanager
def _definition(cluster: Client) -> Iterator[None]:
    """The project's own; gone afterwards unless it was there, since the next release is to own it."""
    there = cluster.kubectl("get", "crd", _DEFINITION, "--ignore-not-found", "--output=name")
    if not there:
        cluster.kubectl("apply", "--server-side", f"--filename={settings.REPOSITORY / 'crds'}")
    try:
        yield
    finally:
        if not there:
            cluster.kubectl("delete", "crd", _DEFINITION)


@contextlib.contextmanager
def _rights(cluster: Client, namespace: str) -> Iterator[None]:
    """What a Prometheus needs to find targets, by the example of the Prometheus Operator."""
    module = tools.module_folder(tools.PROMETHEUS_OPERATOR, settings.cache_directory())
    role = module / "example/rbac/prometheus/prometheus-cluster-role.yaml"
    text = role.read_text().replace("name: prometheus\n", f"name: {_ACCOUNT}\n")
    cluster.kubectl("apply", "--filename=-", stdin=text)
    cluster.kubectl("create", "serviceaccount", _ACCOUNT, f"--namespace={namespace}")
    binding = ("clusterrolebinding", _ACCOUNT)
    cluster.kubectl("delete", *binding, "--ignore-not-found")
    cluster.kubectl("create", *binding, f"--clusterrole={_ACCOUNT}", f"--serviceaccount={namespace}:{_ACCOUNT}")
    try:
        yield
    finally:
        cluster.kubectl("delete", *binding)
        cluster.kubectl("delete", "clusterrole", _ACCOUNT)


def _unlabelled(stack: Stack) -> list[Object]:
    monitor = {**stack.of_chart("podmonitor"), "metadata": {"name": "unlabelled"}}
    rules = {"groups": [{"name": "unlabelled", "rules": [{"record": "unlabelled", "expr": "vector(1)"}]}]}
    rule = {**stack.of_chart("prometheusrule"), "metadata": {"name": "unlabelled"}, "spec": rules}
    return [monitor, rule]


def test_its_prometheus_scrapes_the_operator_and_a_run(stack: Stack) -> None:
    """Through the chart's two monitors, and not through the one without the label."""
    pools = {stack.pool(kind) for kind in ("servicemonitor", "podmonitor")}

    def up() -> dict[str, Object] | None:
        targets = stack.targets()
        return targets if {pool for pool, target in targets.items() if target["health"] == "up"} == pools else None

    targets = eventually(up, "both targets are up")
    assert targets.keys() == pools
    assert targets[stack.pool("podmonitor")]["labels"]["name"] == "recorded"
    (leads,) = eventually(lambda: stack.ask("query?query=lora_operator_leader")["result"], "what it scraped is stored")
    assert leads["metric"]["namespace"] == stack.target.system


def test_its_prometheus_evaluates_the_charts_rules(stack: Stack) -> None:
    """Each of them, without an error, and not the one without the label."""
    (group,) = stack.of_chart("prometheusrule")["spec"]["groups"]
    wanted = [rule.get("alert") or rule["record"] for rule in group["rules"]]

    def evaluated() -> list[Object] | None:
        groups = stack.ask("rules")["groups"]
        return groups if {rule["health"] for group in groups for rule in group["rules"]} == {"ok"} else None

    (found,) = eventually(evaluated, "the rules are evaluated")
    assert (found["name"], [rule["name"] for rule in found["rules"]]) == (group["name"], wanted)


def test_a_monitor_that_gets_the_label_is_scraped_without_a_restart(stack: Stack) -> None:
    """The reloader brings the new configuration to the process that runs."""
    began = stack.ask("status/runtimeinfo")["startTime"]
    pool = f"podMonitor/{stack.target.system}/unlabelled/0"
    assert pool not in stack.targets()
    (label,) = (f"{key}={value}" for key, value in LABEL.items())
    stack.client.kubectl("label", "podmonitor", "unlabelled", label, stack.system)
    eventually(lambda: pool in stack.targets(), "it is scraped", deadline_s=_RELOAD_S)
    assert stack.ask("status/runtimeinfo")["startTime"] == began
