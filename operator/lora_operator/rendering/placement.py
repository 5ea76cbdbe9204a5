"""Which nodes the pods of a run may go to."""

from collections.abc import Mapping
from typing import Any

from lora_operator.views import names
from lora_operator.views.config import OperatorConfig
from lora_operator.views.request import PodRequest
from lora_trainer.contract.fit.devices import least_label
from lora_trainer.contract.scheduling_fields import PRODUCT_LABEL

Manifest = dict[str, Any]
_OF_THE_IMAGE = ("kubernetes.io/arch", "kubernetes.io/os")
"""Labels that say where an image can run, whatever the pod is for."""

_GPU_FIRST = 100
"""The most that a preference can weigh."""


def training_placement(pod: PodRequest) -> Manifest:
    """Where a run trains, as fields of a pod."""
    wanted = _gpu_labels(pod)
    affinity = {"nodeAffinity": _required(wanted)} if wanted else {}
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
    if not pod.gpus:
        return _given(pod.node_selector, {}, tolerations)
    # What the API server gives to each pod that asks for the resource (ExtendedResourceToleration).
    own = {"key": pod.gpu_resource_name, "operator": "Exists", "effect": "NoSchedule"}
    wanted = _gpu_labels(pod)
    # Not every cluster labels its nodes: without a wish of the run this can only be preferred.
    preference = {"matchExpressions": [{"key": names.GPU_MEMORY_LABEL, "operator": "Exists"}]}
    affinity = _required(wanted) if wanted else _preferred(preference)
    return _given(pod.node_selector, {"nodeAffinity": affinity}, tolerations + ([] if own in tolerations else [own]))


def _gpu_labels(pod: PodRequest) -> list[Manifest]:
    """Only nodes that GPU feature discovery labels with enough memory and with a product that the run takes.

    A label has the MiB that the driver reports, some of what a GPU is sold with missing: see `least_label`.
    """
    wanted: list[Manifest] = []
    if pod.gpu_min_memory_gib is not None:
        least = str(least_label(pod.gpu_min_memory_gib))
        wanted.append({"key": names.GPU_MEMORY_LABEL, "operator": "Gt", "values": [least]})
    if pod.gpu_products:
        wanted.append({"key": PRODUCT_LABEL, "operator": "In", "values": list(pod.gpu_products)})
    return wanted if pod.gpus else []


def _required(expressions: list[Manifest]) -> Manifest:
    terms = {"nodeSelectorTerms": [{"matchExpressions": expressions}]}
    return {"requiredDuringSchedulingIgnoredDuringExecution": terms}


def _preferred(term: Manifest) -> Manifest:
    return {"preferredDuringSchedulingIgnoredDuringExecution": [{"weight": _GPU_FIRST, "preference": term}]}


def _given(selector: Mapping[str, str], affinity: Manifest, tolerations: list[Manifest]) -> Manifest:
    fields = {"nodeSelector": dict(selector), "affinity": affinity, "tolerations": tolerations}
    return {key: value for key, value in fields.items() if value}
