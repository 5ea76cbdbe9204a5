"""The monitors: what Prometheus makes of them; the Prometheus Operator's own definitions accept them and the alerts."""

import json
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from tests.chart.objects import Render, only
from tests.chart.relabelling import relabelled
from tests.unit.builders import NAME, NAMESPACE, UID, make_pod_object

from localcluster import prometheus_operator, settings, tools
from localcluster.client import Client
from lora_operator.model.names import PREFLIGHT
from monitoring.discovery import Labels, endpoint_targets, pod_labels
from monitoring.scraping import scrape_configs

ON = {"enabled": True, "additionalLabels": {"release": "prometheus"}}
RULES = {**ON, "runbookURL": "https://git.example.com/docs/runbooks"}


def target_of(render: Render, port: str = "metrics", **pod: Any) -> Labels | None:
    """The labels of a training pod's series; None where it is not scraped."""
    monitor = only(render(metrics={"podMonitor": ON}), "PodMonitor")
    return scraped(make_pod_object(**{"phase": "Running", **pod}), port, monitor)


def scraped(pod: dict[str, Any], port: str, monitor: dict[str, Any]) -> Labels | None:
    (config,) = scrape_configs(monitor)
    target = {**pod_labels(pod), "__meta_kubernetes_pod_container_port_name": port}
    return relabelled(target, config["relabel_configs"])


def test_a_pods_series_carry_the_runs_name_and_join_with_the_operators(render: Render) -> None:
    """And which attempt, which part and which node it was; nothing else of the pod's labels."""
    assert target_of(render, name="tune-x-1-2-abcde", attempt=2, index=3) == {
        "job": "lora-system/lora-trainers",
        "namespace": NAMESPACE,
        "pod": "tune-x-1-2-abcde",
        "endpoint": "metrics",
        "name": NAME,
        "uid": UID,
        "attempt": "2",
        "role": "train",
        "completion_index": "3",
    }


@pytest.mark.parametrize(
    ("port", "pod"),
    [
        ("metrics", {"phase": "Pending"}),
        ("metrics", {"phase": "Succeeded"}),
        ("metrics", {"phase": "Failed"}),
        ("other", {}),
        ("", {"stage": PREFLIGHT}),
    ],
)
def test_only_pods_that_run_and_expose_something_are_scraped(render: Render, port: str, pod: dict[str, Any]) -> None:
    """Prometheus would else call every one that is done a target that is down."""
    assert target_of(render, port, **pod) is None


def test_pods_of_others_are_not_scraped(render: Render) -> None:
    """The selector is the label of ours."""
    monitor = only(render(metrics={"podMonitor": ON}), "PodMonitor")
    pod = make_pod_object(phase="Running")
    pod["metadata"]["labels"]["app.kubernetes.io/name"] = "other"
    assert scraped(pod, "metrics", monitor) is None


def test_the_alerts_read_the_operators_series_by_the_job_that_the_service_monitor_gives_them(render: Render) -> None:
    """It is named after the Service. By another name nobody leads, and somebody is woken for ever."""
    rules = {"enabled": True, "runbookURL": "https://git.example.com/runbooks"}
    objects = render(metrics={"serviceMonitor": ON, "prometheusRule": rules})
    service = only(objects, "Service")
    behind = {"subsets": [{"addresses": [{"ip": "10.0.0.1"}], "ports": [{"name": "http", "port": 8080}]}]}
    (target,) = endpoint_targets(service, behind, {})
    (config,) = scrape_configs(only(objects, "ServiceMonitor"))
    found = relabelled(target, config["relabel_configs"])
    (group,) = only(objects, "PrometheusRule")["spec"]["groups"]
    jobs = re.findall(r'job="([^"]*)"', str([rule["expr"] for rule in group["rules"]]))
    assert found is not None
    assert set(jobs) == {found["job"]}


def test_a_pod_that_exposes_too_much_is_cut_off(render: Render) -> None:
    """Whoever may make a pod with our labels could else fill Prometheus."""
    (config,) = scrape_configs(only(render(metrics={"podMonitor": ON}), "PodMonitor"))
    limits = ("sample_limit", "label_limit", "label_name_length_limit", "label_value_length_limit")
    assert [config[limit] for limit in limits] == [500, 40, 128, 512]


def test_prometheus_takes_the_configuration_that_follows_from_the_monitors(render: Render, tmp_path: Path) -> None:
    """By its own checker."""
    objects = render(metrics={"podMonitor": ON, "serviceMonitor": ON}, watch={"namespaces": ["team-a"]})
    configs = [config for kind in ("PodMonitor", "ServiceMonitor") for config in scrape_configs(only(objects, kind))]
    file = tmp_path / "prometheus.yaml"
    file.write_text(yaml.safe_dump({"scrape_configs": configs}))
    done = subprocess.run(["promtool", "check", "config", str(file)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert [config["honor_labels"] for config in configs] == [False, True]


KINDS = {"PodMonitor": "podmonitors", "ServiceMonitor": "servicemonitors", "PrometheusRule": "prometheusrules"}


@pytest.fixture
def definitions(control_plane: Client) -> Iterator[Client]:
    """The Prometheus Operator's, from its Go module; removed again, as charts look for them."""
    module = tools.module_folder(tools.PROMETHEUS_OPERATOR, settings.cache_directory())
    names = [f"{plural}.monitoring.coreos.com" for plural in KINDS.values()]
    try:
        folder = module / prometheus_operator.DEFINITIONS
        control_plane.define(*(folder / f"monitoring.coreos.com_{plural}.yaml" for plural in KINDS.values()))
        yield control_plane
    finally:
        control_plane.kubectl("delete", "crd", *names)


def test_the_prometheus_operators_definitions_accept_monitors_and_alerts(
    render: Render, definitions: Client, control_plane_namespace: str
) -> None:
    """Strictly: a field that they do not know, or would drop, is an error."""
    create = ("create", "--dry-run=server", "--validate=strict", "--output=json", "--filename=-")
    metrics = {"podMonitor": ON, "serviceMonitor": ON, "prometheusRule": RULES}
    for namespaces in ([], ["team-a", "team-b"]):
        objects = render(metrics=metrics, watch={"namespaces": namespaces})
        for kind in KINDS:
            made = only(objects, kind)
            made["metadata"]["namespace"] = control_plane_namespace
            stored = json.loads(definitions.kubectl(*create, stdin=json.dumps(made)))
            assert stored["spec"] == made["spec"]
