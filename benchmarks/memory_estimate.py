"""The fit model's bytes of a simulated or measured step."""

from collections.abc import Mapping
from typing import Any

from benchmarks.memory_simulation import Step

from lora_trainer.plan.adapter import plan_adapter
from lora_trainer.plan.families import architecture_of
from lora_trainer.plan.memory import Memory, Setting, gpu_memory
from lora_trainer.spec.config import Variant


def setting_of(step: Step) -> Setting:
    """The same in the fit model's words."""
    return Setting(
        quantization=step.quantization,
        recompute=step.recompute,
        selective=step.selective,
        tokens=sum(step.rows),
        row=max(step.rows),
        packs=step.packs,
        fp32=step.fp32,
        dropout=step.lora.dropout > 0,
        dora=step.lora.variant is Variant.DORA,
        optimizer=step.training.optimizer,
        target_share=step.target_share,
    )


def estimate(config: Mapping[str, Any], step: Step) -> Memory:
    """Of the GPU at the peak of a step of the model that a `config.json` describes."""
    shape = architecture_of(config)
    return gpu_memory(shape, plan_adapter(step.lora, shape), setting_of(step))
