"""The names of the fields by which pods find their nodes. Only a cluster reads their values."""

from collections.abc import Mapping
from typing import Any

from lora_trainer.contract.fields import Reader

TOLERATION_KEYS = ("key", "operator", "value", "effect", "tolerationSeconds")
_OTHERS = ("nodeSelector", "priorityClassName")
PRODUCT_LABEL = "nvidia.com/gpu.product"
"""By which GPU feature discovery says which GPUs a node has."""


def selected_product(spec: Mapping[str, Any]) -> str | None:
    """The GPU whose nodes alone `scheduling.nodeSelector` takes. What is wrong there is not complained of here."""
    scheduling = Reader(path="spec", document=spec, problems=[]).child("scheduling")
    return scheduling.strings("nodeSelector").get(PRODUCT_LABEL)


def check_names(section: Reader) -> None:
    """Complain of names that `scheduling` and its tolerations do not have."""
    tolerations = section.get("tolerations")
    for number, toleration in enumerate(tolerations if isinstance(tolerations, list) else ()):
        if isinstance(toleration, Mapping):
            path = section.path_of(f"tolerations[{number}]")
            Reader(path=path, document=toleration, problems=section.problems, seen=set(TOLERATION_KEYS)).finish(
                strict=True
            )
    section.seen.update(_OTHERS)
    section.finish(strict=True)
