"""What would make a run fit its GPU: the cheapest changes first, each with the memory that it leads to."""

from collections.abc import Iterable, Iterator
from dataclasses import replace

from lora_trainer.contract.config import ActivationCheckpointing, Optimizer, Quantization, TrainConfig, Variant
from lora_trainer.contract.fit.adapter import AdapterError, plan_adapter
from lora_trainer.contract.fit.choice import Fit, Load, choose
from lora_trainer.contract.fit.devices import Gpu, least_memory
from lora_trainer.contract.fit.shape import Shape

MOST = 3
_GIB = 2**30
LABELS = "where nodes have the labels of GPU feature discovery"
"""What fields that choose a GPU need: without, pods wait forever."""
_LEAST_LENGTH, _LEAST_RANK = 256, 4


def remedies(config: TrainConfig, shape: Shape, gpu: Gpu, load: Load) -> str:
    """At most `MOST` changes, each of which makes the run fit, as the end of a sentence."""
    found = []
    for ways in _changes(config, load):
        fitting = ((change, _peak(other, shape, gpu, load)) for change, other in ways)
        first = next((f"{change} ({peak / _GIB:.1f} GiB)" for change, peak in fitting if peak is not None), None)
        found += [first] if first else []
    found += list(_larger(config, shape, gpu, load))
    return f"it would fit with {' or '.join(found[:MOST])}" if found else "take a smaller model"


def _peak(config: TrainConfig, shape: Shape, gpu: Gpu, load: Load) -> int | None:
    """Of the changed run, None where it does not fit either."""
    try:
        adapter = plan_adapter(config.lora, shape)
    except AdapterError:
        return None
    option = choose(config, shape, adapter, gpu, load=load).option
    return option.peak_bytes if option.fit is Fit.FITS else None


def _changes(config: TrainConfig, load: Load) -> Iterator[Iterable[tuple[str, TrainConfig]]]:
    """From what costs time alone, over what changes the result little, to what changes it or costs money; of the ways
    of each the smallest change first, so that one of them is named."""
    training, lora = config.training, config.lora
    if training.activation_checkpointing in {ActivationCheckpointing.NONE, ActivationCheckpointing.SELECTIVE}:
        auto = replace(training, activation_checkpointing=ActivationCheckpointing.AUTO)
        yield (("training.activationCheckpointing: Auto", replace(config, training=auto)),)
    if training.optimizer is Optimizer.ADAMW:
        small = replace(training, optimizer=Optimizer.ADAMW_8BIT)
        yield (("training.optimizer: AdamW8bit", replace(config, training=small)),)
    if config.quantization is not Quantization.AUTO:
        yield (("quantization: Auto", replace(config, quantization=Quantization.AUTO)),)
    if lora.variant is Variant.DORA:
        yield (("lora.variant: LoRA", replace(config, lora=replace(lora, variant=Variant.LORA))),)
    if lora.dropout > 0:
        yield (("lora.dropout: 0", replace(config, lora=replace(lora, dropout=0.0))),)
    yield _shorter(config, load)
    yield _lower(config)
    yield _more(config)


def _shorter(config: TrainConfig, load: Load) -> Iterator[tuple[str, TrainConfig]]:
    """None that would cut more than one row in twenty; where only the longest row is known, none that would cut any."""
    known = load.longest if load.p95 is None else load.p95
    least = max(_LEAST_LENGTH, known or 0)
    length = 1 << (config.training.max_sequence_length - 1).bit_length() - 1
    while length >= least:
        training = replace(config.training, max_sequence_length=length)
        yield f"training.maxSequenceLength: {length}", replace(config, training=training)
        length //= 2


def _lower(config: TrainConfig) -> Iterator[tuple[str, TrainConfig]]:
    rank = config.lora.rank // 2
    while rank >= _LEAST_RANK:
        yield f"lora.rank: {rank}", replace(config, lora=replace(config.lora, rank=rank))
        rank //= 2


def _more(config: TrainConfig) -> Iterator[tuple[str, TrainConfig]]:
    for gpus in (2, 4, 8):
        if config.device.gpus < gpus and gpus * config.device.nodes <= config.training.effective_batch_size:
            yield f"resources.gpus: {gpus}", replace(config, device=replace(config.device, gpus=gpus))


def _larger(config: TrainConfig, shape: Shape, gpu: Gpu, load: Load) -> Iterator[str]:
    """The smallest memory that fits, of those that GPUs are sold with."""
    for size in (12, 16, 24, 32, 40, 48, 80, 96, 141, 192):
        if least_memory(size) <= gpu.memory_bytes:
            continue
        peak = _peak(config, shape, replace(gpu, memory_bytes=least_memory(size)), load)
        if peak is not None:
            yield _wanting(config.device.gpu, size, f"({peak / _GIB:.1f} GiB)")
            return


def _wanting(present: str | None, size: int, peak: str) -> str:
    """How to ask for that size, by what named the `present` GPU: beside a resource's name, or a product that has less,
    gpuMinMemoryGiB would find no node."""
    if present is None or present.endswith(" GiB"):
        return f"resources.gpuMinMemoryGiB: {size} {peak}, {LABELS}"
    if "/" in present:
        return f"a GPU of {size} GiB {peak}"
    return f"resources.gpuProducts of {size} GiB {peak}, {LABELS}"
