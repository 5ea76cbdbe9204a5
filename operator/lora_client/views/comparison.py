"""Two runs beside each other: what differs, and whose adapter has the lower loss."""

from collections.abc import Iterator, Mapping
from typing import Any

from lora_client.views.listing import aligned
from lora_client.views.resources import Object, name_of, part, state, text
from lora_client.views.summary import with_error

_AFTERWARDS = ("image", "modelRevision", "datasetFingerprint")
_COMPUTED = {
    "quantization": "quantization",
    "computeDtype": "training.precision",
    "optimizer": "training.optimizer",
    "packing": "training.packing",
    "device": "",
}
"""What the trainer found out where the spec's field, the value here, left it open."""
_SAME_ROWS = ("datasetFingerprint", "validationFraction", "maxValidationRows", "maxSequenceLength", "lossOn")
"""What decides, with the seed, which rows are held out and which of their tokens count."""
_COUNTS = ("trainTokens", "targetTokens", "longestTokens")
"""What two tokenizers or chat templates do not agree on."""


def compare(first: Object, second: Object) -> dict[str, Any]:
    """The comparison as plain values. `difference` is the second's loss less the first's, in nats per token."""
    return {
        "runs": [_run(first), _run(second)],
        "differs": [
            {"field": field, "values": [one, other]}
            for field, one, other in [*_differences(_settings(first), _settings(second)), *_computed(first, second)]
        ],
        **_losses(first, second),
    }


def _run(resource: Object) -> dict[str, Any]:
    results = part(resource, "status", "results")
    keys = ("evalLossBefore", "evalLossAfter", "evalLossAfterStandardError", "tokensPerSecond", "durationSeconds")
    return {
        "name": name_of(resource),
        "state": state(resource),
        **{key: results[key] for key in keys if key in results},
    }


def _settings(resource: Object) -> dict[str, str]:
    """What was asked for, and what a run really used where it says so."""
    resolved = part(resource, "status", "resolved")
    settings = dict(_flat(part(resource, "spec"), ""))
    if "alpha" in resolved:
        settings.setdefault("lora.alpha", str(resolved["alpha"]))
    return settings | {f"resolved.{key}": str(resolved[key]) for key in _AFTERWARDS if key in resolved}


def _flat(value: object, path: str) -> Iterator[tuple[str, str]]:
    if isinstance(value, Mapping) and value:
        for key, inner in value.items():
            yield from _flat(inner, f"{path}.{key}" if path else str(key))
    elif not isinstance(value, Mapping):
        yield path, ", ".join(map(str, value)) if isinstance(value, list) else str(value)


def _differences(one: Mapping[str, str], other: Mapping[str, str]) -> Iterator[tuple[str, str, str]]:
    for field in [*one, *(field for field in other if field not in one)]:
        pair = one.get(field, ""), other.get(field, "")
        if pair[0] != pair[1]:
            yield field, *pair


def _computed(first: Object, second: Object) -> Iterator[tuple[str, str, str]]:
    """What the trainer of each found out, once both have; not again what the spec says already."""
    one, other = part(first, "status", "resolved"), part(second, "status", "resolved")
    if "device" not in one or "device" not in other:
        return
    asked = {field: pair for field, *pair in _differences(*(dict(_flat(part(r, "spec"), "")) for r in (first, second)))}
    for key, field in _COMPUTED.items():
        pair = str(one.get(key, "")), str(other.get(key, ""))
        if pair[0] != pair[1] and (field not in asked or "Auto" in asked[field]):
            yield f"resolved.{key}", *pair


def _losses(first: Object, second: Object) -> dict[str, Any]:
    one, other = part(first, "status", "results"), part(second, "status", "results")
    if "evalLossAfter" not in one or "evalLossAfter" not in other:
        return {"note": "the losses cannot be compared: not both runs have results yet"}
    if not (one.get("heldOut", True) and other.get("heldOut", True)):
        return {"note": "the losses cannot be compared: not both runs held rows out"}
    if not _same_rows(first, second):
        return {"note": "the losses cannot be compared: the runs were evaluated on different rows or tokens"}
    difference = float(other["evalLossAfter"]) - float(one["evalLossAfter"])
    error = _most_error(one, other)
    return {"difference": round(difference, 6), **({} if error is None else {"standardErrorAtMost": round(error, 6)})}


def _same_rows(first: Object, second: Object) -> bool:
    one, other = part(first, "status", "resolved"), part(second, "status", "resolved")
    dataset = part(first, "spec", "dataset")
    same = bool(one.get("datasetFingerprint")) and all(one.get(key) == other.get(key) for key in _SAME_ROWS)
    drawn = "validationUri" not in dataset or "maxValidationRows" in one
    seeded = not drawn or "splitSeed" in dataset or one.get("seed") == other.get("seed")
    return same and seeded and dataset == part(second, "spec", "dataset") and _same_tokens(first, second)


def _same_tokens(first: Object, second: Object) -> bool:
    """Whether a token is the same of both: of one model, or as many of the same rows; of others nobody knows it."""
    if all(
        text(first, *path) == text(second, *path)
        for path in (("spec", "model", "uri"), ("status", "resolved", "modelRevision"))
    ):
        return True
    one, other = part(first, "status", "dataset"), part(second, "status", "dataset")
    return all(key in one and one[key] == other.get(key) for key in _COUNTS)


def _most_error(one: Mapping[str, Any], other: Mapping[str, Any]) -> float | None:
    """The largest standard error that the difference of two means over the same rows can have.

    How the two losses vary together from row to row is not stored, so the triangle inequality bounds it: of the losses
    themselves and, where both runs began from the same base loss b, of the improvements, since
    a2 - a1 = (b - a1) - (b - a2) row by row. The second is much the smaller as a rule.
    """
    bounds = [_sum(one, other, "evalLossAfterStandardError")]
    if one.get("evalLossBefore") == other.get("evalLossBefore"):
        bounds.append(_sum(one, other, "improvementStandardError"))
    known = [bound for bound in bounds if bound is not None]
    return min(known, default=None)


def _sum(one: Mapping[str, Any], other: Mapping[str, Any], key: str) -> float | None:
    if one.get(key) is None or other.get(key) is None:
        return None
    return float(one[key]) + float(other[key])


def lines(document: Mapping[str, Any]) -> Iterator[str]:
    """The comparison as text."""
    first, second = document["runs"]
    rows: list[tuple[str, ...]] = [("", first["name"], second["name"]), ("state", first["state"], second["state"])]
    rows += [(entry["field"], *entry["values"]) for entry in document["differs"]]
    for label, key, error in (
        ("loss before", "evalLossBefore", ""),
        ("loss after", "evalLossAfter", "evalLossAfterStandardError"),
    ):
        if key in first or key in second:
            rows.append((label, *(_loss(run, key, error) for run in (first, second))))
    for key, label in (("tokensPerSecond", "tokens/s"), ("durationSeconds", "seconds")):
        if key in first or key in second:
            rows.append((label, str(first.get(key, "")), str(second.get(key, ""))))
    yield from aligned(rows)
    if "note" in document:
        yield document["note"][0].upper() + document["note"][1:] + "."
    elif "difference" in document:
        yield _verdict(document)


def _loss(run: Mapping[str, Any], key: str, error: str) -> str:
    return with_error(float(run[key]), run.get(error)) if key in run else ""


def _verdict(document: Mapping[str, Any]) -> str:
    difference, error = document["difference"], document.get("standardErrorAtMost")
    name = document["runs"][1]["name"]
    compared = f"{name}'s loss is {abs(difference):.4f} nats per token {'lower' if difference < 0 else 'higher'}"
    if error is None:
        return f"{compared}; its standard error is not known."
    clear = "more than twice its error" if abs(difference) > 2 * error else "within twice its error: no clear winner"
    return f"{compared}, with a standard error of at most {error:.4f} on the same rows: {clear}."
