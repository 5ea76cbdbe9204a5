"""Which nodes the pods of a run may go to."""

from collections.abc import Mapping
from typing import Any

from lora_operator.model import names
from lora_operator.model.config import OperatorConfig
from lora_operator.model.gpu_nodes import gpu_labels, with_labels
from lora_operator.model.request import PodRequest

Manifest = dict[str, Any]
_OS = "kubernetes.io/os"
_OF_THE_IMAGE = ("kubernetes.io/arch", _OS)
"""Labels that say where an image can run, whatever the pod is for."""

_GPU_FIRST = 100
"""The most that a preference can weigh."""


def training_placement(pod: PodRequest) -> Manifest:
    """Where a run trains, as fields of a pod."""
    affinity = with_labels(pod.affinity, _gpu_labels(pod))
    return _given(pod.node_selector, affinity, [dict(toleration) for toleration in pod.tolerations])


def preflight_placement(pod: PodRequest, config: OperatorConfig, *, mounts_claim: bool) -> Manifest:
    """Where a run is looked at, as fields of a pod: near GPUs where it mounts a claim, else wherever its image runs.

    A claim that waits for its first pod is bound to where that runs, and one that a node can have at a time is attached
    there: both must be in reach of the training. The operator's configuration has the last word.
    """
    tolerations = [dict(toleration) for toleration in (*pod.tolerations, *config.preflight_tolerations)]
    if config.preflight_node_selector:
        return _given(config.preflight_node_selector, {}, tolerations)
    if not mounts_claim:
        labels = {key: value for key, value in pod.node_selector.items() if key in _OF_THE_IMAGE}
        return _given(labels, {}, tolerations)
    # Beside which pods a training should run says nothing of what looks at it.
    near = {"nodeAffinity": pod.affinity["nodeAffinity"]} if "nodeAffinity" in pod.affinity else {}
    if not pod.gpus:
        return _given(pod.node_selector, near, tolerations)
    # What the API server gives to each pod that asks for the resource (ExtendedResourceToleration).
    own = {"key": pod.gpu_resource_name, "operator": "Exists", "effect": "NoSchedule"}
    wanted = _gpu_labels(pod)
    # Not every cluster labels its nodes: without a wish of the run this can only be preferred.
    preference = {"matchExpressions": [{"key": names.GPU_MEMORY_LABEL, "operator": "Exists"}]}
    affinity = with_labels(near, wanted) if wanted or near else {"nodeAffinity": _preferred(preference)}
    return _given(pod.node_selector, affinity, tolerations + ([] if own in tolerations else [own]))


def _gpu_labels(pod: PodRequest) -> list[Manifest]:
    return gpu_labels(pod.gpus, pod.gpu_min_memory_gib, pod.gpu_products)


def _preferred(term: Manifest) -> Manifest:
    return {"preferredDuringSchedulingIgnoredDuringExecution": [{"weight": _GPU_FIRST, "preference": term}]}


def _given(selector: Mapping[str, str], affinity: Manifest, tolerations: list[Manifest]) -> Manifest:
    # Every kubelet labels its node so. No default of a run, which its status would keep: a Job is rendered with it.
    fields = {"nodeSelector": {_OS: "linux", **selector}, "affinity": affinity, "tolerations": tolerations}
    return {key: value for key, value in fields.items() if value}
