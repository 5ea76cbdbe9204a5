"""The names of the fields by which pods find their nodes. Only a cluster reads their values."""

from collections.abc import Mapping
from typing import Any

from lora_trainer.contract.fields import Problem, Reader

TOLERATION_KEYS = ("key", "operator", "value", "effect", "tolerationSeconds")
PRODUCT_LABEL = "nvidia.com/gpu.product"
"""By which GPU feature discovery says which GPUs a node has."""

_Names = Mapping[str, Any]
"""Of an object, or of each object of a list, with those of what is inside; empty for what has no such names."""


def _affinity(term: str, names: _Names, required: _Names) -> _Names:
    preferred = {"weight": {}, term: names}
    return {
        f"{how}DuringSchedulingIgnoredDuringExecution": n
        for how, n in (("required", required), ("preferred", preferred))
    }


_EXPRESSIONS: _Names = {"matchExpressions": dict.fromkeys(("key", "operator", "values"))}
_PODS: _Names = {"topologyKey": {}, "namespaces": {}, "labelSelector": {"matchLabels": {}, **_EXPRESSIONS}}
_SCHEDULING: _Names = {
    "affinity": {
        "nodeAffinity": _affinity("preference", _EXPRESSIONS, {"nodeSelectorTerms": _EXPRESSIONS}),
        **{kind: _affinity("podAffinityTerm", _PODS, _PODS) for kind in ("podAffinity", "podAntiAffinity")},
    },
    "nodeSelector": {},
    "priorityClassName": {},
    "runtimeClassName": {},
    "tolerations": dict.fromkeys(TOLERATION_KEYS),
}


def selected_product(spec: Mapping[str, Any]) -> str | None:
    """The GPU whose nodes alone `scheduling.nodeSelector` takes. What is wrong there is not complained of here."""
    scheduling = Reader(path="spec", document=spec, problems=[]).child("scheduling")
    return scheduling.strings("nodeSelector").get(PRODUCT_LABEL)


def check_names(section: Reader) -> None:
    """Complain of names that `scheduling`, its tolerations and its affinity do not have."""
    _check(section.path, section.document, _SCHEDULING, section.problems)


def _check(path: str, document: object, names: _Names, problems: list[Problem]) -> None:
    if isinstance(document, list):
        for number, item in enumerate(document):
            _check(f"{path}[{number}]", item, names, problems)
    if isinstance(document, Mapping):
        Reader(path=path, document=document, problems=problems, seen=set(names)).finish(strict=True)
        for name, inner in names.items():
            if inner:
                _check(f"{path}.{name}", document.get(name), inner, problems)
