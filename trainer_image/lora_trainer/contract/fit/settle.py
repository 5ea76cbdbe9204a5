"""What a plan settles of a run's configuration."""

from dataclasses import replace

from lora_trainer.contract.config import Planned, Quantization, TrainConfig
from lora_trainer.contract.run_plan import RunPlan


def settled(config: TrainConfig, plan: RunPlan | None) -> TrainConfig:
    """The configuration that a plan makes of it: `Auto` for the quantization is replaced, and what else is `Auto` is
    kept beside it as `planned`. Where nothing tells the device, nothing is settled. Idempotent."""
    if plan is None or plan.device is None:
        return config
    # Whose checkpoint a run goes on from, that run's quantization it keeps, which the training finds there.
    settles = config.quantization is Quantization.AUTO and config.resume_from is None
    quantization = plan.quantization if settles else config.quantization
    planned = Planned(
        device=plan.device,
        device_bytes=plan.device_bytes,
        activation_checkpointing=plan.activation_checkpointing,
        micro_batch_tokens=plan.micro_batch_tokens,
        peak_bytes=plan.peak_bytes,
    )
    return replace(config, quantization=quantization, planned=planned)
