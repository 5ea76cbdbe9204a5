"""From a LoRAFineTune manifest to a `TrainConfig`: every default and every rule that needs no cluster.

The API server enforces the same rules with CEL at apply; they stand here too because the trainer runs the same file
without a cluster, and because a resource may have been stored before a rule existed.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from lora_trainer.contract.config import (
    CheckpointConfig,
    DatasetConfig,
    DatasetFormat,
    Merge,
    MergePrecision,
    ModelConfig,
    OutputConfig,
    Quantization,
    RunIdentity,
    Tracker,
    TrackingConfig,
    TrainConfig,
)
from lora_trainer.contract.device_section import GPU_RESOURCE, GpuSetting, read_device
from lora_trainer.contract.fields import Problem, Reader
from lora_trainer.contract.lora_section import check_quantized, read_lora
from lora_trainer.contract.scheduling_fields import check_names, selected_product
from lora_trainer.contract.template_fields import read_arguments, read_template
from lora_trainer.contract.training_section import or_default, read_training
from lora_trainer.contract.uri import ClaimUri, ConfigMapUri, HubUri, OciUri, S3Uri, Uri, UriError, parse_uri

API_VERSION = "lora-operator.io/v1alpha1"
KIND = "LoRAFineTune"
MAX_VALIDATION_ROWS = 2000
"""How many rows a new run holds out at most of its training data where the manifest names no number.

The standard error of a loss over 2000 rows is 1/45 of the rows' own spread; 2 % of a million rows, evaluated three
times, cost more than many trainings.
"""
COLUMN_ROLES = ("messages", "tools", "system", "prompt", "completion", "instruction", "input", "output", "text")
_NAME = re.compile(r"[a-z]([-a-z0-9]{0,50}[a-z0-9])?")
_CLAIM = re.compile(r"[a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?")
_SPLIT = re.compile(r"[A-Za-z0-9_][-A-Za-z0-9_.]{0,63}")
MODEL_SCHEMES: tuple[type[Uri], ...] = (HubUri, ClaimUri, S3Uri)
DATASET_SCHEMES: tuple[type[Uri], ...] = (ClaimUri, ConfigMapUri, HubUri, S3Uri)
OUTPUT_SCHEMES: tuple[type[Uri], ...] = (ClaimUri, S3Uri, HubUri, OciUri)
_SECTIONS_OF_THE_CLUSTER = (
    "preflight",
    "scheduling",
    "suspend",
    "maxRetries",
    "activeDeadlineSeconds",
    "pendingTimeoutSeconds",
    "ttlSecondsAfterFinished",
)

_METADATA = (
    "annotations",
    "creationTimestamp",
    "deletionGracePeriodSeconds",
    "deletionTimestamp",
    "finalizers",
    "generateName",
    "generation",
    "labels",
    "managedFields",
    "ownerReferences",
    "resourceVersion",
    "selfLink",
    "uid",
)
"""What Kubernetes keeps there besides: a manifest may be what kubectl get printed."""


class ManifestError(ValueError):
    """A manifest breaks one or more rules; the text is a sentence for each."""

    def __init__(self, problems: tuple[Problem, ...]) -> None:
        super().__init__("; ".join(map(str, problems)))
        self.problems = problems


@dataclass(frozen=True, slots=True, kw_only=True)
class RunOptions:
    """What the manifest does not say: who runs it. `strict` refuses unknown fields, as kubectl does.

    `quantization` is what `Auto` has become, None before that. `gpus` are those whose memory or price the cluster's
    settings tell. `gpu_resource` and `checkpoint_claim` are the cluster's defaults for a manifest that names none.
    """

    uid: str
    attempt: int = 1
    allow_cpu: bool = False
    strict: bool = False
    stall_timeout_s: int = 1800
    quantization: Quantization | None = None
    gpus: tuple[GpuSetting, ...] = ()
    gpu_resource: str = GPU_RESOURCE
    checkpoint_claim: str | None = None


def train_config(manifest: Mapping[str, Any], options: RunOptions) -> TrainConfig:
    """The complete run that a manifest asks for. Raises `ManifestError` with all problems at once."""
    problems: list[Problem] = []
    root = Reader(path="", document=manifest, problems=problems)
    _check_kind(root)
    namespace, name = _identity(root.child("metadata"), options)
    section = _spec(root)
    root.seen.add("status")
    root.finish(strict=options.strict)
    if section is None:
        raise ManifestError(tuple(problems))
    spec = Reader(path="spec", document=section, problems=problems)
    lora_section = spec.child("lora")
    lora = read_lora(lora_section, strict=options.strict)
    quantization = _quantization(spec, options)
    check_quantized(lora_section, lora, quantization)
    training = read_training(spec.child("training"), strict=options.strict)
    config = TrainConfig(
        run=RunIdentity(namespace=namespace, name=name, uid=options.uid, attempt=options.attempt),
        model=_model(spec.child("model", required=True, leading="uri"), options),
        dataset=_dataset(spec.child("dataset", required=True, leading="uri"), options, training.seed),
        lora=lora,
        quantization=quantization,
        training=training,
        device=read_device(
            spec.child("resources"),
            options.gpus,
            selected=selected_product(section),
            resource=options.gpu_resource,
            allow_cpu=options.allow_cpu,
            strict=options.strict,
        ),
        checkpoint=_checkpoint(spec.child("checkpoint"), options),
        output=_output(spec.child("output", required=True, leading="uri"), options),
        tracking=_tracking(spec.child("tracking"), options),
        resume_from=_resume_from(spec, options, name),
        stall_timeout_s=options.stall_timeout_s,
    )
    if checkpoint_claim(config) is None:
        config = replace(config, checkpoint=replace(config.checkpoint, claim=options.checkpoint_claim))
    _check_whole(spec, config)
    if options.strict:
        check_names(spec.child("scheduling"))
    spec.seen.update(_SECTIONS_OF_THE_CLUSTER)
    spec.finish(strict=options.strict)
    if problems:
        raise ManifestError(tuple(problems))
    return config


def _quantization(spec: Reader, options: RunOptions) -> Quantization:
    asked = spec.choice("quantization", Quantization.AUTO, Quantization)
    return options.quantization if asked is Quantization.AUTO and options.quantization else asked


def _check_kind(root: Reader) -> None:
    for key, expected in (("apiVersion", API_VERSION), ("kind", KIND)):
        value = root.get(key)
        if value != expected:
            root.problems.append(Problem(path=key, value=value, rule=f"must be {expected}"))


def _spec(root: Reader) -> Mapping[str, Any] | None:
    value = root.get("spec")
    if isinstance(value, Mapping):
        return value
    root.problems.append(Problem(path="spec", value=value, rule="must be an object with model, dataset and output"))
    return None


def _identity(metadata: Reader, options: RunOptions) -> tuple[str, str]:
    name, namespace = metadata.get("name"), metadata.get("namespace") or "default"
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        rule = "must be lower-case letters, digits and '-', start with a letter and have at most 52 characters"
        metadata.complain("name", name, rule)
        name = "invalid"
    metadata.seen.update(_METADATA)
    metadata.finish(strict=options.strict)
    return str(namespace), name


def _model(section: Reader, options: RunOptions) -> ModelConfig:
    uri = _uri(section, MODEL_SCHEMES)
    _secret(section, options)
    section.finish(strict=options.strict)
    return ModelConfig(uri=uri)


def _uri(section: Reader, schemes: tuple[type[Uri], ...]) -> str:
    text = section.text("uri", required=True)
    if text is not None:
        _check_uri(section, "uri", text, schemes)
    return text or ""


def _secret(section: Reader, options: RunOptions) -> None:
    reference = section.child("secretRef", leading="name")
    reference.text("name", longest=253)
    reference.finish(strict=options.strict)


def _check_uri(section: Reader, key: str, text: str, schemes: tuple[type[Uri], ...]) -> None:
    beginnings = tuple(_SCHEMES[scheme] for scheme in schemes)
    if not text.startswith(beginnings):
        section.complain(key, text, f"must start with {' or '.join(beginnings)}")
        return
    try:
        parse_uri(text)
    except UriError as error:
        section.complain(key, text, str(error))


_SCHEMES: Mapping[type, str] = {
    HubUri: "hf://",
    ClaimUri: "pvc://",
    ConfigMapUri: "configmap://",
    S3Uri: "s3://",
    OciUri: "oci://",
}


def _dataset(section: Reader, options: RunOptions, seed: int) -> DatasetConfig:
    fraction = section.decimal(
        "validationFraction", None, rule="at least 0 and less than 1", low=0, high=1, open_high=True
    )
    validation = section.text("validationUri")
    if validation is not None:
        _check_uri(section, "validationUri", validation, DATASET_SCHEMES)
        if fraction is not None:
            rule = "must not be set together with validationFraction: remove one of the two"
            section.complain("validationUri", validation, rule)
    # A set that somebody chose is evaluated whole, unless they say otherwise.
    most = MAX_VALIDATION_ROWS if validation is None else None
    split = section.text("split", longest=64) or "train"
    if not _SPLIT.fullmatch(split):
        section.complain("split", split, "must be the name of a split: letters, digits, '_', '-' and '.'")
    uri = _uri(section, DATASET_SCHEMES)
    if split != "train" and uri.startswith(("pvc://", "configmap://", "s3://")):
        rule = "must not be set here, since only data sets on the Hub have splits: name the file itself in uri"
        section.complain("split", split, rule)
    config = DatasetConfig(
        uri=uri,
        format=section.choice("format", DatasetFormat.AUTO, DatasetFormat),
        columns=_columns(section),
        split=split,
        validation_uri=validation,
        validation_fraction=0.0 if validation is not None else or_default(fraction, 0.02),
        max_validation_rows=section.integer("maxValidationRows", most, 1, 10_000_000),
        split_seed=or_default(section.integer("splitSeed", seed, 0, 2**31 - 1), seed),
        chat_template=read_template(section),
        template_arguments=read_arguments(section),
    )
    _secret(section, options)
    section.finish(strict=options.strict)
    return config


def _columns(section: Reader) -> Mapping[str, str]:
    columns = section.strings("columns", keys=COLUMN_ROLES)
    roles: dict[str, list[str]] = {}
    for role, column in columns.items():
        roles.setdefault(column, []).append(role)
    for column, players in roles.items():
        if len(players) > 1:
            rule = f"must not be the column of both {' and '.join(players)}: map each role to a column of its own"
            section.complain("columns", column, rule)
    return columns


def _checkpoint(section: Reader, options: RunOptions) -> CheckpointConfig:
    claim = section.text("volumeClaimName", longest=253)
    if claim is not None and not _CLAIM.fullmatch(claim):
        section.complain("volumeClaimName", claim, "must be the name of a PersistentVolumeClaim")
        claim = None
    config = CheckpointConfig(
        interval_s=section.integer("intervalSeconds", 600, 1, 604_800) or 600,
        interval_steps=section.integer("intervalSteps", None, 1, 10_000_000),
        keep=section.integer("keep", 2, 1, 100) or 2,
        claim=claim,
    )
    section.finish(strict=options.strict)
    return config


def _output(section: Reader, options: RunOptions) -> OutputConfig:
    config = OutputConfig(
        uri=_uri(section, OUTPUT_SCHEMES),
        merge=section.choice("merge", Merge.ADAPTER, Merge),
        merge_precision=section.choice("mergePrecision", MergePrecision.AUTO, MergePrecision),
    )
    if config.merge_precision is not MergePrecision.AUTO and config.merge is Merge.ADAPTER:
        rule = "must not be set with merge Adapter, which merges nothing: remove it, or write merge: Merged or Both"
        section.complain("mergePrecision", config.merge_precision.value, rule)
    if "@" in config.uri and config.uri.startswith("hf://"):
        section.complain("uri", config.uri, "must not have a revision: the adapter becomes a new commit of main")
    _secret(section, options)
    section.finish(strict=options.strict)
    return config


def _tracking(section: Reader, options: RunOptions) -> TrackingConfig:
    config = TrackingConfig(
        kind=section.choice("kind", Tracker.NONE, Tracker), project=section.text("project", longest=128)
    )
    # Of a kind that was refused it is not known whether it has projects.
    if (
        config.project is not None
        and config.kind in {Tracker.NONE, Tracker.TENSORBOARD}
        and not section.refused("kind")
    ):
        rule = f"must not be set with kind {config.kind.value}, which knows no projects: remove project"
        section.complain("project", config.project, rule)
    _secret(section, options)
    section.finish(strict=options.strict)
    return config


def _resume_from(spec: Reader, options: RunOptions, own_name: str) -> str | None:
    section = spec.child("resumeFrom", leading="name")
    if not section.document:
        return None
    name = section.text("name", required=True, longest=52)
    if name is not None and not _NAME.fullmatch(name):
        section.complain("name", name, "must be the name of a LoRAFineTune of this namespace")
    if name == own_name:
        rule = "must be another run: a run resumes from its own checkpoints automatically"
        section.complain("name", name, rule)
    section.finish(strict=options.strict)
    return name


_OR_DEFAULT = ", or have the chart's defaults.checkpointClaim name one for new runs"


def _check_whole(spec: Reader, config: TrainConfig) -> None:
    """Rules between sections."""
    if config.training.effective_batch_size < config.device.processes:
        rule = (
            f"must be at least {config.device.processes}, one example for each training process "
            "(resources.gpus x resources.nodes): raise it or use fewer"
        )
        spec.child("training").complain("effectiveBatchSize", config.training.effective_batch_size, rule)
    held_out = config.dataset.validation_uri is not None or config.dataset.validation_fraction > 0
    if config.training.early_stopping_patience is not None and not held_out:
        rule = "needs held-out rows: set dataset.validationUri, or dataset.validationFraction above 0"
        spec.child("training").complain("earlyStoppingPatience", config.training.early_stopping_patience, rule)
    if config.device.nodes > 1 and checkpoint_claim(config) is None:
        rule = "must be 1 without checkpoint.volumeClaimName, a claim that all nodes can mount: set it" + _OR_DEFAULT
        spec.child("resources").complain("nodes", config.device.nodes, rule)
    if config.resume_from is not None and checkpoint_claim(config) is None:
        rule = (
            "needs checkpoint.volumeClaimName, the claim that holds the other run's checkpoints: set it" + _OR_DEFAULT
        )
        spec.child("resumeFrom").complain("name", config.resume_from, rule)


def checkpoint_claim(config: TrainConfig) -> str | None:
    """The claim that holds the run's checkpoints: the one that is named, else the output's, else None."""
    if config.checkpoint.claim is not None:
        return config.checkpoint.claim
    try:
        uri = parse_uri(config.output.uri)
    except UriError:
        return None
    return uri.claim if isinstance(uri, ClaimUri) else None
