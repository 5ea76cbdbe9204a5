"""From a LoRAFineTune manifest to a `TrainConfig`: every default and every rule that needs no cluster.

The API server enforces the same rules with CEL at apply; they stand here too because the trainer runs the same file
without a cluster, and because a resource may have been stored before a rule existed.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from lora_trainer.contract.config import (
    DatasetConfig,
    DatasetFormat,
    DeviceConfig,
    Layers,
    LoraConfig,
    LossOn,
    ModelConfig,
    OutputConfig,
    Precision,
    Quantization,
    RunIdentity,
    Schedule,
    TrainConfig,
    TrainingConfig,
)
from lora_trainer.contract.fields import Problem, Reader
from lora_trainer.contract.uri import ClaimUri, ConfigMapUri, HubUri, Uri, UriError, parse_uri

API_VERSION = "lora-operator.io/v1alpha1"
KIND = "LoRAFineTune"
COLUMN_ROLES = ("messages", "prompt", "completion", "instruction", "input", "output", "text")
_NAME = re.compile(r"[a-z]([-a-z0-9]{0,50}[a-z0-9])?")
_SECTIONS_OF_THE_CLUSTER = ("scheduling", "suspend", "maxRetries", "activeDeadlineSeconds", "ttlSecondsAfterFinished")


N = TypeVar("N", int, float)


class ManifestError(ValueError):
    """A manifest breaks one or more rules; the text is a sentence for each."""

    def __init__(self, problems: tuple[Problem, ...]) -> None:
        super().__init__("; ".join(map(str, problems)))
        self.problems = problems


@dataclass(frozen=True, slots=True, kw_only=True)
class RunOptions:
    """What the manifest does not say: who runs it. `strict` refuses unknown fields, as kubectl does."""

    uid: str
    attempt: int = 1
    allow_cpu: bool = False
    strict: bool = False


def train_config(manifest: Mapping[str, Any], options: RunOptions) -> TrainConfig:
    """The complete run that a manifest asks for. Raises `ManifestError` with all problems at once."""
    problems: list[Problem] = []
    root = Reader(path="manifest", document=manifest, problems=problems)
    _check_kind(root)
    namespace, name = _identity(manifest, problems)
    spec = Reader(path="spec", document=_spec(root), problems=problems)
    config = TrainConfig(
        run=RunIdentity(namespace=namespace, name=name, uid=options.uid, attempt=options.attempt),
        model=ModelConfig(uri=_uri(spec.child("model", required=True), (HubUri, ClaimUri), options)),
        dataset=_dataset(spec.child("dataset", required=True), options),
        lora=_lora(spec.child("lora"), options),
        quantization=spec.choice("quantization", Quantization.NONE, Quantization),
        training=_training(spec.child("training"), options),
        device=_device(spec.child("resources"), options),
        output=OutputConfig(uri=_uri(spec.child("output", required=True), (ClaimUri,), options)),
    )
    spec.seen.update(_SECTIONS_OF_THE_CLUSTER)
    spec.finish(strict=options.strict)
    if problems:
        raise ManifestError(tuple(problems))
    return config


def _check_kind(root: Reader) -> None:
    for key, expected in (("apiVersion", API_VERSION), ("kind", KIND)):
        value = root.get(key)
        if value != expected:
            root.problems.append(Problem(path=key, value=value, rule=f"must be {expected}"))


def _spec(root: Reader) -> Mapping[str, Any]:
    value = root.get("spec")
    if isinstance(value, Mapping):
        return value
    root.problems.append(Problem(path="spec", value=value, rule="must be an object with model, dataset and output"))
    return {}


def _identity(manifest: Mapping[str, Any], problems: list[Problem]) -> tuple[str, str]:
    metadata = manifest.get("metadata")
    metadata = metadata if isinstance(metadata, Mapping) else {}
    name, namespace = metadata.get("name"), metadata.get("namespace") or "default"
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        rule = "must be lower-case letters, digits and '-', start with a letter and have at most 52 characters"
        problems.append(Problem(path="metadata.name", value=name, rule=rule))
        name = "invalid"
    return str(namespace), name


def _uri(section: Reader, schemes: tuple[type[Uri], ...], options: RunOptions) -> str:
    text = section.text("uri", required=True)
    if text is not None:
        _check_uri(section, text, schemes)
    if HubUri in schemes:
        section.child("secretRef").text("name", longest=253)
    section.finish(strict=options.strict)
    return text or ""


def _check_uri(section: Reader, text: str, schemes: tuple[type[Uri], ...]) -> None:
    try:
        uri = parse_uri(text)
    except UriError as error:
        section.complain("uri", text, str(error))
        return
    if not isinstance(uri, schemes):
        section.complain("uri", text, f"must start with {' or '.join(_SCHEMES[scheme] for scheme in schemes)}")


_SCHEMES: Mapping[type, str] = {HubUri: "hf://", ClaimUri: "pvc://", ConfigMapUri: "configmap://"}


def _dataset(section: Reader, options: RunOptions) -> DatasetConfig:
    row_format = section.choice("format", DatasetFormat.AUTO, DatasetFormat)
    columns = section.strings("columns", keys=COLUMN_ROLES)
    fraction = section.decimal(
        "validationFraction", 0.02, rule="at least 0 and less than 1", low=0, high=1, open_high=True
    )
    uri = _uri(section, (ClaimUri, ConfigMapUri, HubUri), options)
    return DatasetConfig(uri=uri, format=row_format, columns=columns, validation_fraction=fraction or 0.0)


def _lora(section: Reader, options: RunOptions) -> LoraConfig:
    rank = section.integer("rank", 16, 1, 1024) or 16
    targets = section.texts("targetModules")
    if targets and section.get("layers") is not None:
        section.complain("targetModules", list(targets), "must not be set together with layers: remove one of the two")
    layers = None if targets else section.choice("layers", Layers.ALL_LINEAR, Layers)
    section.seen.add("layers")
    dropout = section.decimal("dropout", 0.0, rule="at least 0 and less than 1", low=0, high=1, open_high=True)
    config = LoraConfig(
        rank=rank,
        alpha=section.integer("alpha", 2 * rank, 1, 4096) or 2 * rank,
        layers=layers,
        target_modules=targets,
        exclude_modules=section.texts("excludeModules"),
        dropout=dropout or 0.0,
    )
    section.finish(strict=options.strict)
    return config


def _training(section: Reader, options: RunOptions) -> TrainingConfig:
    max_steps = section.integer("maxSteps", None, 1, 10_000_000)
    epochs = section.decimal("epochs", None, rule="more than 0 and at most 100", low=0, high=100, open_low=True)
    if max_steps is not None and section.get("epochs") is not None:
        section.complain("maxSteps", max_steps, "must not be set together with epochs: remove one of the two")
    effective = section.integer("effectiveBatchSize", 16, 1, 65536) or 16
    micro = section.integer("microBatchSize", None, 1, 65536)
    if micro is not None and effective % micro:
        section.complain("microBatchSize", micro, f"must divide effectiveBatchSize ({effective})")
    config = TrainingConfig(
        epochs=None if max_steps is not None else (epochs or 1.0),
        max_steps=max_steps,
        learning_rate=section.decimal(
            "learningRate", 0.0002, rule="more than 0 and at most 1", low=0, high=1, open_low=True
        )
        or 0.0002,
        schedule=section.choice("schedule", Schedule.COSINE, Schedule),
        warmup_ratio=_or(section.decimal("warmupRatio", 0.03, rule="from 0 to 1", low=0, high=1), 0.03),
        effective_batch_size=effective,
        micro_batch_size=micro,
        max_sequence_length=section.integer("maxSequenceLength", 2048, 8, 1_048_576) or 2048,
        loss_on=section.choice("lossOn", LossOn.COMPLETION, LossOn),
        precision=section.choice("precision", Precision.AUTO, Precision),
        seed=_or(section.integer("seed", 42, 0, 2**31 - 1), 42),
    )
    section.finish(strict=options.strict)
    return config


def _device(section: Reader, options: RunOptions) -> DeviceConfig:
    gpus = _or(section.integer("gpus", 1, 0, 64), 1)
    section.seen.update(("gpuResourceName", "cpu", "memory"))
    section.finish(strict=options.strict)
    return DeviceConfig(gpus=gpus, allow_cpu=options.allow_cpu)


def _or(value: N | None, default: N) -> N:
    return default if value is None else value
