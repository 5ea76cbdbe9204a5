"""What little can be said of a run where only the number of its base's parameters is known, and not its layers."""

from lora_trainer.contract.config import Precision, Quantization, TrainConfig
from lora_trainer.contract.fit.choice import Load, divisible, micro_batch_tokens, recomputes
from lora_trainer.contract.fit.devices import Gpu, device_of, gib
from lora_trainer.contract.fit.limits import CPU_TOKEN_BUDGET, TOKEN_BUDGET, WEIGHTS_SHARE
from lora_trainer.contract.fit.memory import CPU_LIBRARIES, GPU_LIBRARIES, base_bytes, communicators_of, outside_bytes
from lora_trainer.contract.fit.merging import merge_memory
from lora_trainer.contract.fit.shape import GUESSED
from lora_trainer.contract.run_plan import RunPlan


def settled_by_weights(config: TrainConfig, parameters: int, gpu: Gpu) -> tuple[Quantization, str]:
    """What `Auto` becomes on a GPU, and why: not quantized where the weights in full take no more of it than
    `WEIGHTS_SHARE`, whole or divided. Whether the model can be quantized, its own modules tell."""
    whole, room = _weight_bytes(config, parameters), WEIGHTS_SHARE * gpu.memory_bytes
    most = f"the {gib(room)} that weights alone may take of {gpu.name}"
    processes = config.device.processes
    if whole <= room:
        return Quantization.NONE, f"unquantized weights take {gib(whole)} of {most}"
    if divisible(config, Quantization.NONE) and whole / processes <= room:
        over = f"divided over {processes} GPUs"
        return Quantization.NONE, f"unquantized weights {over} take {gib(whole / processes)} of {most}"
    more = f"unquantized weights take {gib(whole)}, more than {most}"
    if config.lora.init.changes_base:
        return Quantization.NONE, f"{more}, but lora.init is {config.lora.init.value}"
    return Quantization.NF4, more


def plan_by_weights(
    config: TrainConfig, parameters: int, longest: int | None = None, gpu: Gpu | None = None
) -> RunPlan:
    """A plan that settles nothing: its memory is that of the unquantized weights, and what depends on layers is 0.
    `gpu` is None for the one that the configuration tells, if any."""
    cpu, gpu = config.device.gpus == 0, gpu or device_of(config.device)
    weights = round(_weight_bytes(config, parameters))
    other = CPU_LIBRARIES if cpu else outside_bytes(communicators_of(config.device))
    reason = "the model's layers are not known, so that memory is that of its unquantized weights alone"
    if config.quantization is Quantization.AUTO and not cpu:
        why = "they decide on the GPU that the training finds"
        if gpu is not None:
            found, why = settled_by_weights(config, parameters, gpu)
            why = f"it would be {found.value}, since {why}"
        reason = f"{reason}, and the training settles Auto by them: {why}"
    return RunPlan(
        quantization=config.quantization,
        activation_checkpointing=recomputes(config, parameters, cpu=cpu),
        micro_batch_tokens=micro_batch_tokens(
            config, Load(longest=longest).row(config), None, CPU_TOKEN_BUDGET if cpu else TOKEN_BUDGET
        ),
        peak_bytes=weights + other,
        weight_bytes=weights,
        adapter_bytes=0,
        activation_bytes=0,
        other_bytes=other,
        pod_memory_bytes=max(
            weights + other if cpu else GPU_LIBRARIES * config.device.gpus, merge_memory(config, parameters)
        ),
        trainable_parameters=0,
        adapter_file_bytes=0,
        spread=GUESSED,
        reason=reason,
    )


def _weight_bytes(config: TrainConfig, parameters: int) -> float:
    """Of all weights without quantization."""
    fp32 = config.training.precision is Precision.FP32 or config.device.gpus == 0
    return base_bytes(parameters, 0, Quantization.NONE, 4 if fp32 else 2)
