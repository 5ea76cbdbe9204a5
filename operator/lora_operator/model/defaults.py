"""What a run gets where its resource is silent: the operator's settings as they were when its first Job was made.

They stand in `status.resolved.pod`, and a changed setting reaches new runs alone.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from lora_operator.model.config import OperatorConfig
from lora_operator.model.wording import block_of, integer_of, maps_of, text_of
from lora_trainer.spec.device_section import GPU_RESOURCE
from lora_trainer.spec.quantity import times
from lora_trainer.spec.resource import TOLERATION_KEYS

CPU_PER_GPU, MEMORY_PER_GPU = "2", "8Gi"


@dataclass(frozen=True, slots=True, kw_only=True)
class Defaults:
    """For a pod as a whole. `cpu` and `memory` are quantities; empty and None mean none."""

    gpu_resource_name: str = GPU_RESOURCE
    cpu: str | None = None
    memory: str | None = None
    node_selector: Mapping[str, str] = field(default_factory=dict)
    tolerations: tuple[Mapping[str, Any], ...] = ()
    affinity: Mapping[str, Any] = field(default_factory=dict)
    runtime_class_name: str | None = None
    priority_class_name: str | None = None
    queue: str | None = None
    ttl_s: int | None = None
    environment: Mapping[str, str] = field(default_factory=dict)
    checkpoint_claim: str | None = None
    cache_claim: str | None = None


def defaults_for(spec: Mapping[str, Any], resolved: Mapping[str, Any], config: OperatorConfig) -> Defaults:
    """Those of a run: as they are kept in its status, whose block `resolved` this is, or, before its first Job, as the
    configuration has them."""
    kept = block_of(resolved, "pod")
    if kept:
        return _kept(kept)
    gpus = block_of(spec, "resources").get("gpus", 1)
    count = min(max(1, gpus), 64) if isinstance(gpus, int) else 1
    return Defaults(
        gpu_resource_name=config.default_gpu_resource_name,
        cpu=times(config.default_cpu_per_gpu or CPU_PER_GPU, count),
        memory=times(config.default_memory_per_gpu or MEMORY_PER_GPU, count),
        node_selector=config.default_node_selector,
        tolerations=config.default_tolerations,
        affinity=config.default_affinity,
        runtime_class_name=config.default_runtime_class_name or None,
        priority_class_name=config.default_priority_class_name or None,
        queue=config.default_queue or None,
        ttl_s=config.default_ttl_s,
        environment=config.default_environment,
        checkpoint_claim=config.default_checkpoint_claim or None,
        cache_claim=config.cache_claim or None,
    )


def kept_ttl_s(resolved: Mapping[str, Any]) -> int | None:
    """The time to live that a run without one of its own began with."""
    return _kept(block_of(resolved, "pod")).ttl_s


def _kept(block: Mapping[str, Any]) -> Defaults:
    """What stands in the status; of another type than the operator wrote it reads as absent."""
    known = maps_of(block.get("tolerations"))
    return Defaults(
        gpu_resource_name=_text(block, "gpuResourceName") or GPU_RESOURCE,
        cpu=_text(block, "cpu"),
        memory=_text(block, "memory"),
        node_selector=_texts(block, "nodeSelector"),
        tolerations=tuple({key: item[key] for key in TOLERATION_KEYS if key in item} for item in known),
        affinity=block_of(block, "affinity"),
        runtime_class_name=_text(block, "runtimeClassName"),
        priority_class_name=_text(block, "priorityClassName"),
        queue=_text(block, "queue"),
        ttl_s=integer_of(block.get("ttlSecondsAfterFinished")),
        environment=_texts(block, "environment"),
        checkpoint_claim=_text(block, "checkpointClaim"),
        cache_claim=_text(block, "cacheClaim"),
    )


def _text(block: Mapping[str, Any], key: str) -> str | None:
    return text_of(block.get(key)) or None


def _texts(block: Mapping[str, Any], key: str) -> Mapping[str, str]:
    return {name: value for name, value in block_of(block, key).items() if isinstance(value, str)}
