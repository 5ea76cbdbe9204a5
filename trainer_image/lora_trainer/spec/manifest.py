"""From a LoRAFineTune manifest to a `TrainConfig`, for trainer, client and operator: every rule that needs no cluster.

What a field may be, alone and beside others, is said where it is defined (`api`). Here is what is asked of the whole
resource, and what an absent field becomes that depends on others.
"""

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any, TypeVar

from lora_trainer.spec.api import Rule, found
from lora_trainer.spec.config import (
    DatasetConfig,
    LoraConfig,
    ModelConfig,
    OutputConfig,
    Quantization,
    RunIdentity,
    TrackingConfig,
    TrainConfig,
)
from lora_trainer.spec.device_section import GPU_RESOURCE, GpuSetting, read_device
from lora_trainer.spec.fields import Problem, Reader
from lora_trainer.spec.reading import read
from lora_trainer.spec.resource import PRODUCT_LABEL, Dataset, Spec
from lora_trainer.spec.uri import ClaimUri, UriError, parse_uri

T = TypeVar("T")
API_VERSION = "lora-operator.io/v1alpha1"
KIND = "LoRAFineTune"
MAX_VALIDATION_ROWS = 2000
"""How many rows a new run holds out at most of its training data where the manifest names no number.

The standard error of a loss over 2000 rows is 1/45 of the rows' own spread; 2 % of a million rows, evaluated three
times, cost more than many trainings.
"""
NAME = Rule(
    cel="self.size() <= 52 && self.matches('^[a-z]([-a-z0-9]*[a-z0-9])?$')",
    message='cannot name a run: use at most 52 lower-case letters, digits and "-", starting with a letter and ending '
    "with a letter or digit",
    quoted=True,
    broken=lambda name: len(name) > 52 or not found("^[a-z]([-a-z0-9]*[a-z0-9])?$", name),
)
ANOTHER = Rule(
    cel="!has(self.spec.resumeFrom) || self.spec.resumeFrom.name != self.metadata.name",
    at=".spec.resumeFrom.name",
    forbidden=True,
    message="must be another run: a run resumes from its own checkpoints automatically; remove resumeFrom",
    broken=lambda config, _: config.resume_from == config.run.name,
)
"""Of the whole resource."""
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


@dataclass(frozen=True, slots=True, kw_only=True)
class Understood:
    """A manifest that was read: what is wrong with it reads as absent, and is among the `problems`."""

    spec: Spec
    config: TrainConfig
    problems: tuple[Problem, ...]


def train_config(manifest: Mapping[str, Any], options: RunOptions) -> TrainConfig:
    """The complete run that a manifest asks for. Raises `ManifestError` with all problems at once."""
    understood = understand(manifest, options)
    if understood.problems:
        raise ManifestError(understood.problems)
    return understood.config


def understand(manifest: Mapping[str, Any], options: RunOptions) -> Understood:
    """A whole resource, for whoever runs it: trainer, client and operator."""
    problems: list[Problem] = []
    root = Reader(path="", document=manifest, problems=problems, strict=options.strict)
    _check_kind(root)
    namespace, name = _identity(root.child("metadata"))
    has_spec = isinstance(root.get("spec"), Mapping)
    if not has_spec:
        rule = "must be an object with model, dataset and output"
        problems.append(Problem(path="spec", value=root.get("spec"), rule=rule))
    root.seen.add("status")
    root.finish()
    # Of no spec it is not said as well what it lacks.
    section = root.below("spec", root.get("spec")) if has_spec else Reader(path="spec", document={}, problems=[])
    spec = read(Spec, section)
    asked = spec.quantization
    config = TrainConfig(
        run=RunIdentity(namespace=namespace, name=name, uid=options.uid, attempt=options.attempt),
        model=_part(ModelConfig, spec.model),
        dataset=_dataset(section.quiet("dataset"), spec.dataset, spec.training.seed),
        lora=_lora(section.quiet("lora"), spec.lora),
        quantization=options.quantization if asked is Quantization.AUTO and options.quantization else asked,
        training=spec.training if spec.training.max_steps is None else replace(spec.training, epochs=None),
        device=read_device(
            section.quiet("resources"),
            spec.resources,
            options.gpus,
            selected=spec.scheduling.node_selector.get(PRODUCT_LABEL),
            resource=options.gpu_resource,
            allow_cpu=options.allow_cpu,
        ),
        checkpoint=spec.checkpoint,
        output=_part(OutputConfig, spec.output),
        tracking=_part(TrackingConfig, spec.tracking),
        resume_from=spec.resume_from.name if spec.resume_from else None,
        stall_timeout_s=options.stall_timeout_s,
    )
    if checkpoint_claim(config) is None:
        config = replace(config, checkpoint=replace(config.checkpoint, claim=options.checkpoint_claim))
    _check_whole(section, config)
    return Understood(spec=spec, config=config, problems=tuple(problems))


def spec_of(manifest: Mapping[str, Any]) -> Spec:
    """The spec alone; what is wrong with it reads as absent."""
    return read(Spec, Reader(path="", document=manifest, problems=[]).below("spec", manifest.get("spec")))


def _part(kind: type[T], section: Any) -> T:
    """What a run has of a section, which may name a Secret as well."""
    return kind(**{field.name: getattr(section, field.name) for field in fields(kind)})  # type: ignore[arg-type]


def _check_kind(root: Reader) -> None:
    for key, expected in (("apiVersion", API_VERSION), ("kind", KIND)):
        value = root.get(key)
        if value != expected:
            root.problems.append(Problem(path=key, value=value, rule=f"must be {expected}"))


def _identity(metadata: Reader) -> tuple[str, str]:
    name, namespace = metadata.get("name"), metadata.get("namespace") or "default"
    if not isinstance(name, str) or not NAME.allows(name):
        metadata.complain("name", name, NAME.message, quoted=NAME.quoted)
        name = "invalid"
    metadata.seen.update(_METADATA)
    metadata.finish()
    return str(namespace), name


def _dataset(section: Reader, dataset: Dataset, seed: int) -> DatasetConfig:
    validation = dataset.validation_uri
    # A set that somebody chose is evaluated whole, unless they say otherwise.
    most = MAX_VALIDATION_ROWS if validation is None else None
    return replace(
        _part(DatasetConfig, dataset),
        validation_fraction=0.0 if validation is not None else dataset.validation_fraction,
        max_validation_rows=most if dataset.max_validation_rows is None else dataset.max_validation_rows,
        split_seed=dataset.split_seed if section.is_set("splitSeed") else seed,
    )


def _lora(section: Reader, lora: LoraConfig) -> LoraConfig:
    return replace(
        lora,
        alpha=lora.alpha if section.is_set("alpha") else 2 * lora.rank,
        layers=None if lora.target_modules else lora.layers,
        layer_indices=tuple(sorted(set(lora.layer_indices))),
    )


_OR_DEFAULT = ", or have the chart's defaults.checkpointClaim name one for new runs"


def _check_whole(spec: Reader, config: TrainConfig) -> None:
    """What a resource names of others."""
    if config.device.nodes > 1 and checkpoint_claim(config) is None:
        rule = "must be 1 without checkpoint.volumeClaimName, a claim that all nodes can mount: set it" + _OR_DEFAULT
        spec.quiet("resources").complain("nodes", config.device.nodes, rule)
    if ANOTHER.broken and ANOTHER.broken(config, spec.is_set):
        spec.quiet("resumeFrom").complain("name", config.resume_from, ANOTHER.message)
    if config.resume_from is not None and checkpoint_claim(config) is None:
        rule = (
            "needs checkpoint.volumeClaimName, the claim that holds the other run's checkpoints: set it" + _OR_DEFAULT
        )
        spec.quiet("resumeFrom").complain("name", config.resume_from, rule)


def checkpoint_claim(config: TrainConfig) -> str | None:
    """The claim that holds the run's checkpoints: the one that is named, else the output's, else None."""
    if config.checkpoint.claim is not None:
        return config.checkpoint.claim
    try:
        uri = parse_uri(config.output.uri)
    except UriError:
        return None
    return uri.claim if isinstance(uri, ClaimUri) else None
