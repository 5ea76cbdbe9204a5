"""The local cluster's Prometheus: what it is given to read, from what the API server has."""

import json
from typing import Any

import pytest
import yaml
from tests.chart import promql
from tests.chart.relabelling import relabelled

from localcluster import prometheus
from monitoring import configuration, scraping
from monitoring.configuration import Cluster


def named(kind: str, name: str, namespace: str, spec: dict[str, Any], **labels: str) -> dict[str, Any]:
    return {"kind": kind, "metadata": {"name": name, "namespace": namespace, "labels": labels}, "spec": spec}


def pod(name: str, namespace: str, address: str = "10.0.0.1") -> dict[str, Any]:
    port = {"name": "metrics", "containerPort": 9090}
    made = named("Pod", name, namespace, {"containers": [{"name": "trainer", "ports": [port]}]}, app="trainer")
    return {**made, "status": {"phase": "Running", "podIP": address}}


def pod_monitor(**selector: Any) -> dict[str, Any]:
    spec = {"selector": {"matchLabels": {"app": "trainer"}}, "podMetricsEndpoints": [{"port": "metrics"}]}
    return named("PodMonitor", "trainers", "system", {**spec, "namespaceSelector": selector})


def targets(cluster: Cluster, kind: str, name: str = "trainers") -> list[dict[str, Any]]:
    found = configuration.files(cluster, "/followed").targets[f"targets-{kind}-system-{name}.json"]
    return [{"at": group["targets"], **group["labels"]} for group in json.loads(found)]


@pytest.mark.parametrize(
    ("selector", "want"),
    [({"any": True}, ["a", "b"]), ({"matchNames": ["team-b"]}, ["b"]), ({}, [])],
    ids=["all namespaces", "a named one", "its own, which has none"],
)
def test_a_pod_monitor_finds_pods_of_its_namespaces(selector: dict[str, Any], want: list[str]) -> None:
    """Those that have an address already."""
    pods = [pod("a", "team-a"), pod("b", "team-b"), pod("waits", "team-b", "")]
    found = targets(Cluster(monitors=[pod_monitor(**selector)], pods=pods), "PodMonitor")
    assert [target["__meta_kubernetes_pod_name"] for target in found] == want
    assert all(target["at"] == ["10.0.0.1:9090"] for target in found)


def test_a_service_monitor_finds_what_is_behind_its_services() -> None:
    """With the Service's labels, and those of the pod and the container that answers."""
    endpoint = {"port": "http"}
    monitor = named("ServiceMonitor", "op", "system", {"selector": {}, "endpoints": [endpoint]})
    service = named("Service", "op", "system", {}, app="operator")
    address = {"ip": "10.0.0.1", "targetRef": {"kind": "Pod", "name": "op-1"}}
    behind = {
        **named("Endpoints", "op", "system", {}),
        "subsets": [{"addresses": [address], "ports": [{"name": "http", "port": 9090}]}],
    }
    cluster = Cluster(monitors=[monitor], services=[service], endpoints=[behind], pods=[pod("op-1", "system")])
    (found,) = targets(cluster, "ServiceMonitor", "op")
    assert found["at"] == ["10.0.0.1:9090"]
    assert found["__meta_kubernetes_service_label_app"] == "operator"
    assert found["__meta_kubernetes_pod_label_app"] == "trainer"
    assert found["__meta_kubernetes_pod_container_name"] == "trainer"
    assert found["__meta_kubernetes_endpoint_port_name"] == "http"


def test_what_is_not_translated_is_left_out_and_named() -> None:
    """A selector that is not understood would else select everything."""
    monitor = pod_monitor(any=True)
    monitor["spec"]["selector"]["matchExpressions"] = [{"key": "a", "operator": "Exists"}]
    found = configuration.files(Cluster(monitors=[monitor]), "/followed")
    assert found.faults == ["PodMonitor system/trainers has matchExpressions, which is not translated here"]
    assert [job["job_name"] for job in json.loads(found.settings[configuration.MAIN])["scrape_configs"]] == ["kubelet"]


def test_of_cadvisor_only_the_memory_limit_is_kept_that_kube_prometheus_stack_drops() -> None:
    """So that what has data here has it there, too. There kube-state-metrics has the limit, and is not here."""
    main = json.loads(configuration.files(Cluster(), "/followed").settings[configuration.MAIN])
    (rule,) = main["scrape_configs"][0]["metric_relabel_configs"]
    ends = ("memory_rss", "memory_working_set_bytes", "memory_swap", "memory_mapped_file", "spec_memory_limit_bytes")
    names = [f"container_{end}" for end in (*ends, "cpu_usage_seconds_total", "spec_cpu_quota", "threads_max")]
    kept = {name for name in names if relabelled({"__name__": name, "a": "b"}, [rule]) is not None}
    assert {name for name in kept if promql.DROPPED.fullmatch(name)} == {"container_spec_memory_limit_bytes"}
    assert "container_memory_rss" in kept


def test_each_job_reads_the_targets_of_its_monitor_and_rules_are_loaded() -> None:
    """By files in one folder."""
    rule = named("PrometheusRule", "op", "system", {"groups": [{"name": "g", "rules": []}]})
    found = configuration.files(Cluster(monitors=[pod_monitor()], rules=[rule]), "/followed")
    main = json.loads(found.settings[configuration.MAIN])
    files = [job["file_sd_configs"][0]["files"][0].removeprefix("/followed/") for job in main["scrape_configs"]]
    assert sorted(files) == sorted(found.targets)
    assert json.loads(found.settings["rules-PrometheusRule-system-op.json"]) == rule["spec"]
    assert main["rule_files"] == ["/followed/rules-*.json"]


def test_a_service_monitors_job_is_the_service() -> None:
    """As the Prometheus Operator says; a PodMonitor's is the monitor."""
    monitor = named("ServiceMonitor", "op", "system", {"selector": {}, "endpoints": [{"port": "http"}]})
    (config,) = scraping.scrape_configs(monitor)
    jobs = [rule for rule in config["relabel_configs"] if rule.get("target_label") == "job"]
    assert jobs == [{"source_labels": ["__meta_kubernetes_service_name"], "target_label": "job"}]


def test_the_manifests_name_the_image_and_keep_to_the_restricted_standard() -> None:
    """No privilege, and no right to change anything."""
    made = list(yaml.safe_load_all(prometheus.manifests("registry/prometheus:1")))
    by_kind = {item["kind"]: item for item in made}
    spec = by_kind["Deployment"]["spec"]["template"]["spec"]
    containers = [*spec["initContainers"], *spec["containers"]]
    assert {container["image"] for container in containers} == {"registry/prometheus:1"}
    assert all(container["securityContext"]["capabilities"] == {"drop": ["ALL"]} for container in containers)
    assert by_kind["Namespace"]["metadata"]["labels"]["pod-security.kubernetes.io/enforce"] == "restricted"
    assert {verb for rule in by_kind["ClusterRole"]["rules"] for verb in rule["verbs"]} == {"get", "list"}
    service = by_kind["Service"]
    assert (service["metadata"]["namespace"], service["metadata"]["name"]) == (prometheus.NAMESPACE, prometheus.NAME)
    assert [port["port"] for port in service["spec"]["ports"]] == list(prometheus.PORTS.values())
