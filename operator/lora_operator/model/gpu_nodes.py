"""Which nodes have the GPUs that a run wants, by their labels."""

from collections.abc import Mapping, Sequence
from typing import Any

from lora_operator.model.names import GPU_MEMORY_LABEL
from lora_trainer.spec.gpus import least_label
from lora_trainer.spec.resource import PRODUCT_LABEL

Expressions = list[dict[str, Any]]
_REQUIRED = "requiredDuringSchedulingIgnoredDuringExecution"


def gpu_labels(gpus: int, min_memory_gib: int | None, products: Sequence[str]) -> Expressions:
    """Only nodes that GPU feature discovery labels with enough memory and with a product that the run takes.

    A label has the MiB that the driver reports, some of what a GPU is sold with missing: see `least_label`.
    """
    wanted: Expressions = []
    if min_memory_gib is not None:
        wanted.append({"key": GPU_MEMORY_LABEL, "operator": "Gt", "values": [str(least_label(min_memory_gib))]})
    if products:
        wanted.append({"key": PRODUCT_LABEL, "operator": "In", "values": list(products)})
    return wanted if gpus else []


def with_labels(affinity: Mapping[str, Any], wanted: Expressions) -> dict[str, Any]:
    """The affinity with more that a node must have: in each of its terms, of which a node has to meet one."""
    if not wanted:
        return dict(affinity)
    node = dict(affinity.get("nodeAffinity") or {})
    terms = (node.get(_REQUIRED) or {}).get("nodeSelectorTerms") or [{}]
    all_of = [{**term, "matchExpressions": [*(term.get("matchExpressions") or []), *wanted]} for term in terms]
    return {**affinity, "nodeAffinity": {**node, _REQUIRED: {"nodeSelectorTerms": all_of}}}
