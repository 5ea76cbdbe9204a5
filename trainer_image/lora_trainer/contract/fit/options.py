"""All settings of a run on a device, beside the one that it would take: what `lora-trainer plan` shows."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from lora_trainer.contract.config import ActivationCheckpointing, Quantization, TrainConfig
from lora_trainer.contract.fit.adapter import Adapter
from lora_trainer.contract.fit.choice import (
    MANNERS,
    REFERENCE,
    Fit,
    Load,
    Option,
    candidates_of,
    choose,
    setting_of,
)
from lora_trainer.contract.fit.devices import Gpu
from lora_trainer.contract.fit.memory import Memory, gpu_memory
from lora_trainer.contract.fit.planning import fits_surely
from lora_trainer.contract.fit.shape import Shape
from lora_trainer.contract.fit.speed import SHARE


@dataclass(frozen=True, slots=True, kw_only=True)
class OnGpu:
    """A device with its options: that of the run as it is written, and the fastest that fits, None where none does.
    `fits` is whether the first does, as the plan of a run has it: None where it is tried."""

    name: str
    memory_bytes: int
    options: tuple[Option, ...]
    default: Option
    fits: bool | None
    fastest: Option | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """Memory by part of a setting at a micro-batch of `TOKEN_BUDGET`, on a GPU that has a kernel for packed rows.
    `default` marks the one that the run asks for, where it leaves nothing to `Auto`."""

    quantization: Quantization
    recompute: bool
    selective: bool
    default: bool
    memory: Memory
    peak_bytes: int

    @property
    def manner(self) -> ActivationCheckpointing:
        """How it recomputes."""
        return ActivationCheckpointing.of(recompute=self.recompute, selective=self.selective)


def rows(config: TrainConfig, shape: Shape, adapter: Adapter, quantizations: Iterable[Quantization]) -> tuple[Row, ...]:
    """Memory by part for each quantization and manner of recomputation."""
    found = []
    for quantization in quantizations:
        for manner in MANNERS:
            setting = setting_of(config, shape, REFERENCE, quantization=quantization, manner=manner)
            memory = gpu_memory(shape, adapter, setting)
            default = quantization is config.quantization and config.training.activation_checkpointing is manner
            found.append(
                Row(
                    quantization=quantization,
                    recompute=setting.recompute,
                    selective=setting.selective,
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
        option_on(config, shape, adapter, gpu, quantization=quantization, manner=manner, share=share)
        for quantization in quantizations
        for manner in MANNERS
    )
    chosen = choose(config, shape, adapter, gpu, share=share)
    return OnGpu(
        name=gpu.name,
        memory_bytes=gpu.memory_bytes,
        options=options,
        default=chosen.option,
        fits=fits_surely(config, chosen, shape, adapter, gpu=gpu, load=Load()),
        fastest=fastest(config, shape, adapter, gpu, share=share),
    )


def option_on(
    config: TrainConfig,
    shape: Shape,
    adapter: Adapter,
    gpu: Gpu,
    *,
    quantization: Quantization,
    manner: ActivationCheckpointing,
    load: Load | None = None,
    share: float = SHARE,
) -> Option:
    """One setting on one device: with a micro-batch of `TOKEN_BUDGET`, divided over as few as needed where only that
    fits, with halved ones else."""
    found = [
        candidate.option
        for candidate in candidates_of(
            config, shape, adapter, gpu, quantization=quantization, manner=manner, load=load or Load(), share=share
        )
    ]
    fits = next((option for option in found if option.fit is Fit.FITS), None)
    if fits is None:
        return next((option for option in found if option.divided), found[0])
    full = next(option for option in found if option.processes == fits.processes)
    if full is fits:
        return fits
    return replace(fits, fit=Fit.HALVED, spare_bytes=full.spare_bytes, peak_bytes=full.peak_bytes)


def fastest(config: TrainConfig, shape: Shape, adapter: Adapter, gpu: Gpu, *, share: float = SHARE) -> Option | None:
    """What `Auto` for quantization and recomputation would take, if anything fits."""
    free = replace(config.training, activation_checkpointing=ActivationCheckpointing.AUTO)
    auto = replace(config, quantization=Quantization.AUTO, training=free)
    found = choose(auto, shape, adapter, gpu, share=share).option
    return found if found.fit is Fit.FITS else None
