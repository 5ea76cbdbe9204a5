"""The files that Prometheus reads, from what the API server has. Pure."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from monitoring.discovery import Labels, endpoint_targets, pod_targets
from monitoring.scraping import scrape_configs

Object = dict[str, Any]
MAIN = "prometheus.json"
"""JSON is YAML, too."""
_ACCOUNT = "/var/run/secrets/kubernetes.io/serviceaccount"
_KUBELET_PORT = 10250
_OF_CADVISOR = "container_(memory_(rss|usage_bytes|working_set_bytes)|spec_memory_limit_bytes|cpu_usage_seconds_total)"


@dataclass(frozen=True, slots=True, kw_only=True)
class Cluster:
    """What is read of the API server, in whatever order."""

    monitors: Sequence[Object] = ()
    rules: Sequence[Object] = ()
    pods: Sequence[Object] = ()
    services: Sequence[Object] = ()
    endpoints: Sequence[Object] = ()
    nodes: Sequence[Object] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Files:
    """`settings` are what Prometheus reads again when it is asked to, `targets` what it watches; `faults` say which
    monitors were left out, and why."""

    settings: Mapping[str, str]
    targets: Mapping[str, str]
    faults: Sequence[str] = ()


def files(cluster: Cluster, folder: str) -> Files:
    """All that lies in a folder, by its name in it."""
    jobs: list[Object] = [_kubelets(folder)]
    found = {"kubelets.json": _groups(_nodes(cluster))}
    faults = []
    for monitor in sorted(cluster.monitors, key=_key):
        try:
            configs = scrape_configs(monitor)
        except ValueError as error:
            faults.append(str(error))
            continue
        name = "-".join(("targets", *_key(monitor))) + ".json"
        jobs += [{**config, "file_sd_configs": [{"files": [f"{folder}/{name}"]}]} for config in configs]
        found[name] = _groups(_targets(monitor, cluster))
    main = {
        "global": {"scrape_interval": "15s", "evaluation_interval": "5s"},
        "alerting": {"alertmanagers": [{"static_configs": [{"targets": ["127.0.0.1:9093"]}]}]},
        "rule_files": [f"{folder}/rules-*.json"],
        "scrape_configs": jobs,
    }
    rules = {"-".join(("rules", *_key(rule))) + ".json": json.dumps(rule["spec"]) for rule in cluster.rules}
    return Files(settings={MAIN: json.dumps(main, indent=1), **rules}, targets=found, faults=faults)


def _key(thing: Object) -> tuple[str, str, str]:
    return thing["kind"], thing["metadata"]["namespace"], thing["metadata"]["name"]


def _targets(monitor: Object, cluster: Cluster) -> Iterator[Labels]:
    selector, own = monitor["spec"].get("namespaceSelector", {}), monitor["metadata"]["namespace"]
    names = None if selector.get("any") else selector.get("matchNames") or [own]
    pods = [pod for pod in cluster.pods if _within(pod, names)]
    if monitor["kind"] == "PodMonitor":
        for pod in pods:
            yield from pod_targets(pod)
        return
    endpoints = {(one["metadata"]["namespace"], one["metadata"]["name"]): one for one in cluster.endpoints}
    for service in cluster.services:
        place = service["metadata"]["namespace"]
        behind = endpoints.get((place, service["metadata"]["name"]))
        if behind and _within(service, names):
            near = {pod["metadata"]["name"]: pod for pod in pods if pod["metadata"]["namespace"] == place}
            yield from endpoint_targets(service, behind, near)


def _within(thing: Object, namespaces: Sequence[str] | None) -> bool:
    return namespaces is None or thing["metadata"]["namespace"] in namespaces


def _kubelets(folder: str) -> Object:
    """Some of cAdvisor's numbers of the containers. Of these kube-prometheus-stack drops the limit of the memory, since
    it has that of kube-state-metrics, which is not here."""
    return {
        "job_name": "kubelet",
        "scheme": "https",
        "metrics_path": "/metrics/cadvisor",
        "honor_labels": True,
        "authorization": {"credentials_file": f"{_ACCOUNT}/token"},
        "tls_config": {"ca_file": f"{_ACCOUNT}/ca.crt"},
        "file_sd_configs": [{"files": [f"{folder}/kubelets.json"]}],
        "metric_relabel_configs": [{"action": "keep", "source_labels": ["__name__"], "regex": _OF_CADVISOR}],
    }


def _nodes(cluster: Cluster) -> Iterator[Labels]:
    for node in cluster.nodes:
        for address in node["status"].get("addresses", []):
            if address["type"] == "InternalIP":
                yield {"__address__": f"{address['address']}:{_KUBELET_PORT}", "node": node["metadata"]["name"]}


def _groups(targets: Iterator[Labels]) -> str:
    return json.dumps([{"targets": [labels.pop("__address__")], "labels": labels} for labels in targets])
