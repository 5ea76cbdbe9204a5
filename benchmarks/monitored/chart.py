"""What the chart tells a Prometheus: its alerts, and how it scrapes."""

import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import yaml
from tests.chart.target import CHART, IMAGES

from localcluster import settings, tools
from localcluster.console import Console

NAMESPACE = "lora-system"
_ON = ("serviceMonitor", "podMonitor", "prometheusRule")
_FLAGS = (*(f"--set=metrics.{what}.enabled=true" for what in _ON), "--set=metrics.prometheusRule.runbookURL=https://x")


@dataclass(frozen=True, slots=True, kw_only=True)
class Chart:
    """Of a release: the labels of its operator's series, and the groups of its rules."""

    operator_labels: Mapping[str, str]
    groups: list[dict[str, Any]]


def rendered() -> Chart:
    """With monitors and alerts, and default values otherwise."""
    helm = tools.ensure(tools.HELM, settings.cache_directory(), Console()) / "helm"
    command = [str(helm), "template", "lora", str(CHART), f"--namespace={NAMESPACE}", *IMAGES, *_FLAGS]
    text = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    of = {document["kind"]: document for document in yaml.safe_load_all(text) if document}
    service = str(of["Service"]["metadata"]["name"])
    return Chart(
        operator_labels={
            "job": service,
            "service": service,
            "namespace": NAMESPACE,
            "pod": "lora-0",
            "container": "operator",
            "endpoint": "http",
        },
        groups=of["PrometheusRule"]["spec"]["groups"],
    )
