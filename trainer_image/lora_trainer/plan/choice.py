"""What a run takes on a device by quantization and recomputation, what of it fits, and the fastest of what does; how
it computes where nothing tells its GPU, and the main memory of its pods.
"""

import enum
from collections.abc import Iterator
from dataclasses import dataclass, replace

from lora_trainer.plan.adapter import Adapter, matches
from lora_trainer.plan.architecture import GUESSED, ModelArchitecture
from lora_trainer.plan.families import READS_WEIGHTS
from lora_trainer.plan.limits import (
    CHECKPOINTING_FROM_PARAMETERS,
    CPU_TOKEN_BUDGET,
    FIT_SHARE,
    LARGEST_TOKEN_BUDGET,
    LARGEST_UNQUANTIZED_SHARE,
    TOKEN_BUDGET,
)
from lora_trainer.plan.memory import Memory, Setting, communicators_of, gpu_memory, main_memory, merge_memory
from lora_trainer.plan.speed import Speed, speed
from lora_trainer.spec.config import (
    ActivationCheckpointing,
    Kernels,
    Merge,
    Optimizer,
    Packing,
    Precision,
    Quantization,
    TrainConfig,
    Variant,
)
from lora_trainer.spec.gpus import KNOWN, Gpu, device_of

_LARGEST_HEAD = 256
CHECKPOINTING_MODES = (ActivationCheckpointing.NONE, ActivationCheckpointing.SELECTIVE, ActivationCheckpointing.FULL)
"""From the fastest to what takes least memory."""
REFERENCE = KNOWN[-1]
"""By whose peak and bandwidth settings are ordered on a device whose own are not known."""


class Fit(enum.StrEnum):
    """Whether a setting fits a device. `HALVED`: not at first, but with fewer tokens in a micro-batch, which the
    trainer finds by itself; `UNSURE`: the estimate is too wide to tell."""

    FITS = "Fits"
    UNSURE = "Unsure"
    HALVED = "Halved"
    TOO_LARGE = "TooLarge"
    REFUSED = "Refused"


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """What is known of the rows: tokens of the longest one, None for as many as a row may have, and the share of a
    micro-batch's tokens that is `target_share` at least. All of them may be, and are counted so; only what does not fit
    with that share surely does not. `p95` is the length that 95 % of the rows do not exceed, None where not known.
    `tokens` limits a micro-batch further, where an earlier plan did. `evaluated` has the longest held-out row."""

    longest: int | None = None
    target_share: float = 1.0
    p95: int | None = None
    tokens: int | None = None
    evaluated: int = 0

    def row(self, config: TrainConfig) -> int:
        """Most tokens of a row."""
        most = config.training.max_sequence_length
        return most if self.longest is None else max(1, min(most, self.longest))


@dataclass(frozen=True, slots=True, kw_only=True)
class Option:
    """A setting on a device. `spare_bytes` are below the part of its memory that an estimate may take, negative where
    they lack; `tokens` has a micro-batch then. The base is divided over `processes`, 1 where it is whole. `refusal` is
    why the trainer would not begin, empty where it would."""

    quantization: Quantization
    recompute: bool
    selective: bool = False
    fit: Fit
    peak_bytes: int
    spare_bytes: int
    tokens: int
    processes: int
    tokens_per_s: float | None
    refusal: str = ""

    @property
    def checkpointing(self) -> ActivationCheckpointing:
        """How it recomputes."""
        return ActivationCheckpointing.of(recompute=self.recompute, selective=self.selective)

    @property
    def divided(self) -> bool:
        """Whether each process holds a part of the base."""
        return self.processes > 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """A way to compute on a device, what it takes by part, and what that means there."""

    setting: Setting
    memory: Memory
    option: Option


def setting_of(
    config: TrainConfig,
    shape: ModelArchitecture,
    gpu: Gpu | None,
    *,
    quantization: Quantization,
    checkpointing: ActivationCheckpointing,
    load: Load | None = None,
    budget: int = TOKEN_BUDGET,
) -> Setting:
    """How the trainer would compute there, with the full micro-batch, on a GPU of `budget` tokens; None is a CPU."""
    training, load = config.training, load or Load()
    longest = load.row(config)
    fp32 = training.precision is Precision.FP32 or (gpu is None and training.precision is Precision.AUTO)
    head = max(layer.query // layer.heads for layer in shape.layers)
    kernel = gpu is not None and gpu.packs and not fp32 and head <= _LARGEST_HEAD
    kernel = kernel and training.kernels is Kernels.AUTO
    return Setting(
        quantization=quantization,
        recompute=checkpointing.recomputes,
        selective=checkpointing is ActivationCheckpointing.SELECTIVE,
        tokens=micro_batch_tokens(config, longest, load.tokens, CPU_TOKEN_BUDGET if gpu is None else budget),
        row=longest,
        evaluated=min(training.max_sequence_length, load.evaluated),
        packs=kernel and training.packing is Packing.ENABLED,
        cpu=gpu is None,
        fp32=fp32,
        dropout=config.lora.dropout > 0,
        dora=config.lora.variant is Variant.DORA,
        communicators=communicators_of(config.device),
        # Pages that left the GPU are not counted on: they leave only when something else lacks memory.
        optimizer=Optimizer.ADAMW if training.optimizer is Optimizer.ADAMW else Optimizer.ADAMW_8BIT,
    )


def micro_batch_tokens(config: TrainConfig, longest: int, most: int | None, budget: int) -> int:
    """Most tokens of a micro-batch: the budget, a longer row alone, and never more than a process's rows of a step."""
    training = config.training
    if training.micro_batch_size is not None:
        budget = training.micro_batch_size * longest
    budget = budget if most is None else min(budget, most)
    rows = -(-training.effective_batch_size // config.device.processes)
    return min(max(budget, longest), rows * longest)


def recomputes(config: TrainConfig, parameters: int, *, cpu: bool) -> bool:
    """Whether a run whose device is not known recomputes activations: where it is asked to, else if it is large."""
    wanted = config.training.activation_checkpointing
    if wanted is not ActivationCheckpointing.AUTO:
        return wanted.recomputes
    return is_large(parameters) and not cpu


def is_large(parameters: int) -> bool:
    """Whether a model recomputes activations on a GPU of which nothing is known."""
    return parameters >= CHECKPOINTING_FROM_PARAMETERS


def quantizes(config: TrainConfig, shape: ModelArchitecture) -> bool:
    """Whether `Auto` may take NF4: where the trainer would not refuse it, and the model would become smaller by it."""
    trained_whole = any(
        matches(name, ending) for _, _, name, _ in shape.modules() for ending in config.lora.modules_to_save
    )
    return not (
        trained_whole
        or shape.mixed
        or config.lora.init.changes_base
        or shape.family in READS_WEIGHTS
        or shape.experts > LARGEST_UNQUANTIZED_SHARE * shape.parameters
    )


def asked(config: TrainConfig, shape: ModelArchitecture) -> tuple[Quantization, ...]:
    """The quantizations that the run leaves to be chosen from, the better first."""
    if config.quantization is not Quantization.AUTO:
        return (config.quantization,)
    return (Quantization.NONE, Quantization.NF4) if quantizes(config, shape) else (Quantization.NONE,)


def divides(quantization: Quantization, variant: Variant) -> bool:
    """Whether the weights of layers go together with being divided: FSDP2 divides packed bytes of 4 bits as any other,
    but PEFT's DoRA knows these by a class that they lose, and 8-bit modules keep theirs elsewhere."""
    return quantization is Quantization.NONE or (
        quantization in {Quantization.NF4, Quantization.FP4} and variant is not Variant.DORA
    )


def divisible(config: TrainConfig, quantization: Quantization) -> bool:
    """Whether the trainer can divide the base's layers over the run's processes."""
    return (
        config.device.processes > 1
        and divides(quantization, config.lora.variant)
        and config.output.merge is Merge.ADAPTER
        and not config.lora.init.changes_base
        and not config.lora.target_parameters
    )


def choose(
    config: TrainConfig,
    shape: ModelArchitecture,
    adapter: Adapter,
    gpu: Gpu,
    *,
    load: Load | None = None,
) -> Candidate:
    """How a run computes on a device, of the ways that it leaves open; one that does not fit, if none does.

    Of what fits the whole base comes before a quantized one, and undivided before divided: the first changes the
    result, the second depends on links between GPUs that nothing tells. Divided within a node comes before over all
    nodes, whose network would carry the base twice for each micro-batch. Then the fastest, and with equal times the
    largest micro-batch. Where nothing surely fits, it is what takes least. So with more memory a base is never
    quantized that was not, and neither divided nor slower where it is held alike.
    """
    wanted = config.training.activation_checkpointing
    modes = CHECKPOINTING_MODES if wanted is ActivationCheckpointing.AUTO else (wanted,)
    found = [
        candidate
        for quantization in asked(config, shape)
        for checkpointing in modes
        for candidate in candidates_of(
            config,
            shape,
            adapter,
            gpu,
            quantization=quantization,
            checkpointing=checkpointing,
            load=load or Load(),
            budget=LARGEST_TOKEN_BUDGET,
        )
    ]
    fitting = [candidate for candidate in found if candidate.option.fit is Fit.FITS]
    if not fitting:
        return min(found, key=lambda one: (one.option.fit is Fit.REFUSED, one.memory.total))
    return min(
        fitting,
        key=lambda one: (
            one.setting.quantization is not Quantization.NONE,
            one.option.processes,
            _seconds(shape, adapter, gpu, one.setting),
            -one.setting.tokens,
        ),
    )


def candidates_of(
    config: TrainConfig,
    shape: ModelArchitecture,
    adapter: Adapter,
    gpu: Gpu,
    *,
    quantization: Quantization,
    checkpointing: ActivationCheckpointing,
    load: Load,
    budget: int = TOKEN_BUDGET,
) -> Iterator[Candidate]:
    """Whole, then where it can be divided within a node, and over all; of each the full micro-batch first, then halved
    until it fits, or down to the longest row. Divided over processes none is larger than `TOKEN_BUDGET`: they cannot
    halve it together where the estimate was too low.
    """
    full = setting_of(
        config, shape, gpu, quantization=quantization, checkpointing=checkpointing, load=load, budget=budget
    )
    device = config.device
    divisions = sorted({1, device.gpus, device.processes}) if divisible(config, quantization) else [1]
    for processes in divisions:
        alone = processes == 1 or config.training.micro_batch_size is not None
        most = full.tokens if alone else min(full.tokens, max(full.row, TOKEN_BUDGET))
        communicators = communicators_of(device, processes)
        setting = replace(full, processes=processes, tokens=most, communicators=communicators)
        found = _candidate(config, shape, adapter, gpu, setting)
        yield found
        while found.option.fit is not Fit.FITS and setting.tokens > setting.row:
            setting = replace(setting, tokens=max(setting.tokens // 2, setting.row))
            found = _candidate(config, shape, adapter, gpu, setting)
            yield found


def _candidate(
    config: TrainConfig, shape: ModelArchitecture, adapter: Adapter, gpu: Gpu, setting: Setting
) -> Candidate:
    memory = gpu_memory(shape, adapter, setting)
    refused = _refusal(config, shape, gpu, setting.quantization)
    found: Speed | None = speed(shape, adapter, setting, gpu)
    option = Option(
        quantization=setting.quantization,
        recompute=setting.recompute,
        selective=setting.selective,
        fit=Fit.REFUSED if refused else _fit(memory, gpu, shape, setting),
        peak_bytes=memory.total,
        spare_bytes=int(FIT_SHARE * gpu.memory_bytes) - memory.total,
        tokens=setting.tokens,
        processes=setting.processes,
        tokens_per_s=found.tokens_per_s * config.device.processes if found else None,
        refusal=refused,
    )
    return Candidate(setting=setting, memory=memory, option=option)


def _fit(memory: Memory, gpu: Gpu, shape: ModelArchitecture, setting: Setting) -> Fit:
    most = FIT_SHARE * gpu.memory_bytes
    if memory.total * (1 + shape.spread) <= most:
        return Fit.UNSURE if shape.understated else Fit.FITS
    return Fit.TOO_LARGE if lower_end(memory, shape, setting) > most else Fit.UNSURE


def lower_end(memory: Memory, shape: ModelArchitecture, setting: Setting, *, spared: float = 0.0) -> float:
    """Bytes that a run takes at least. The weights of a known family are counted, so that its spread is of the rest
    alone, and what nothing explains of them may be left in the files; `spared` is what of the rest may not be there."""
    if shape.spread >= GUESSED:
        return (memory.total - spared) * (1 - shape.spread)
    weights = max(0, memory.weights - shape.unexplained * setting.size)
    return weights + (memory.total - memory.weights - spared) * (1 - shape.spread)


def refusal(config: TrainConfig, shape: ModelArchitecture) -> str:
    """Why the trainer would not begin a run, whatever the memory: a sentence, empty where it would."""
    gpu = device_of(config.device)
    found = [_refusal(config, shape, gpu, quantization) for quantization in asked(config, shape)]
    return found[0] if all(found) else ""


def _refusal(config: TrainConfig, shape: ModelArchitecture, gpu: Gpu | None, quantization: Quantization) -> str:
    if config.training.precision is Precision.BF16 and gpu is not None and not gpu.bf16:
        return f"training.precision is BF16: {gpu.name} has no native bf16; use Auto or FP16, or name other GPUs"
    if quantization is Quantization.NONE:
        return ""
    if shape.experts > LARGEST_UNQUANTIZED_SHARE * shape.parameters:
        share = f"{shape.experts / shape.parameters:.0%} of the model's weights"
        asks = f"quantization is {quantization.value}"
        return f"{asks}: {share} are experts of a mixture, which are not quantized; use Auto or None"
    if config.lora.init.changes_base:
        return f"lora.init is {config.lora.init.value}: it goes with quantization None alone; use Auto or None"
    return ""


def _seconds(shape: ModelArchitecture, adapter: Adapter, gpu: Gpu, setting: Setting) -> float:
    """Of a token, on the device or, where its speed is not known, on the reference."""
    known = gpu if gpu.flops is not None else replace(REFERENCE, packs=gpu.packs)
    found = speed(shape, adapter, setting, known)
    return 1 / found.tokens_per_s if found else 0.0


def pod_memory(
    config: TrainConfig, shape: ModelArchitecture, adapter: Adapter, load: Load | None = None, *, divided: bool = False
) -> int:
    """Bytes of main memory that each of the run's pods takes at its peak, a CPU's training included where there is no
    GPU, and the merge that follows it.

    A base that is divided is read there first. It stays pages of its files, but for experts, which are put together
    from one tensor each: then the processes take turns, and one copy is there at a time.
    """
    setting = presumed(config, shape, load)
    copies = expert_copies(config, shape) if divided else 0
    training = copies + main_memory(shape, adapter, setting, processes=max(1, config.device.gpus))
    return max(training, merge_memory(config, shape.parameters, shape))


def expert_copies(config: TrainConfig, shape: ModelArchitecture) -> int:
    """Bytes of main memory that a base takes on top while it is read divided."""
    return presumed(config, shape).size * shape.experts


def presumed(config: TrainConfig, shape: ModelArchitecture, load: Load | None = None) -> Setting:
    """How the run computes on a CPU, or where nothing tells its GPU: unquantized, unless it is asked to."""
    cpu = config.device.gpus == 0
    quantization = Quantization.NONE if config.quantization is Quantization.AUTO else config.quantization
    checkpointing = config.training.activation_checkpointing
    if checkpointing is ActivationCheckpointing.AUTO:
        recompute = recomputes(config, shape.parameters, cpu=cpu)
        checkpointing = ActivationCheckpointing.of(recompute=recompute, selective=False)
    gpu = None if cpu else REFERENCE
    return setting_of(config, shape, gpu, quantization=quantization, checkpointing=checkpointing, load=load)
