"""What a LoRAFineTune asks of the cluster and of the operator, as opposed to the trainer; with every rule it can break.

The API server enforces the same at apply. The rules stand here too, as no resource is to be trusted for that.
"""

import enum
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from lora_operator.model.defaults import Defaults
from lora_operator.model.names import QUEUE_LABEL, QUEUE_LABELS
from lora_trainer.contract.config import TrainConfig
from lora_trainer.contract.device_section import LARGEST_GPU_GIB, read_quantity
from lora_trainer.contract.fields import Problem, Reader
from lora_trainer.contract.manifest import ManifestError, RunOptions, train_config
from lora_trainer.contract.scheduling_fields import TOLERATION_KEYS

_EXTENDED_RESOURCE = re.compile(r"[a-z0-9]([-a-z0-9.]*[a-z0-9])?/[A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?")
_NOTHING = Defaults()
DEFAULT_MAX_RETRIES = 3
LONGEST_S = 365 * 24 * 3600


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """The fields that may change while a run goes on. Durations are seconds; None means no limit."""

    suspend: bool = False
    max_retries: int = DEFAULT_MAX_RETRIES
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


class Preflight(enum.StrEnum):
    """Whether model, data, output and memory are looked at before GPUs are asked for."""

    RUN = "Run"
    SKIP = "Skip"


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
    problems: list[Problem] = []
    train = None
    options = replace(options, gpu_resource=defaults.gpu_resource_name, checkpoint_claim=defaults.checkpoint_claim)
    try:
        train = train_config(manifest, options)
    except ManifestError as error:
        problems.extend(error.problems)
    spec = Reader(path="spec", document=_map(manifest.get("spec")), problems=problems)
    policy, pod = _policy(spec, defaults.ttl_s), _pod(spec, _map(manifest.get("metadata")), defaults)
    preflight = spec.choice("preflight", Preflight.RUN, Preflight) is Preflight.RUN
    train = None if problems else train
    return Request(
        policy=policy, preflight=preflight, pod=pod, train=train, problems=tuple(problems), defaults=defaults
    )


def read_policy(manifest: Mapping[str, Any], ttl_s: int | None = None) -> Policy:
    """The fields that may change, alone; what is wrong among them reads as its default, of which `ttl_s` is one."""
    return _policy(Reader(path="spec", document=_map(manifest.get("spec")), problems=[]), ttl_s)


def read_nodes(manifest: Mapping[str, Any]) -> int:
    """How many pods train together; 1 where the field is absent or wrong."""
    spec = Reader(path="spec", document=_map(manifest.get("spec")), problems=[])
    return spec.child("resources").integer("nodes", 1, 1, 64) or 1


def _policy(spec: Reader, ttl_s: int | None) -> Policy:
    retries = spec.integer("maxRetries", DEFAULT_MAX_RETRIES, 0, 20)
    return Policy(
        suspend=spec.boolean("suspend", False),
        max_retries=DEFAULT_MAX_RETRIES if retries is None else retries,
        active_deadline_s=spec.integer("activeDeadlineSeconds", None, 1, LONGEST_S),
        pending_timeout_s=spec.integer("pendingTimeoutSeconds", None, 1, LONGEST_S),
        ttl_s=spec.integer("ttlSecondsAfterFinished", ttl_s, 0, LONGEST_S),
    )


def _pod(spec: Reader, metadata: Mapping[str, Any], defaults: Defaults) -> PodRequest:
    # The contract reads these fields as well, so it is the one to complain about them.
    shared = Reader(path="spec", document=spec.document, problems=[])
    asked = shared.child("resources")
    gpus = asked.integer("gpus", 1, 0, 64)
    resources = Reader(path="spec.resources", document=asked.document, problems=spec.problems)
    scheduling = spec.child("scheduling")
    labels = _map(metadata.get("labels"))
    queue = {QUEUE_LABEL: defaults.queue} if defaults.queue else {}
    return PodRequest(
        gpus=1 if gpus is None else gpus,
        nodes=read_nodes({"spec": spec.document}),
        gpu_resource_name=resources.text("gpuResourceName", longest=253) or defaults.gpu_resource_name,
        gpu_min_memory_gib=asked.integer("gpuMinMemoryGiB", None, 1, LARGEST_GPU_GIB),
        gpu_products=asked.texts("gpuProducts"),
        cpu=read_quantity(asked, "cpu") or defaults.cpu,
        memory=read_quantity(asked, "memory") or defaults.memory,
        shared_memory=read_quantity(asked, "sharedMemory"),
        ephemeral_storage=read_quantity(asked, "ephemeralStorage"),
        extended_resources=_extended(resources, defaults.gpu_resource_name),
        node_selector=scheduling.strings("nodeSelector") or defaults.node_selector,
        tolerations=_tolerations(scheduling) or defaults.tolerations,
        affinity=scheduling.child("affinity").document or defaults.affinity,
        runtime_class_name=scheduling.text("runtimeClassName", longest=253) or defaults.runtime_class_name,
        priority_class_name=scheduling.text("priorityClassName", longest=253) or defaults.priority_class_name,
        environment=defaults.environment,
        cache_claim=defaults.cache_claim,
        model_secret=_secret(shared, "model"),
        dataset_secret=_secret(shared, "dataset"),
        output_secret=_secret(shared, "output"),
        tracking_secret=_secret(shared, "tracking"),
        queue_labels=queue | {key: labels[key] for key in QUEUE_LABELS if isinstance(labels.get(key), str)},
    )


def _secret(spec: Reader, section: str) -> str | None:
    return spec.child(section).child("secretRef").text("name", longest=253)


def _extended(section: Reader, gpu: str) -> Mapping[str, int]:
    wanted = section.numbers("extendedResources", 1, 64, most=4)
    for name in wanted:
        if not _EXTENDED_RESOURCE.fullmatch(name) or name == (section.document.get("gpuResourceName") or gpu):
            rule = "must be domain/name as kubectl describe node lists it, and not that of the GPUs, as in rdma/hca"
            section.complain("extendedResources", name, rule)
    return wanted


def _tolerations(section: Reader) -> tuple[Mapping[str, Any], ...]:
    value = section.get("tolerations")
    if value is None:
        return ()
    if not isinstance(value, list) or len(value) > 32 or not all(isinstance(item, Mapping) for item in value):
        section.complain("tolerations", value, "must be a list of at most 32 tolerations, as in the spec of a pod")
        return ()
    return tuple({key: item[key] for key in TOLERATION_KEYS if key in item} for item in value)


def _map(value: object) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}
