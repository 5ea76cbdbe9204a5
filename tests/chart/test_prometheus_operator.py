"""The real Prometheus Operator, built from its Go module, as a process beside an API server.

It selects the chart's monitors and rules by their labels, and scrapes what the tests' own translation of them does.
"""

import base64
import gzip
import os
import subprocess
from collections.abc import Iterator, Sequence
from functools import partial

import pytest
import yaml
from tests.chart.objects import Render, only
from tests.chart.relabelling import relabelled
from tests.chart.selection import KINDS, METRICS, Object, prometheus
from tests.component.patience import eventually
from tests.conftest import own_control_plane
from tests.unit.builders import make_pod_object

from localcluster import prometheus_operator, settings, tools
from localcluster.client import Client, CommandError
from localcluster.console import Console
from lora_operator.model.names import PREFLIGHT
from monitoring.discovery import Labels, endpoint_targets, pod_labels
from monitoring.scraping import scrape_configs

pytestmark = pytest.mark.soak

PORT = "__meta_kubernetes_pod_container_port_name"
# What does not depend on where the targets are found, and what the tests' translation does not have.
COMPARED = ("job_name", "scrape_interval", "metrics_path", "honor_labels")
LIMITS = ("sample_limit", "label_limit", "label_name_length_limit", "label_value_length_limit")


@pytest.fixture(scope="module")
def control_plane(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Client]:
    """One of its own, with all definitions of the Prometheus Operator, which works there as its administrator."""
    cache, tool = settings.cache_directory(), tools.PROMETHEUS_OPERATOR
    binary = tools.ensure(tool, cache, Console()) / tool.commands[0]
    definitions = tools.module_folder(tool, cache) / prometheus_operator.DEFINITIONS
    log = tmp_path_factory.mktemp("prometheus-operator") / "log"
    with own_control_plane(f"tests-{os.getpid()}-prometheus") as client, log.open("wb") as output:
        client.define(*definitions.glob("*.yaml"))
        command = [str(binary), "--web.listen-address=127.0.0.1:0"]
        with subprocess.Popen(command, env=client.environment, stdout=output, stderr=output) as process:
            try:
                yield client
            finally:
                process.terminate()
        print(log.read_text()[-4000:])


def configuration(client: Client, namespace: str, name: str) -> Object | None:
    """What the Prometheus Operator wrote for a Prometheus; None as long as it has not."""
    try:
        secret = client.get("secret", f"prometheus-{name}", f"--namespace={namespace}")
    except CommandError:
        return None
    packed = base64.b64decode(secret.get("data", {}).get("prometheus.yaml.gz", ""))
    return dict(yaml.safe_load(gzip.decompress(packed))) if packed else None


def rules(client: Client, namespace: str, name: str) -> list[Object]:
    """The groups of rules that it mounts into a Prometheus."""
    found = client.get("configmap", f"prometheus-{name}-rulefiles-0", f"--namespace={namespace}")
    return [group for text in found.get("data", {}).values() for group in yaml.safe_load(text)["groups"]]


def targets(service: Object) -> Iterator[Labels]:
    """Pods that run, wait and are done, of a run, of a preflight and of others, and behind the operator's Service."""
    for pod in (
        make_pod_object(phase="Running", name="tune-x-1-2-abcde", attempt=2, index=3),
        make_pod_object(phase="Running", stage=PREFLIGHT),
        *(make_pod_object(phase=phase) for phase in ("Pending", "Succeeded", "Failed")),
    ):
        for port in ("metrics", "other", ""):
            yield {**pod_labels(pod), PORT: port, "__meta_kubernetes_pod_container_name": "trainer"}
    stranger = make_pod_object(phase="Running")
    stranger["metadata"]["labels"]["app.kubernetes.io/name"] = "other"
    yield {**pod_labels(stranger), PORT: "metrics"}
    target = {"kind": "Pod", "name": "lora-1"}
    addresses = [{"ip": "10.0.0.1", "targetRef": target}, {"ip": "10.0.0.2"}]
    ports = [{"name": "http", "port": 8080}, {"name": "other", "port": 1}]
    pod = {"metadata": {"name": "lora-1", "namespace": "lora-system"}, "status": {"phase": "Running"}}
    container = {"name": "operator", "ports": [{"name": "http", "containerPort": 8080}]}
    behind = {"subsets": [{"addresses": addresses, "ports": ports}]}
    yield from endpoint_targets(service, behind, {"lora-1": {**pod, "spec": {"containers": [container]}}})


def without_shards(config: Object) -> list[Object]:
    """Its relabelling, but for the rules by which several replicas divide targets among themselves."""
    return [rule for rule in config["relabel_configs"] if "__tmp_hash" not in str(rule)]


@pytest.mark.parametrize("listed", [[], ["team-a", "team-b"]], ids=["everywhere", "listed"])
def test_it_selects_monitors_and_rules_by_label_and_reads_them_as_the_tests_do(
    render: Render, control_plane: Client, control_plane_namespace: str, listed: Sequence[str]
) -> None:
    """A Prometheus of that release has both monitors, with the same labels for the same targets, and every rule; one of
    another release has nothing."""
    client, namespace = control_plane, control_plane_namespace
    rendered = render(metrics=METRICS, watch={"namespaces": listed})
    made = {kind: only(rendered, kind) for kind in KINDS}
    for manifest in made.values():
        manifest["metadata"]["namespace"] = namespace
    client.apply(*made.values(), namespace=namespace)
    client.apply(prometheus("ours", "stack"), prometheus("others", "other"), namespace=namespace)
    written = {
        name: eventually(partial(configuration, client, namespace, name), f"{name} has a configuration")
        for name in ("ours", "others")
    }
    assert written["others"].get("scrape_configs", []) == []
    assert rules(client, namespace, "ours") == made["PrometheusRule"]["spec"]["groups"]

    real = {config["job_name"]: config for config in written["ours"]["scrape_configs"]}
    ours = {config["job_name"]: config for kind in KINDS[:2] for config in scrape_configs(made[kind])}
    assert real.keys() == ours.keys()
    scraped = 0
    for job, config in ours.items():
        fields = [field for field in (*COMPARED, *LIMITS) if field in config]
        assert {field: real[job].get(field) for field in fields} == {field: config[field] for field in fields}
        for target in targets(only(rendered, "Service")):
            found = relabelled(target, config["relabel_configs"])
            assert relabelled(target, without_shards(real[job])) == found
            scraped += found is not None
    assert scraped == 4
    (discovery,) = real[f"podMonitor/{namespace}/{made['PodMonitor']['metadata']['name']}/0"]["kubernetes_sd_configs"]
    assert discovery.get("namespaces", {}).get("names", []) == listed
