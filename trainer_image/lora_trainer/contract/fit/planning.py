"""The plan of a run: what it is expected to take, and how it will compute."""

from dataclasses import dataclass

from lora_trainer.contract.config import TrainConfig
from lora_trainer.contract.fit.adapter import Adapter
from lora_trainer.contract.fit.choice import pod_memory, recomputes, setting_of
from lora_trainer.contract.fit.memory import gpu_memory
from lora_trainer.contract.fit.shape import Shape
from lora_trainer.contract.run_plan import RunPlan


@dataclass(frozen=True, slots=True, kw_only=True)
class RowLengths:
    """Tokens of the rows to train on, before the cut: median, 95th percentile, longest."""

    p50: int
    p95: int
    longest: int


def plan_of(
    config: TrainConfig,
    shape: Shape,
    adapter: Adapter,
    *,
    tokens: int | None,
    learned_share: float,
    row_lengths: RowLengths | None,
) -> RunPlan:
    """The plan of a run whose data set has so many tokens to train on, of which this share is learned."""
    cpu = config.device.gpus == 0
    recompute = recomputes(config, shape, cpu=cpu)
    setting = setting_of(config, shape, None, quantization=config.quantization, recompute=recompute)
    memory = gpu_memory(shape, adapter, setting)
    return RunPlan(
        quantization=config.quantization,
        activation_checkpointing=recompute,
        micro_batch_tokens=setting.tokens,
        peak_bytes=memory.total,
        weight_bytes=memory.weights + memory.dequantized,
        adapter_bytes=memory.adapter + memory.gradients + memory.optimizer + memory.copies,
        activation_bytes=memory.activations,
        other_bytes=memory.working + memory.constant,
        pod_memory_bytes=pod_memory(config, shape, adapter),
        trainable_parameters=adapter.parameters,
        adapter_file_bytes=adapter.file_bytes,
        spread=shape.spread,
        reason="nothing tells which device the run will have, so that it is as it was asked for",
    )


def refusal(plan: RunPlan) -> str:
    """The sentence for a plan that does not fit its device, with the three cheapest changes that would."""
    changes = [f"{other.change} ({other.peak_bytes:,} bytes)" for other in plan.alternatives if other.fits][:3]
    remedy = f"; what would fit: {', '.join(changes)}" if changes else "; choose a larger GPU or a smaller model"
    return f"the run takes {plan.peak_bytes:,} bytes, more than {plan.device} has for it{remedy}"
