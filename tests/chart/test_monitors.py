"""The monitors: what Prometheus makes of them, and that the Prometheus Operator's own definitions accept them."""

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from tests.chart.objects import Render, only
from tests.chart.scraping import Labels, pod_target, relabelled, scrape_config
from tests.unit.builders import NAME, NAMESPACE, UID, make_pod_object

from localcluster import settings, tools
from localcluster.client import Client
from localcluster.processes import wait_until
from lora_operator.views.names import PREFLIGHT

ON = {"enabled": True, "additionalLabels": {"release": "prometheus"}}


def target_of(render: Render, port: str = "metrics", **pod: Any) -> Labels | None:
    """The labels of a training pod's series; None where it is not scraped."""
    monitor = only(render(metrics={"podMonitor": ON}), "PodMonitor")
    found = pod_target(make_pod_object(**{"phase": "Running", **pod}), port)
    return relabelled(found, scrape_config(monitor)["relabel_configs"])


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
    assert relabelled(pod_target(pod, "metrics"), scrape_config(monitor)["relabel_configs"]) is None


def test_a_pod_that_exposes_too_much_is_cut_off(render: Render) -> None:
    """Whoever may make a pod with our labels could else fill Prometheus."""
    config = scrape_config(only(render(metrics={"podMonitor": ON}), "PodMonitor"))
    limits = ("sample_limit", "label_limit", "label_name_length_limit", "label_value_length_limit")
    assert [config[limit] for limit in limits] == [500, 40, 128, 512]


def test_prometheus_takes_the_configuration_that_follows_from_the_monitors(render: Render, tmp_path: Path) -> None:
    """By its own checker."""
    objects = render(metrics={"podMonitor": ON, "serviceMonitor": ON}, watch={"namespaces": ["team-a"]})
    configs = [scrape_config(only(objects, kind)) for kind in ("PodMonitor", "ServiceMonitor")]
    file = tmp_path / "prometheus.yaml"
    file.write_text(yaml.safe_dump({"scrape_configs": configs}))
    done = subprocess.run(["promtool", "check", "config", str(file)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert [config["honor_labels"] for config in configs] == [False, True]


KINDS = ("podmonitors", "servicemonitors")


@pytest.fixture
def definitions(control_plane: Client) -> Iterator[Client]:
    """The Prometheus Operator's, from its Go module; removed again, as charts look for them."""
    source = tools.module_folder(tools.PROMETHEUS_OPERATOR, settings.cache_directory())
    names = [f"{kind}.monitoring.coreos.com" for kind in KINDS]
    for kind in KINDS:
        file = source / f"example/prometheus-operator-crd/monitoring.coreos.com_{kind}.yaml"
        control_plane.kubectl("apply", "--server-side", f"--filename={file}")
    try:
        for name in names:
            control_plane.kubectl("wait", f"crd/{name}", "--for=condition=Established", "--timeout=60s")
        yield control_plane
    finally:
        control_plane.kubectl("delete", "crd", *names)


def test_the_prometheus_operators_definitions_accept_the_monitors(
    render: Render, definitions: Client, control_plane_namespace: str
) -> None:
    """Strictly: a field that they do not know, or would drop, is an error."""
    known = ("api-resources", "--api-group=monitoring.coreos.com", "--output=name")
    assert wait_until(lambda: all(kind in definitions.kubectl(*known) for kind in KINDS), timeout_s=60, interval_s=0.2)
    where = f"--namespace={control_plane_namespace}"
    for kind in ("PodMonitor", "ServiceMonitor"):
        monitor = only(render(metrics={"podMonitor": ON, "serviceMonitor": ON}), kind)
        del monitor["metadata"]["namespace"]
        definitions.kubectl("create", "--validate=strict", where, "--filename=-", stdin=json.dumps(monitor))
        assert definitions.get(kind, monitor["metadata"]["name"], where)["spec"] == monitor["spec"]
