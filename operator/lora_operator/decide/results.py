"""The blocks `plan` and `resolved` of the status, as far as spec and operator fix them, and what is read of them."""

from collections.abc import Mapping
from typing import Any

from lora_operator.decide.blocks import LONGEST_TEXT, Block, block_from
from lora_operator.model.request import Request
from lora_operator.model.wording import byte_size, printable, text_of
from lora_trainer.spec.config import ActivationCheckpointing, Quantization, TrainConfig
from lora_trainer.spec.manifest import checkpoint_claim
from lora_trainer.spec.run_plan import RunPlan
from lora_trainer.spec.summary import Summary, clip

_OF_LORA = ("rank", "alpha", "dropout", "scaling", "variant", "init")
_OF_TRAINING = (
    *("learning_rate", "schedule", "warmup_ratio", "effective_batch_size", "max_sequence_length", "loss_on"),
    *("optimizer", "weight_decay", "max_grad_norm", "precision", "seed", "epochs", "max_steps", "eval_steps"),
)


def resolved_by_request(request: Request, image: str) -> Block:
    """What the run and its pods get by the spec and the operator's defaults; empty where the spec breaks a rule."""
    return resolved_by_spec(request.train, image) | {"pod": _pod_block(request, request.train)} if request.train else {}


def resolved_by_spec(train: TrainConfig, image: str) -> Block:
    """Every value that the spec and its defaults fixed; a later change of a default leaves it."""
    return {
        **block_from(train.lora, _OF_LORA),
        **block_from(train.training, _OF_TRAINING),
        **block_from(train.dataset, ("validation_fraction", "max_validation_rows")),
        "quantization": train.quantization.value,
        "image": clip(printable(image), LONGEST_TEXT),
        **_recomputed(train),
    }


def _recomputed(train: TrainConfig) -> dict[str, bool]:
    """Which activations are recomputed; empty where nothing has settled it."""
    checkpointing = train.training.activation_checkpointing
    if checkpointing is ActivationCheckpointing.AUTO:
        if train.planned is None:
            return {}
        checkpointing = train.planned.checkpointing
    return {
        "activationCheckpointing": checkpointing.recomputes,
        "selectiveCheckpointing": checkpointing is ActivationCheckpointing.SELECTIVE,
    }


def _pod_block(request: Request, train: TrainConfig) -> Block:
    """What each training pod asks for, and what else the operator's defaults decide; `Defaults` reads it back."""
    pod = request.pod
    block = {
        "gpuResourceName": pod.gpu_resource_name if pod.gpus else "",
        "cpu": pod.cpu,
        "memory": pod.memory,
        "nodeSelector": dict(pod.node_selector),
        "tolerations": [dict(toleration) for toleration in pod.tolerations],
        "affinity": dict(pod.affinity),
        "runtimeClassName": pod.runtime_class_name,
        "priorityClassName": pod.priority_class_name,
        # What the resource itself says of these may change.
        "queue": request.defaults.queue,
        "ttlSecondsAfterFinished": request.defaults.ttl_s,
        "environment": dict(pod.environment),
        "checkpointClaim": checkpoint_claim(train),
        "cacheClaim": pod.cache_claim,
    }
    return {key: value for key, value in block.items() if value not in (None, "", {}, [])}


def plan_block(plan: RunPlan) -> Block:
    """All of the plan, and ready strings for people."""
    block = block_from(plan)
    shown = {"peakMemory": "peakBytes", "deviceMemory": "deviceBytes", "podMemory": "podMemoryBytes"}
    return block | {key: byte_size(block[source]) for key, source in shown.items() if source in block}


def found_by(report: Summary) -> dict[str, Block]:
    """The blocks of what a preflight found out."""
    return {
        "preflight": block_from(report.preflight) if report.preflight else {},
        "plan": plan_block(report.plan) if report.plan else {},
    }


def kept_quantization(resolved: Mapping[str, Any]) -> Quantization | None:
    """What a run's `Auto` has become, in a former attempt or before somebody replaced None by it; None before that."""
    settled = {kind.value: kind for kind in Quantization if kind is not Quantization.AUTO}
    return settled.get(text_of(resolved.get("quantization")))
