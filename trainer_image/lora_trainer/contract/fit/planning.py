"""The plan of a run: what it is expected to take, and how it will compute."""

from dataclasses import replace

from lora_trainer.contract.config import TrainConfig
from lora_trainer.contract.fit.adapter import Adapter, doubtful
from lora_trainer.contract.fit.choice import pod_memory, recomputes, setting_of
from lora_trainer.contract.fit.memory import gpu_memory
from lora_trainer.contract.fit.shape import Shape
from lora_trainer.contract.run_plan import RunPlan


def plan_of(
    config: TrainConfig,
    shape: Shape,
    adapter: Adapter,
    *,
    tokens: int | None = None,
    rows: int | None = None,
    learned_share: float = 1.0,
    longest: int | None = None,
) -> RunPlan:
    """The plan of a run. `tokens` and `rows` are those of the training data, None where not known; `learned_share` is
    the part of the tokens that is learned, `longest` the longest row in tokens (None for `maxSequenceLength`)."""
    shape = doubtful(shape, adapter)
    cpu = config.device.gpus == 0
    recompute = recomputes(config, shape, cpu=cpu)
    setting = setting_of(config, shape, None, quantization=config.quantization, recompute=recompute)
    setting = replace(setting, learned=learned_share, row=min(longest or setting.row, setting.row))
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
