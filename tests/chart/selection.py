"""What the Prometheus Operator selects by a label: the chart's monitors and rules, and a Prometheus that wants them."""

from typing import Any

Object = dict[str, Any]
KINDS = ("PodMonitor", "ServiceMonitor", "PrometheusRule")
LABEL = {"release": "stack"}
_ON = {"enabled": True, "additionalLabels": LABEL}
METRICS = {
    "podMonitor": _ON,
    "serviceMonitor": _ON,
    "prometheusRule": {**_ON, "runbookURL": "https://git.example.com/docs/runbooks"},
}
"""Of the chart's values."""


def prometheus(name: str, release: str, **spec: Any) -> Object:
    """One that selects, in its own namespace, what has a release's label."""
    selector = {"matchLabels": {"release": release}}
    fields = ("serviceMonitorSelector", "podMonitorSelector", "ruleSelector")
    return {
        "apiVersion": "monitoring.coreos.com/v1",
        "kind": "Prometheus",
        "metadata": {"name": name},
        "spec": {**dict.fromkeys(fields, selector), **spec},
    }
