"""What a saved state belongs to: the fields of a run that decide its result, and which of them two runs share."""

import json
import re
from collections.abc import Mapping
from datetime import date
from typing import Any

from lora_trainer.spec import codec
from lora_trainer.spec.config import TrainConfig

MODEL = "model (revision)"
DATA = "dataset (content)"
_TEMPLATE = "dataset.chatTemplate (content)"
_DAY = "dataset.chatTemplate (date)"
_LIMIT = "dataset.maxValidationRows"

_NOT_DECIDING = (
    "dataset.uri",
    "dataset.validationUri",
    "training.microBatchSize",
    "training.activationCheckpointing",
    "training.kernels",
)
"""Where equal data came from, what trades memory for time, and what differs by rounding alone."""

_LENGTH_AND_MANNER = (
    "training.epochs",
    "training.maxSteps",
    "training.learningRate",
    "training.schedule",
    "training.warmupRatio",
    "training.weightDecay",
    "training.maxGradNorm",
    "training.precision",
    "training.evalSteps",
    "training.earlyStoppingPatience",
)
"""What a run that goes on from another's step may change."""

Identity = Mapping[str, str]
"""The name of a deciding field, as the manifest has it, to its value as JSON."""


def identity(
    config: TrainConfig,
    model_revision: str,
    data_fingerprint: str,
    template_digest: str | None = None,
    *,
    day: date | None = None,
    capped: bool = False,
) -> Identity:
    """The fields of a run that decide its result; `template_digest` is of a chosen chat template, `day` what a chat
    template may write into rows. `capped` says whether the limit of held-out rows decides anything: fewer rows are held
    out than without it."""
    document = codec.encode(config)
    fields = {MODEL: json.dumps(model_revision), DATA: json.dumps(data_fingerprint)}
    fields[_TEMPLATE] = json.dumps(template_digest)
    fields[_DAY] = json.dumps(None if day is None else day.isoformat())
    for section in ("dataset", "lora", "training"):
        fields.update(_flat(section, document[section]))
    fields["quantization"] = json.dumps(document["quantization"])
    not_deciding = _NOT_DECIDING if capped else (*_NOT_DECIDING, _LIMIT)
    return {name: value for name, value in fields.items() if name not in not_deciding}


def _flat(section: str, document: Mapping[str, Any]) -> dict[str, str]:
    return {f"{section}.{_camel(key)}": json.dumps(value, sort_keys=True) for key, value in document.items()}


def _camel(name: str) -> str:
    return re.sub(r"_(\w)", lambda match: match[1].upper(), name)


def difference(saved: Identity, ours: Identity) -> str | None:
    """The first field in which two identities differ, with both values, as the part of a sentence; None where none."""
    return _first(saved, ours, sorted({*saved, *ours}, key=lambda name: (name not in (MODEL, DATA), name)))


def day_of(saved: Identity) -> date | None:
    """The day that the chat template may write into rows, as `identity` had it."""
    day = json.loads(saved[_DAY])
    return None if day is None else date.fromisoformat(day)


def weights_difference(saved: Identity, ours: Identity) -> str | None:
    """The first field without which the adapter's weights mean something else: the model's and the adapter's own."""
    names = sorted(name for name in {*saved, *ours} if name == MODEL or name.startswith("lora."))
    return _first(saved, ours, [name for name in names if name != "lora.dropout"])


def same_training(saved: Identity, ours: Identity) -> bool:
    """Whether a run can go on at another's step: same rows in the same order, same optimizer; only length, schedule and
    the like may differ."""
    return all(_value(saved, name) == _value(ours, name) for name in {*saved, *ours} if name not in _LENGTH_AND_MANNER)


def _first(saved: Identity, ours: Identity, names: list[str]) -> str | None:
    for name in names:
        theirs, own = _value(saved, name), _value(ours, name)
        if theirs != own:
            return f"{name} {theirs}, this run has {own}"
    return None


def _value(fields: Identity, name: str) -> str:
    return fields.get(name, "absent")
