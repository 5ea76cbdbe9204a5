"""What a plan settles of a run's configuration."""

from dataclasses import replace

from lora_trainer.contract.config import Planned, Quantization, TrainConfig
from lora_trainer.contract.run_plan import RunPlan


def settled(config: TrainConfig, plan: RunPlan | None) -> TrainConfig:
    """The configuration that a plan makes of it: `Auto` for the quantization is replaced, and what else is `Auto` is
    kept beside it as `planned`. Where nothing tells the device, nothing is settled. Idempotent."""
    if plan is None or plan.device is None:
        return config
    quantization = plan.quantization if config.quantization is Quantization.AUTO else config.quantization
    planned = Planned(
        device=plan.device,
        device_bytes=plan.device_bytes,
        activation_checkpointing=plan.activation_checkpointing,
        micro_batch_tokens=plan.micro_batch_tokens,
        peak_bytes=plan.peak_bytes,
    )
    return replace(config, quantization=quantization, planned=planned)
