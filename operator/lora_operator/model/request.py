"""What a LoRAFineTune asks of the cluster and of the operator, as opposed to the trainer; with every rule it can break.

The API server enforces the same at apply. The rules stand here too, as no resource is to be trusted for that.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from lora_operator.model.defaults import Defaults
from lora_operator.model.names import QUEUE_LABEL, QUEUE_LABELS
from lora_trainer.spec.config import TrainConfig
from lora_trainer.spec.fields import Problem, Reader
from lora_trainer.spec.manifest import RunOptions, spec_of, understand
from lora_trainer.spec.reading import read
from lora_trainer.spec.resource import AddressSecret, Preflight, Resources, Spec, UseSecret

_NOTHING = Defaults()


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """The fields that may change while a run goes on. Durations are seconds; None means no limit."""

    suspend: bool = False
    max_retries: int = 3
    active_deadline_s: int | None = None
    pending_timeout_s: int | None = None
    ttl_s: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class PodRequest:
    """What each training pod asks of its node and which Secrets it reads.

    `cpu`, `memory`, `shared_memory` and `ephemeral_storage` are quantities, None where nothing says how much.
    `gpu_min_memory_gib` is what a GPU is sold with at least, `gpu_products` are labels of nodes; None and empty for
    any. `extended_resources` are devices beside GPUs, by the name under which nodes offer them. `cache_claim` keeps
    models and data; None for a folder of the pod.
    """

    gpus: int = 1
    nodes: int = 1
    gpu_resource_name: str = "nvidia.com/gpu"
    gpu_min_memory_gib: int | None = None
    gpu_products: tuple[str, ...] = ()
    cpu: str | None = None
    memory: str | None = None
    shared_memory: str | None = None
    ephemeral_storage: str | None = None
    extended_resources: Mapping[str, int] = field(default_factory=dict)
    node_selector: Mapping[str, str] = field(default_factory=dict)
    tolerations: tuple[Mapping[str, Any], ...] = ()
    affinity: Mapping[str, Any] = field(default_factory=dict)
    runtime_class_name: str | None = None
    priority_class_name: str | None = None
    environment: Mapping[str, str] = field(default_factory=dict)
    cache_claim: str | None = None
    model_secret: str | None = None
    dataset_secret: str | None = None
    output_secret: str | None = None
    tracking_secret: str | None = None
    queue_labels: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """A LoRAFineTune understood: `train` is None where `problems` is not empty; `defaults` fill what it leaves out."""

    policy: Policy
    preflight: bool
    pod: PodRequest
    train: TrainConfig | None
    problems: tuple[Problem, ...]
    defaults: Defaults = _NOTHING


def read_request(manifest: Mapping[str, Any], options: RunOptions, defaults: Defaults = _NOTHING) -> Request:
    """Read a whole resource; everything that is wrong with it is in `problems`, a sentence each."""
    options = replace(options, gpu_resource=defaults.gpu_resource_name, checkpoint_claim=defaults.checkpoint_claim)
    understood = understand(manifest, options)
    spec, problems = understood.spec, understood.problems
    return Request(
        policy=_policy(spec, defaults.ttl_s),
        preflight=spec.preflight is Preflight.RUN,
        pod=_pod(spec, _map(manifest.get("metadata")), defaults),
        train=None if problems else understood.config,
        problems=problems,
        defaults=defaults,
    )


def read_policy(manifest: Mapping[str, Any], ttl_s: int | None = None) -> Policy:
    """The fields that may change, alone; what is wrong among them reads as its default, of which `ttl_s` is one."""
    return _policy(spec_of(manifest), ttl_s)


def read_nodes(manifest: Mapping[str, Any]) -> int:
    """How many pods train together; 1 where the field is absent or wrong."""
    spec = Reader(path="spec", document=_map(manifest.get("spec")), problems=[])
    return read(Resources, spec.quiet("resources")).nodes


def _policy(spec: Spec, ttl_s: int | None) -> Policy:
    return Policy(
        suspend=spec.suspend,
        max_retries=spec.max_retries,
        active_deadline_s=spec.active_deadline_s,
        pending_timeout_s=spec.pending_timeout_s,
        ttl_s=ttl_s if spec.ttl_s is None else spec.ttl_s,
    )


def _pod(spec: Spec, metadata: Mapping[str, Any], defaults: Defaults) -> PodRequest:
    asked, scheduling = spec.resources, spec.scheduling
    labels = _map(metadata.get("labels"))
    queue = {QUEUE_LABEL: defaults.queue} if defaults.queue else {}
    return PodRequest(
        gpus=asked.gpus,
        nodes=asked.nodes,
        gpu_resource_name=asked.gpu_resource_name or defaults.gpu_resource_name,
        gpu_min_memory_gib=asked.gpu_min_memory_gib,
        gpu_products=asked.gpu_products,
        cpu=asked.cpu or defaults.cpu,
        memory=asked.memory or defaults.memory,
        shared_memory=asked.shared_memory,
        ephemeral_storage=asked.ephemeral_storage,
        extended_resources=asked.extended_resources,
        node_selector=scheduling.node_selector or defaults.node_selector,
        tolerations=scheduling.tolerations or defaults.tolerations,
        affinity=scheduling.affinity or defaults.affinity,
        runtime_class_name=scheduling.runtime_class_name or defaults.runtime_class_name,
        priority_class_name=scheduling.priority_class_name or defaults.priority_class_name,
        environment=defaults.environment,
        cache_claim=defaults.cache_claim,
        model_secret=_name(spec.model.secret_ref),
        dataset_secret=_name(spec.dataset.secret_ref),
        output_secret=_name(spec.output.secret_ref),
        tracking_secret=_name(spec.tracking.secret_ref),
        queue_labels=queue | {key: labels[key] for key in QUEUE_LABELS if isinstance(labels.get(key), str)},
    )


def _name(secret: AddressSecret | UseSecret | None) -> str | None:
    return None if secret is None else secret.name


def _map(value: object) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}
