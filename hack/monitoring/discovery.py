"""The labels that Prometheus's own discovery gives to what Kubernetes runs. See
https://prometheus.io/docs/prometheus/latest/configuration/configuration/#kubernetes_sd_config, roles pod and endpoints.
"""

from collections.abc import Iterator, Mapping
from typing import Any

from monitoring.scraping import sanitized

Object = dict[str, Any]
Labels = dict[str, str]


def pod_targets(pod: Object) -> Iterator[Labels]:
    """One for each port of a pod's containers; none as long as it has no address."""
    address = pod["status"].get("podIP")
    if not address:
        return
    for container in pod["spec"]["containers"]:
        for port in container.get("ports", []):
            yield {
                "__address__": f"{address}:{port['containerPort']}",
                **pod_labels(pod),
                **_container_labels(container, port),
            }


def endpoint_targets(service: Object, endpoints: Object, pods: Mapping[str, Object]) -> Iterator[Labels]:
    """One for each port of each address of a Service; `pods` are those of its namespace, by name."""
    metadata = service["metadata"]
    own = {
        "__meta_kubernetes_namespace": metadata["namespace"],
        "__meta_kubernetes_service_name": metadata["name"],
        **_labels("service", metadata.get("labels", {})),
    }
    for subset in endpoints.get("subsets", []):
        states = [(state, one) for state in ("addresses", "notReadyAddresses") for one in subset.get(state, [])]
        for state, address in states:
            for port in subset.get("ports", []):
                found = {
                    "__address__": f"{address['ip']}:{port['port']}",
                    "__meta_kubernetes_endpoint_port_name": port.get("name", ""),
                    "__meta_kubernetes_endpoint_ready": str(state == "addresses").lower(),
                    **own,
                }
                target = address.get("targetRef", {})
                if target:
                    found["__meta_kubernetes_endpoint_address_target_kind"] = target["kind"]
                    found["__meta_kubernetes_endpoint_address_target_name"] = target["name"]
                pod = pods.get(target.get("name", "")) if target.get("kind") == "Pod" else None
                yield {**found, **(_behind(pod, port["port"]) if pod else {})}


def pod_labels(pod: Object) -> Labels:
    """Those that all ports of a pod have."""
    metadata = pod["metadata"]
    return {
        "__meta_kubernetes_namespace": metadata["namespace"],
        "__meta_kubernetes_pod_name": metadata["name"],
        "__meta_kubernetes_pod_phase": pod["status"].get("phase", "Pending"),
        **_labels("pod", metadata.get("labels", {})),
    }


def _behind(pod: Object, number: int) -> Labels:
    """Of the pod that a Service leads to, and of the container whose port it is."""
    for container in pod["spec"]["containers"]:
        for port in container.get("ports", []):
            if port["containerPort"] == number:
                return {**pod_labels(pod), **_container_labels(container, port)}
    return pod_labels(pod)


def _container_labels(container: Object, port: Object) -> Labels:
    return {
        "__meta_kubernetes_pod_container_name": container["name"],
        "__meta_kubernetes_pod_container_port_name": port.get("name", ""),
        "__meta_kubernetes_pod_container_port_number": str(port["containerPort"]),
    }


def _labels(kind: str, labels: Mapping[str, str]) -> Labels:
    found = {}
    for label, value in labels.items():
        found[f"__meta_kubernetes_{kind}_label_{sanitized(label)}"] = value
        found[f"__meta_kubernetes_{kind}_labelpresent_{sanitized(label)}"] = "true"
    return found
