"""What would make a run fit its GPU: the cheapest changes first, each with the memory that it leads to."""

from collections.abc import Iterator
from dataclasses import replace

from lora_trainer.contract.config import ActivationCheckpointing, Optimizer, Quantization, TrainConfig, Variant
from lora_trainer.contract.fit.adapter import Adapter, AdapterError, plan_adapter
from lora_trainer.contract.fit.choice import Fit, Load, choose, quantizes
from lora_trainer.contract.fit.devices import Gpu
from lora_trainer.contract.fit.shape import Shape

MOST = 3
_GIB = 2**30
_LEAST_LENGTH, _LEAST_RANK = 256, 4
_MOST_GPUS, _MOST_GIB = 8, 1024


def remedies(config: TrainConfig, shape: Shape, adapter: Adapter, gpu: Gpu, load: Load) -> str:
    """At most `MOST` changes, each of which makes the run fit, as the end of a sentence."""
    found = []
    for change, other in _changes(config, shape):
        peak = _peak(other, shape, adapter, gpu, load)
        if peak is not None:
            found.append(f"{change} ({peak / _GIB:.1f} GiB)")
        if len(found) == MOST:
            break
    if len(found) < MOST:
        found += list(_larger(config, shape, adapter, gpu, load))
    return f"it would fit with {' or '.join(found)}" if found else "take a smaller model"


def _peak(config: TrainConfig, shape: Shape, adapter: Adapter, gpu: Gpu, load: Load) -> int | None:
    """Of the changed run, None where it does not fit either."""
    try:
        adapter = plan_adapter(config.lora, shape)
    except AdapterError:
        return None
    option = choose(config, shape, adapter, gpu, load=load).option
    return option.peak_bytes if option.fit is Fit.FITS else None


def _changes(config: TrainConfig, shape: Shape) -> Iterator[tuple[str, TrainConfig]]:
    """From what costs time alone, over what changes the result little, to what changes it or costs money."""
    training, lora = config.training, config.lora
    if training.activation_checkpointing is ActivationCheckpointing.NONE:
        auto = replace(training, activation_checkpointing=ActivationCheckpointing.AUTO)
        yield "training.activationCheckpointing: Auto", replace(config, training=auto)
    if training.optimizer is Optimizer.ADAMW:
        small = replace(training, optimizer=Optimizer.ADAMW_8BIT)
        yield "training.optimizer: AdamW8bit", replace(config, training=small)
    if config.quantization in {Quantization.NONE, Quantization.INT8} and quantizes(config, shape):
        yield "quantization: Auto", replace(config, quantization=Quantization.AUTO)
    if lora.variant is Variant.DORA:
        yield "lora.variant: LoRA", replace(config, lora=replace(lora, variant=Variant.LORA))
    if lora.dropout > 0:
        yield "lora.dropout: 0", replace(config, lora=replace(lora, dropout=0.0))
    yield from _shorter(config)
    yield from _lower(config)
    for gpus in (2, 4, 8):
        if config.device.gpus < gpus <= training.effective_batch_size:
            yield f"resources.gpus: {gpus}", replace(config, device=replace(config.device, gpus=gpus))


def _shorter(config: TrainConfig) -> Iterator[tuple[str, TrainConfig]]:
    """The longest of the rows' lengths that fits comes first, so that at most one of them is named."""
    length = 1 << (config.training.max_sequence_length - 1).bit_length() - 1
    while length >= _LEAST_LENGTH:
        training = replace(config.training, max_sequence_length=length)
        yield f"training.maxSequenceLength: {length}", replace(config, training=training)
        length //= 2


def _lower(config: TrainConfig) -> Iterator[tuple[str, TrainConfig]]:
    rank = config.lora.rank // 2
    while rank >= _LEAST_RANK:
        yield f"lora.rank: {rank}", replace(config, lora=replace(config.lora, rank=rank))
        rank //= 2


def _larger(config: TrainConfig, shape: Shape, adapter: Adapter, gpu: Gpu, load: Load) -> Iterator[str]:
    """The smallest memory that fits, of those that GPUs are sold with."""
    for size in (12, 16, 24, 32, 40, 48, 80, 96, 141, 192):
        larger = replace(gpu, memory_bytes=size * _GIB * 15 // 16)
        peak = _peak(config, shape, adapter, larger, load)
        if larger.memory_bytes > gpu.memory_bytes and peak is not None:
            yield f"resources.gpuMinMemoryGiB: {size} ({peak / _GIB:.1f} GiB)"
            return
