"""What a plan settles of a run's configuration."""

from dataclasses import replace

from lora_trainer.contract.config import Planned, Quantization, TrainConfig
from lora_trainer.contract.fit.limits import TOKEN_BUDGET
from lora_trainer.contract.fit.shape import GUESSED
from lora_trainer.contract.run_plan import RunPlan


def settled(config: TrainConfig, plan: RunPlan | None) -> TrainConfig:
    """The configuration that a plan makes of it: `Auto` for the quantization is replaced, and what else is `Auto` is
    kept beside it as `planned`. Where nothing tells the device, nothing is settled, and a guess quantizes nothing: only
    the training sees whether the model's modules allow it. Idempotent."""
    if plan is None or plan.device is None:
        return config
    # Whose checkpoint a run goes on from, that run's quantization it keeps, which the training finds there.
    guess = plan.spread >= GUESSED and plan.quantization is not Quantization.NONE
    settles = config.quantization is Quantization.AUTO and config.resume_from is None and not guess
    quantization = plan.quantization if settles else config.quantization
    planned = Planned(
        device=plan.device,
        device_bytes=plan.device_bytes,
        activation_checkpointing=plan.activation_checkpointing,
        micro_batch_tokens=plan.micro_batch_tokens,
        peak_bytes=plan.peak_bytes,
        selective_checkpointing=plan.selective_checkpointing,
        room_bytes=room_bytes(plan),
    )
    return replace(config, quantization=quantization, planned=planned)


def room_bytes(plan: RunPlan) -> int:
    """What must be free of a device for a run to begin: the estimate, with `TOKEN_BUDGET` tokens in a micro-batch where
    the plan has more. Where others hold the rest, micro-batches are halved, at little cost."""
    share = max(0.0, 1 - TOKEN_BUDGET / plan.micro_batch_tokens) if plan.micro_batch_tokens else 0.0
    return plan.peak_bytes - int(share * plan.activation_bytes)
