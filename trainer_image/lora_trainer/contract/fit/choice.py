"""What a run takes on a device by quantization and recomputation, what of it fits, and the fastest of what does."""

import enum
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from lora_trainer.contract.config import (
    ActivationCheckpointing,
    Optimizer,
    Packing,
    Precision,
    Quantization,
    TrainConfig,
    Variant,
)
from lora_trainer.contract.fit.adapter import Adapter
from lora_trainer.contract.fit.devices import KNOWN, Gpu
from lora_trainer.contract.fit.limits import (
    CHECKPOINTING_FROM_PARAMETERS,
    CPU_TOKEN_BUDGET,
    FIT_SHARE,
    LARGEST_UNQUANTIZED_SHARE,
    TOKEN_BUDGET,
    WEIGHTS_SHARE,
)
from lora_trainer.contract.fit.memory import Memory, Setting, gpu_memory, main_memory
from lora_trainer.contract.fit.shape import Shape
from lora_trainer.contract.fit.speed import SHARE, Speed, speed

_LARGEST_HEAD = 256
_REFERENCE = KNOWN[-1]
"""By whose peak and bandwidth settings are ordered on a device whose own are not known."""
_CHOSEN_FROM = (Quantization.NONE, Quantization.NF4)


class Fit(enum.StrEnum):
    """Whether a setting fits a device. `HALVED`: not at first, but with fewer tokens in a micro-batch, which the
    trainer finds by itself; `UNSURE`: the estimate is too wide to tell."""

    FITS = "Fits"
    UNSURE = "Unsure"
    HALVED = "Halved"
    TOO_LARGE = "TooLarge"
    REFUSED = "Refused"


@dataclass(frozen=True, slots=True, kw_only=True)
class Option:
    """A setting on a device. `spare_bytes` are below the part of its memory that an estimate may take, negative where
    they lack; `tokens` has a micro-batch then. `refusal` is why the trainer would not begin, empty where it would."""

    quantization: Quantization
    recompute: bool
    fit: Fit
    peak_bytes: int
    spare_bytes: int
    tokens: int
    divided: bool
    tokens_per_s: float | None
    refusal: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class OnGpu:
    """A device with its options: that of the run as it is written, and the fastest that fits, None where none does."""

    name: str
    memory_bytes: int
    options: tuple[Option, ...]
    default: Option
    fastest: Option | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """Memory by part of a setting at its full micro-batch, on a GPU that has a kernel for packed rows."""

    quantization: Quantization
    recompute: bool
    default: bool
    memory: Memory
    peak_bytes: int


def setting_of(
    config: TrainConfig, shape: Shape, gpu: Gpu | None, *, quantization: Quantization, recompute: bool
) -> Setting:
    """How the trainer would compute there; None is a CPU."""
    training, longest = config.training, config.training.max_sequence_length
    fp32 = training.precision is Precision.FP32 or (gpu is None and training.precision is Precision.AUTO)
    head = max(layer.query // layer.heads for layer in shape.layers)
    kernel = gpu is not None and gpu.packs and not fp32 and head <= _LARGEST_HEAD
    return Setting(
        quantization=quantization,
        recompute=recompute,
        tokens=_tokens(config, cpu=gpu is None),
        row=longest,
        packs=kernel and training.packing is Packing.ENABLED,
        cpu=gpu is None,
        fp32=fp32,
        dropout=config.lora.dropout > 0,
        dora=config.lora.variant is Variant.DORA,
        # Pages that left the GPU are not counted on: they leave only when something else lacks memory.
        optimizer=Optimizer.ADAMW if training.optimizer is Optimizer.ADAMW else Optimizer.ADAMW_8BIT,
    )


def _tokens(config: TrainConfig, *, cpu: bool) -> int:
    """Most tokens of a micro-batch: the budget, a longer row alone, and never more than a process's rows of a step."""
    training, longest = config.training, config.training.max_sequence_length
    budget = CPU_TOKEN_BUDGET if cpu else TOKEN_BUDGET
    if training.micro_batch_size is not None:
        budget = training.micro_batch_size * longest
    rows = -(-training.effective_batch_size // config.device.processes)
    return min(max(budget, longest), rows * longest)


def recomputes(config: TrainConfig, shape: Shape, *, cpu: bool) -> bool:
    """Whether the run, as it is written, recomputes activations."""
    wanted = config.training.activation_checkpointing
    if wanted is not ActivationCheckpointing.AUTO:
        return wanted is ActivationCheckpointing.FULL
    return shape.parameters >= CHECKPOINTING_FROM_PARAMETERS and not cpu


def rows(config: TrainConfig, shape: Shape, adapter: Adapter, quantizations: Iterable[Quantization]) -> tuple[Row, ...]:
    """Memory by part for each quantization, with and without recomputation."""
    found = []
    for quantization in quantizations:
        for recompute in (False, True):
            setting = setting_of(config, shape, _REFERENCE, quantization=quantization, recompute=recompute)
            memory = gpu_memory(shape, adapter, setting)
            default = quantization is config.quantization and recompute is recomputes(config, shape, cpu=False)
            found.append(
                Row(
                    quantization=quantization,
                    recompute=recompute,
                    default=default,
                    memory=memory,
                    peak_bytes=memory.total,
                )
            )
    return tuple(found)


def on_gpu(
    config: TrainConfig,
    shape: Shape,
    adapter: Adapter,
    gpu: Gpu,
    quantizations: Sequence[Quantization],
    *,
    share: float = SHARE,
) -> OnGpu:
    """All options on a device."""
    options = tuple(
        option_on(config, shape, adapter, gpu, quantization=quantization, recompute=recompute, share=share)
        for quantization in quantizations
        for recompute in (False, True)
    )
    recompute = recomputes(config, shape, cpu=False)
    default = option_on(config, shape, adapter, gpu, quantization=config.quantization, recompute=recompute, share=share)
    return OnGpu(
        name=gpu.name,
        memory_bytes=gpu.memory_bytes,
        options=options,
        default=default,
        fastest=fastest(config, shape, adapter, gpu, share=share),
    )


def option_on(
    config: TrainConfig,
    shape: Shape,
    adapter: Adapter,
    gpu: Gpu,
    *,
    quantization: Quantization,
    recompute: bool,
    share: float = SHARE,
) -> Option:
    """One setting on one device."""
    setting = setting_of(config, shape, gpu, quantization=quantization, recompute=recompute)
    memory = gpu_memory(shape, adapter, setting)
    processes = config.device.processes
    divided = processes > 1 and memory.weights > WEIGHTS_SHARE * gpu.memory_bytes
    if divided:
        setting = replace(setting, processes=processes)
        memory = gpu_memory(shape, adapter, setting)
    refusal = _refusal(config, shape, gpu, quantization, divided=divided)
    fit = _fit(memory.total, gpu, shape)
    while fit in {Fit.TOO_LARGE, Fit.UNSURE} and not divided and setting.tokens // setting.row > 1:
        setting = replace(setting, tokens=max(setting.tokens // 2, setting.row))
        if _fit(gpu_memory(shape, adapter, setting).total, gpu, shape) is Fit.FITS:
            fit = Fit.HALVED
    found: Speed | None = speed(shape, adapter, setting, gpu, share=share)
    return Option(
        quantization=quantization,
        recompute=recompute,
        fit=Fit.REFUSED if refusal else fit,
        peak_bytes=memory.total,
        spare_bytes=int(FIT_SHARE * gpu.memory_bytes) - memory.total,
        tokens=setting.tokens,
        divided=divided,
        tokens_per_s=found.tokens_per_s * processes if found else None,
        refusal=refusal,
    )


def _fit(peak: int, gpu: Gpu, shape: Shape) -> Fit:
    most = FIT_SHARE * gpu.memory_bytes
    if peak * (1 + shape.spread) <= most:
        return Fit.FITS
    return Fit.TOO_LARGE if peak * (1 - shape.spread) > most else Fit.UNSURE


def _refusal(config: TrainConfig, shape: Shape, gpu: Gpu, quantization: Quantization, *, divided: bool) -> str:
    """What the trainer refuses whatever the memory."""
    if config.training.precision is Precision.BF16 and not gpu.bf16:
        return "training.precision is BF16: this GPU has no native bf16; use Auto or FP16"
    if quantization is Quantization.NONE:
        return ""
    if shape.experts > LARGEST_UNQUANTIZED_SHARE * shape.parameters:
        return "most of the weights are experts of a mixture, which are not quantized"
    if config.lora.init.changes_base:
        return f"lora.init is {config.lora.init.value}: it needs quantization None"
    return "quantized weights are not divided over GPUs" if divided else ""


def fastest(config: TrainConfig, shape: Shape, adapter: Adapter, gpu: Gpu, *, share: float = SHARE) -> Option | None:
    """The fastest setting that fits, of no quantization and NF4; where times are equal, the first of these."""
    found = [
        option_on(config, shape, adapter, gpu, quantization=quantization, recompute=recompute, share=share)
        for quantization in _CHOSEN_FROM
        for recompute in (False, True)
    ]
    fitting = [option for option in found if option.fit is Fit.FITS]
    return min(fitting, key=lambda option: _seconds(config, shape, adapter, gpu, option, share=share), default=None)


def _seconds(config: TrainConfig, shape: Shape, adapter: Adapter, gpu: Gpu, option: Option, *, share: float) -> float:
    """Of a token, on the device or, where its speed is not known, on the reference."""
    known = gpu if gpu.flops is not None else replace(_REFERENCE, packs=gpu.packs)
    setting = setting_of(config, shape, gpu, quantization=option.quantization, recompute=option.recompute)
    found = speed(shape, adapter, setting, known, share=share)
    return 1 / found.tokens_per_s if found else 0.0


def pod_memory(config: TrainConfig, shape: Shape, adapter: Adapter) -> int:
    """Bytes of main memory that each of the run's pods takes, a CPU's training included where there is no GPU."""
    cpu = config.device.gpus == 0
    setting = setting_of(
        config,
        shape,
        None if cpu else _REFERENCE,
        quantization=config.quantization,
        recompute=recomputes(config, shape, cpu=cpu),
    )
    return main_memory(shape, adapter, setting, processes=max(1, config.device.gpus))
