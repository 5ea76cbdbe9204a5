"""A run made from another: `--set lora.rank=32`, a new name, and an output of its own."""

import copy
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from typing import Any

from lora_client.errors import ClientError
from lora_client.views.given import mapping, plain
from lora_trainer.errors import ConfigError
from lora_trainer.manifest_file import read_documents
from lora_trainer.spec.manifest import API_VERSION, KIND

DECIMALS = frozenset(
    {
        "dataset.validationFraction",
        "lora.dropout",
        "training.epochs",
        "training.learningRate",
        "training.warmupRatio",
        "training.weightDecay",
        "training.maxGradNorm",
    }
)
"""Numbers with a fraction, which the API takes as text."""
_EXCLUSIVE = (
    ("lora.layers", "lora.targetModules"),
    ("training.epochs", "training.maxSteps"),
    ("dataset.validationFraction", "dataset.validationUri"),
)
_OF_A_TOOL = re.compile(
    r"(kubectl\.kubernetes\.io|argocd\.argoproj\.io|[\w.]+\.toolkit\.fluxcd\.io|([\w.]+\.)?helm\.sh|"
    r"kopf\.zalando\.org|lora-operator\.io)/.*|app\.kubernetes\.io/(managed-by|instance)"
)
"""Labels and annotations by which a tool knows what it made, and would take a clone for its own."""
_PATH = re.compile(r"[a-zA-Z]\w*(\.[a-zA-Z]\w*)*")
_LONGEST_NAME = 52


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """One `--set`: a path below spec, and its value; None removes the field, whose default then counts."""

    path: str
    value: Any


def parse_change(text: str) -> Change:
    """`lora.rank=32`. Raises `ClientError`."""
    path, equals, value = text.partition("=")
    path = path.strip().removeprefix("spec.")
    if not equals or not _PATH.fullmatch(path):
        raise ClientError(
            f"--set {text} names no field and value: write it as in --set lora.rank=32, and a map with dots or slashes "
            "in its keys as in --set 'scheduling.nodeSelector={nvidia.com/gpu.product: L4}'"
        )
    try:
        read = next(iter(read_documents(value, "the value")), None)
    except ConfigError as error:
        raise ClientError(f"--set {text}: the value is not YAML: write it as in --set lora.rank=32") from error
    if path in DECIMALS and read is not None:
        read = decimal_text(value) or value
    return Change(path=path, value=read)


def changes_to(values: Mapping[str, Any]) -> list[Change]:
    """Changes by Python values. Raises `ClientError`."""
    return [_change_to(path, value) for path, value in mapping("changes", values, 'as in {"lora.rank": 32}').items()]


def _change_to(path: str, value: Any) -> Change:
    path = path.removeprefix("spec.")
    if not _PATH.fullmatch(path):
        raise ClientError(f"{path} names no field: write it as in lora.rank")
    if path in DECIMALS and value is not None:
        value = decimal_text(value) or value
    return Change(path=path, value=plain(value))


def decimal_text(value: object) -> str | None:
    """A number as this API takes it, without an exponent: 2e-4 is 0.0002. None for what is no number."""
    try:
        number = Decimal(str(value).strip().strip("\"'"))
    except InvalidOperation:
        return None
    if not number.is_finite() or abs(number.adjusted()) > 15:
        return None
    plain = f"{number:f}"
    return plain.rstrip("0").rstrip(".") if "." in plain else plain


def clone(resource: Mapping[str, Any], name: str, changes: Sequence[Change]) -> dict[str, Any]:
    """The manifest of a new run: the spec with its changes, and the labels and annotations that people gave it: queue,
    team and cost center count for the new one, too."""
    metadata = resource["metadata"]
    given = {part: _kept(metadata.get(part) or {}) for part in ("labels", "annotations")}
    spec = copy.deepcopy(dict(resource["spec"]))
    spec.pop("suspend", None)
    output = spec.get("output", {})
    # What ends in the old run's name would be taken for its result.
    if str(output.get("uri", "")).rpartition("/")[2] == metadata["name"]:
        output["uri"] = f"{output['uri'].rpartition('/')[0]}/{name}"
    for change in changes:
        _apply(spec, change)
    return {
        "apiVersion": API_VERSION,
        "kind": KIND,
        "metadata": {"name": name, "namespace": metadata["namespace"], **{k: v for k, v in given.items() if v}},
        "spec": spec,
    }


def _kept(given: Mapping[str, str]) -> dict[str, str]:
    return {key: value for key, value in given.items() if not _OF_A_TOOL.fullmatch(key)}


def _apply(spec: dict[str, Any], change: Change) -> None:
    *groups, leaf = change.path.split(".")
    target = spec
    for group in groups:
        inner = target.get(group)
        target[group] = dict(inner) if isinstance(inner, Mapping) else {}
        target = target[group]
    target.pop(leaf, None)
    if change.value is None:
        return
    target[leaf] = change.value
    for pair in _EXCLUSIVE:
        if change.path in pair:
            group, _, other = pair[1 - pair.index(change.path)].partition(".")
            spec[group].pop(other, None)


def free_name(name: str, taken: Collection[str]) -> str:
    """The name with the next number: tone-2 after tone, tone-3 where that is taken."""
    base, dash, number = name.rpartition("-")
    stem = base if dash and number.isdecimal() else name
    count = 2
    while True:
        ending = f"-{count}"
        candidate = stem[: _LONGEST_NAME - len(ending)].rstrip("-") + ending
        if candidate not in taken:
            return candidate
        count += 1
