"""What the Prometheus Operator makes of a PodMonitor or a ServiceMonitor, by its documentation alone.

Scrape configurations of Prometheus, without the discovery of targets. See
https://prometheus-operator.dev/docs/api-reference/api/ and
https://prometheus.io/docs/prometheus/latest/configuration/configuration/#relabel_config.
"""

import re
from collections.abc import Iterator
from typing import Any

Object = dict[str, Any]
_LIMITS = {
    "sampleLimit": "sample_limit",
    "labelLimit": "label_limit",
    "labelNameLengthLimit": "label_name_length_limit",
    "labelValueLengthLimit": "label_value_length_limit",
}
_RULE = {"sourceLabels": "source_labels", "targetLabel": "target_label"}
_KNOWN = {"selector", "namespaceSelector", "podTargetLabels", "podMetricsEndpoints", "endpoints", *_LIMITS}
_KNOWN_OF_ENDPOINTS = {"port", "path", "interval", "honorLabels", "relabelings", "filterRunning"}
_TARGET = ["__meta_kubernetes_endpoint_address_target_kind", "__meta_kubernetes_endpoint_address_target_name"]


def scrape_configs(monitor: Object) -> list[Object]:
    """One for each endpoint of a monitor. Raises ValueError for a field that is not translated."""
    pods = monitor["kind"] == "PodMonitor"
    spec, metadata = monitor["spec"], monitor["metadata"]
    name = f"{metadata['namespace']}/{metadata['name']}"
    endpoints = spec["podMetricsEndpoints" if pods else "endpoints"]
    fields = [*(spec.keys() - _KNOWN), *(spec["selector"].keys() - {"matchLabels"})]
    fields += [field for endpoint in endpoints for field in endpoint.keys() - _KNOWN_OF_ENDPOINTS]
    if fields:
        raise ValueError(f"{monitor['kind']} {name} has {', '.join(sorted(fields))}, which is not translated here")
    job = "podMonitor" if pods else "serviceMonitor"
    return [
        {
            "job_name": f"{job}/{name}/{number}",
            **({"scrape_interval": endpoint["interval"]} if "interval" in endpoint else {}),
            "metrics_path": endpoint.get("path", "/metrics"),
            "honor_labels": endpoint.get("honorLabels", False),
            "relabel_configs": [
                *_found(spec, endpoint, "pod" if pods else "service"),
                *(_of_a_pod(name) if pods else _of_a_service()),
                *(_carried(label) for label in spec.get("podTargetLabels", [])),
                {"target_label": "endpoint", "replacement": endpoint["port"]},
                *map(_written, endpoint.get("relabelings", [])),
            ],
            **{ours: spec[theirs] for theirs, ours in _LIMITS.items() if theirs in spec},
        }
        for number, endpoint in enumerate(endpoints)
    ]


def sanitized(label: str) -> str:
    """A label's name as Prometheus takes it."""
    return re.sub(r"[^a-zA-Z0-9_]", "_", label)


def _found(spec: Object, endpoint: Object, kind: str) -> Iterator[Object]:
    """Which of all targets are the monitor's."""
    if endpoint.get("filterRunning", True):
        phase = "__meta_kubernetes_pod_phase"
        yield {"action": "drop", "source_labels": [phase], "regex": "(Failed|Succeeded)"}
    for label, value in spec["selector"].get("matchLabels", {}).items():
        names = [f"__meta_kubernetes_{kind}_{what}_{sanitized(label)}" for what in ("label", "labelpresent")]
        yield {"action": "keep", "source_labels": names, "regex": f"({re.escape(value)});true"}
    port = "pod_container" if kind == "pod" else "endpoint"
    yield {"action": "keep", "source_labels": [f"__meta_kubernetes_{port}_port_name"], "regex": endpoint["port"]}


def _of_a_pod(name: str) -> Iterator[Object]:
    for source in ("namespace", "pod_container_name", "pod_name"):
        label = {"pod_container_name": "container", "pod_name": "pod"}.get(source, source)
        yield {"source_labels": [f"__meta_kubernetes_{source}"], "target_label": label}
    yield {"target_label": "job", "replacement": name}


def _of_a_service() -> Iterator[Object]:
    for kind in ("Node", "Pod"):
        yield {"source_labels": _TARGET, "regex": f"{kind};(.*)", "target_label": kind.lower()}
    for source in ("namespace", "service_name", "pod_name", "pod_container_name"):
        label = {"pod_container_name": "container"}.get(source, source.removesuffix("_name"))
        yield {"source_labels": [f"__meta_kubernetes_{source}"], "target_label": label}
    yield {"source_labels": ["__meta_kubernetes_service_name"], "target_label": "job"}


def _written(rule: Object) -> Object:
    """A relabelling by Prometheus's own names."""
    return {_RULE.get(key, key): value for key, value in rule.items()}


def _carried(label: str) -> Object:
    source = f"__meta_kubernetes_pod_label_{sanitized(label)}"
    return {"source_labels": [source], "target_label": sanitized(label), "regex": "(.+)"}
