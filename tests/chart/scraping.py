"""What the Prometheus Operator makes of a PodMonitor or a ServiceMonitor, by its documentation alone.

A scrape configuration of Prometheus, without the discovery of targets, which Debian's Prometheus is built without; and
what the relabelling leaves of a target that Kubernetes describes. See
https://prometheus-operator.dev/docs/api-reference/api/ and
https://prometheus.io/docs/prometheus/latest/configuration/configuration/#relabel_config.
"""

import re
from collections.abc import Iterable, Mapping
from typing import Any

Object = dict[str, Any]
Labels = dict[str, str]
_LIMITS = {
    "sampleLimit": "sample_limit",
    "labelLimit": "label_limit",
    "labelNameLengthLimit": "label_name_length_limit",
    "labelValueLengthLimit": "label_value_length_limit",
}
_RULE = {"sourceLabels": "source_labels", "targetLabel": "target_label"}


def scrape_config(monitor: Object) -> Object:
    """Of the first endpoint of a monitor."""
    pods = monitor["kind"] == "PodMonitor"
    spec, metadata = monitor["spec"], monitor["metadata"]
    endpoint = spec["podMetricsEndpoints" if pods else "endpoints"][0]
    kind = "pod" if pods else "service"
    port = "__meta_kubernetes_pod_container_port_name" if pods else "__meta_kubernetes_endpoint_port_name"
    rules = [
        *(_selected(kind, label, value) for label, value in spec["selector"].get("matchLabels", {}).items()),
        {"action": "keep", "source_labels": [port], "regex": endpoint["port"]},
        {"source_labels": ["__meta_kubernetes_namespace"], "target_label": "namespace"},
        {"source_labels": ["__meta_kubernetes_pod_name"], "target_label": "pod"},
        {"target_label": "job", "replacement": f"{metadata['namespace']}/{metadata['name']}"},
        {"target_label": "endpoint", "replacement": endpoint["port"]},
        *(_carried(label) for label in spec.get("podTargetLabels", [])),
        *({_RULE.get(key, key): value for key, value in rule.items()} for rule in endpoint.get("relabelings", [])),
    ]
    if pods and endpoint.get("filterRunning", True):
        ended = {"action": "drop", "source_labels": ["__meta_kubernetes_pod_phase"], "regex": "(Failed|Succeeded)"}
        rules.insert(0, ended)
    return {
        "job_name": f"{monitor['kind']}/{metadata['namespace']}/{metadata['name']}/0",
        "scrape_interval": endpoint["interval"],
        "metrics_path": endpoint["path"],
        "honor_labels": endpoint.get("honorLabels", False),
        "relabel_configs": rules,
        **{ours: spec[theirs] for theirs, ours in _LIMITS.items() if theirs in spec},
    }


def pod_target(pod: Object, port: str) -> Labels:
    """The labels that Prometheus's discovery gives a pod's port."""
    metadata, phase = pod["metadata"], pod["status"]["phase"]
    found = {
        "__meta_kubernetes_namespace": metadata["namespace"],
        "__meta_kubernetes_pod_name": metadata["name"],
        "__meta_kubernetes_pod_phase": phase,
        "__meta_kubernetes_pod_container_port_name": port,
    }
    for label, value in metadata["labels"].items():
        found[f"__meta_kubernetes_pod_label_{sanitized(label)}"] = value
        found[f"__meta_kubernetes_pod_labelpresent_{sanitized(label)}"] = "true"
    return found


def relabelled(labels: Mapping[str, str], rules: Iterable[Mapping[str, Any]]) -> Labels | None:
    """What is left of a target's labels; None for one that is dropped."""
    left = dict(labels)
    for rule in rules:
        action, pattern = rule.get("action", "replace"), re.compile(str(rule.get("regex", "(.*)")))
        replacement = re.sub(r"\$\{?(\d)\}?", r"\\\1", str(rule.get("replacement", "$1")))
        if action in ("labelmap", "labeldrop"):
            matches = [(name, match) for name in left if (match := pattern.fullmatch(name))]
            for name, match in matches:
                if action == "labeldrop":
                    del left[name]
                else:
                    left[match.expand(replacement)] = left[name]
            continue
        found = pattern.fullmatch(";".join(left.get(name, "") for name in rule.get("source_labels", ())))
        if action == "replace" and found:
            left[rule["target_label"]] = found.expand(replacement)
        if (action == "keep" and not found) or (action == "drop" and found):
            return None
    return {name: value for name, value in left.items() if not name.startswith("__") and value}


def sanitized(label: str) -> str:
    """A label's name as Prometheus takes it."""
    return re.sub(r"[^a-zA-Z0-9_]", "_", label)


def _selected(kind: str, label: str, value: str) -> Object:
    names = [f"__meta_kubernetes_{kind}_{what}_{sanitized(label)}" for what in ("label", "labelpresent")]
    return {"action": "keep", "source_labels": names, "regex": f"({re.escape(value)});true"}


def _carried(label: str) -> Object:
    source = f"__meta_kubernetes_pod_label_{sanitized(label)}"
    return {"source_labels": [source], "target_label": sanitized(label), "regex": "(.+)"}
