"""The plan of a run: how it will compute on its device, what that takes, and why; what does not fit, and what would.

Beside it all other settings on a device, what little can be said where only the number of a base's parameters is known,
and what a plan settles of a run's configuration.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

from lora_trainer.plan.adapter import Adapter, doubtful
from lora_trainer.plan.architecture import GUESSED, ModelArchitecture
from lora_trainer.plan.choice import (
    CHECKPOINTING_MODES,
    REFERENCE,
    Candidate,
    Fit,
    Load,
    Option,
    candidates_of,
    choose,
    divides,
    divisible,
    lower_end,
    micro_batch_tokens,
    pod_memory,
    presumed,
    quantizes,
    recomputes,
    setting_of,
)
from lora_trainer.plan.limits import CPU_TOKEN_BUDGET, FIT_SHARE, TOKEN_BUDGET, WEIGHTS_SHARE
from lora_trainer.plan.memory import (
    CPU_LIBRARIES,
    GPU_LIBRARIES,
    Memory,
    Setting,
    base_bytes,
    checkpoint_bytes,
    claim_bytes,
    communicators_of,
    gpu_memory,
    merge_memory,
    outside_bytes,
)
from lora_trainer.plan.remedies import LABELS, remedies
from lora_trainer.spec.config import (
    ActivationCheckpointing,
    Kernels,
    Optimizer,
    Planned,
    Precision,
    Quantization,
    TrainConfig,
)
from lora_trainer.spec.gpus import Gpu, device_of, gib
from lora_trainer.spec.run_plan import Alternative, RunPlan

_CHECKPOINTING = {
    ActivationCheckpointing.NONE: "kept activations",
    ActivationCheckpointing.SELECTIVE: "recomputed MLPs",
    ActivationCheckpointing.FULL: "recomputed activations",
}
_SAVED_BY_FAST_PATHS = 0.25
"""Of the activations of layers that keep them, at most: SiLU(gate) and the norms' fp32 copies (2I + 4C of some 184 KB a
token and layer of Llama-3-8B), by liger_kernel/ops/swiglu.py and rms_norm.py. Plans assume none of it."""
CPU = "cpu"


def plan_of(
    config: TrainConfig,
    shape: ModelArchitecture,
    adapter: Adapter,
    *,
    tokens: int | None = None,
    rows: int | None = None,
    target_share: float = 1.0,
    longest: int | None = None,
    evaluated: int = 0,
    p95: int | None = None,
    gpu: Gpu | None = None,
    micro_batch_tokens: int | None = None,
) -> RunPlan:
    """The plan of a run for `gpu`, or where that is None for the GPU that its configuration tells, if any.

    `tokens` and `rows` are those of the training data, None where not known; `target_share` is the part of all tokens
    that is learned, `longest` the longest row in tokens (None for `maxSequenceLength`), `evaluated` the longest of the
    rows that are held out, `p95` what 95 % of the rows have at most.
    `micro_batch_tokens` limits a micro-batch as an earlier plan did. Total: what does not fit has a plan, too, with
    `fits` False and the sentence as its `reason`.
    """
    load = Load(longest=longest, p95=p95, tokens=micro_batch_tokens, evaluated=evaluated)
    shape = doubtful(shape, adapter)
    if tokens is not None and rows:
        # Some row has at least as many target tokens as all have in the mean, and may be the longest.
        load = replace(load, target_share=target_share * min(1.0, tokens / rows / load.row(config)))
    gpu = gpu or device_of(config.device)
    if config.device.gpus == 0 or gpu is None:
        return _without_gpu(config, shape, adapter, load)
    chosen = choose(config, shape, adapter, gpu, load=load)
    plan = _plan(config, shape, adapter, chosen.setting, chosen.memory, load=load)
    seconds = _seconds(config, chosen.option, tokens=tokens, rows=rows)
    fits = fits_surely(config, chosen, shape, adapter, gpu=gpu, load=load)
    each = config.device.gpu_price
    hourly = None if each is None else each * config.device.processes
    return replace(
        plan,
        device=gpu.name,
        device_bytes=gpu.memory_bytes,
        fits=fits,
        tokens_per_second=chosen.option.tokens_per_s,
        seconds=seconds,
        price=None if hourly is None or seconds is None else round(hourly * seconds / 3600, 2),
        price_per_hour=hourly,
        reason=_reason(config, shape, adapter, gpu, chosen, load=load, fits=fits),
        alternatives=tuple(_alternatives(config, shape, adapter, gpu, chosen, load=load)),
    )


def _without_gpu(config: TrainConfig, shape: ModelArchitecture, adapter: Adapter, load: Load) -> RunPlan:
    """On a CPU, or on a GPU that nothing tells: then `Auto` stays."""
    setting = presumed(config, shape, load)
    plan = _plan(config, shape, adapter, setting, gpu_memory(shape, adapter, setting), load=load)
    if config.device.gpus == 0:
        reason = "without a GPU a CPU computes, with the whole base, since it is slow with a quantized one"
        asked = f"without a GPU a CPU computes, and quantization {config.quantization.value} is taken as asked for"
        auto = config.quantization is Quantization.AUTO or config.quantization is Quantization.NONE
        return replace(plan, device=CPU, reason=reason if auto else asked)
    settles = "so that what is Auto is settled on the GPU that the training finds"
    if config.device.gpu is None:
        remedy = f"set resources.gpuMinMemoryGiB or resources.gpuProducts to know before, {LABELS}"
        reason = f"nothing states the GPU's memory, {settles}: {remedy}"
    else:
        size = "" if "/" in config.device.gpu else "set resources.gpuMinMemoryGiB, too, or "
        remedy = f"{size}name it in the operator's setting config.gpus to know before"
        reason = f"the memory of {config.device.gpu} is not known here, {settles}: {remedy}"
    return replace(plan, quantization=config.quantization, reason=reason)


def _plan(
    config: TrainConfig, shape: ModelArchitecture, adapter: Adapter, setting: Setting, memory: Memory, *, load: Load
) -> RunPlan:
    """What does not depend on the device."""
    return RunPlan(
        quantization=setting.quantization,
        activation_checkpointing=setting.recompute,
        selective_checkpointing=setting.selective,
        micro_batch_tokens=setting.tokens,
        sharded=setting.processes > 1,
        sharded_over=setting.processes if setting.processes > 1 else None,
        peak_bytes=memory.total,
        weight_bytes=memory.weights,
        adapter_bytes=memory.adapter + memory.gradients + memory.optimizer + memory.copies,
        activation_bytes=memory.activations + memory.working,
        other_bytes=memory.constant + memory.dequantized,
        pod_memory_bytes=pod_memory(config, shape, adapter, load, divided=setting.processes > 1),
        trainable_parameters=adapter.parameters,
        adapter_file_bytes=adapter.file_bytes,
        checkpoint_bytes=checkpoint_bytes(config, adapter),
        claim_bytes=claim_bytes(config, shape, adapter),
        spread=shape.spread,
        reason="",
    )


def fits_surely(
    config: TrainConfig, chosen: Candidate, shape: ModelArchitecture, adapter: Adapter, *, gpu: Gpu, load: Load
) -> bool | None:
    """False only where even the lower end of the estimate is above all of the memory that the GPU may have, and the
    family is known; None where it may fit."""
    if chosen.option.fit is Fit.FITS:
        return True
    left_open = chosen.option.fit is Fit.REFUSED or shape.spread >= GUESSED
    return None if left_open or _least(config, chosen, shape, adapter, load) <= gpu.most_bytes else False


def _least(config: TrainConfig, chosen: Candidate, shape: ModelArchitecture, adapter: Adapter, load: Load) -> float:
    """Bytes of the lower end of the estimate, with as few target tokens as there may be at once, optimizer state that
    leaves the GPU where it lacks room, and all that fast paths may spare."""
    few = gpu_memory(shape, adapter, replace(chosen.setting, target_share=load.target_share))
    spared = float(few.optimizer) if config.training.optimizer is Optimizer.PAGED_ADAMW_8BIT else 0.0
    if config.training.kernels is Kernels.AUTO and not chosen.setting.whole_layers:
        spared += _SAVED_BY_FAST_PATHS * few.activations
    return lower_end(few, shape, chosen.setting, spared=spared)


def _seconds(config: TrainConfig, option: Option, *, tokens: int | None, rows: int | None) -> int | None:
    """Of the training; of a number of steps where the tokens of a row are known."""
    training = config.training
    if tokens is None or not option.tokens_per_s:
        return None
    if training.epochs is not None:
        return round(tokens * training.epochs / option.tokens_per_s)
    if not rows or training.max_steps is None:
        return None
    return round(training.max_steps * training.effective_batch_size * tokens / rows / option.tokens_per_s)


def _reason(
    config: TrainConfig,
    shape: ModelArchitecture,
    adapter: Adapter,
    gpu: Gpu,
    chosen: Candidate,
    *,
    load: Load,
    fits: bool | None,
) -> str:
    """Why it is so, or why it cannot be."""
    option = chosen.option
    if option.refusal:
        return option.refusal
    if fits is False:
        found = remedies(config, shape, adapter, gpu, load)
        on_each = config.device.processes > 1 and not divides(option.quantization, config.lora.variant)
        least = gib(_least(config, chosen, shape, adapter, load))
        needs = f"{least} of a GPU's memory{', each with the quantized base' if on_each else ''}"
        named = f"a GPU of {gpu.name}" if gpu.name[:1].isdigit() else gpu.name
        has = f"has {gib(gpu.most_bytes)}" if gpu.sold_bytes is None else f"has at most {gib(gpu.most_bytes)}"
        return f"the run needs at least {needs}, and {named} {has}: {found}"
    way = _way(chosen.setting)
    room = f"of the {gib(FIT_SHARE * gpu.memory_bytes)} that an estimate may take on {gpu.name}"
    if fits is None:
        width = f" give or take {shape.spread:.0%}" if shape.spread else ""
        width = " without its experts" if shape.understated else width
        return f"{way} takes least, {gib(option.peak_bytes)}{width} {room}: it may not fit"
    taken = f"{way} takes {gib(option.peak_bytes)} {room}"
    if config.quantization is not Quantization.AUTO:
        return f"{taken}; quantization is {config.quantization.value}, as the run asks"
    if option.quantization is Quantization.NONE:
        why = "the whole base fits" if quantizes(config, shape) else "this run cannot be quantized"
        return f"{taken}; {why}"
    whole = choose(replace(config, quantization=Quantization.NONE), shape, adapter, gpu, load=load).option
    return f"{taken}; with the whole base it would be {gib(whole.peak_bytes)} at least"


def _way(setting: Setting) -> str:
    base = {Quantization.NONE: "the whole base"}.get(setting.quantization, f"{setting.quantization.value}")
    divided = f", divided over {setting.processes} GPUs," if setting.processes > 1 else ""
    checkpointing = _CHECKPOINTING[setting.checkpointing]
    return f"{base}{divided} with {checkpointing} and {setting.tokens:,} tokens a micro-batch"


def _alternatives(
    config: TrainConfig, shape: ModelArchitecture, adapter: Adapter, gpu: Gpu, chosen: Candidate, *, load: Load
) -> Iterator[Alternative]:
    """The fastest way with each other quantization that the trainer would take."""
    for quantization in (Quantization.NONE, Quantization.NF4, Quantization.INT8):
        possible = quantization is Quantization.NONE or quantizes(config, shape)
        if quantization is chosen.setting.quantization or not possible:
            continue
        other = replace(config, quantization=quantization)
        found = choose(other, shape, adapter, gpu, load=load)
        if found.option.fit is not Fit.REFUSED:
            yield Alternative(
                change=f"quantization: {quantization.value}",
                peak_bytes=found.option.peak_bytes,
                fits=fits_surely(other, found, shape, adapter, gpu=gpu, load=load),
                tokens_per_second=found.option.tokens_per_s,
            )


def resolved_by_weights(config: TrainConfig, parameters: int, gpu: Gpu) -> tuple[Quantization, str]:
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
            found, why = resolved_by_weights(config, parameters, gpu)
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


def settled(config: TrainConfig, plan: RunPlan | None) -> TrainConfig:
    """The configuration that a plan makes of it: `Auto` for the quantization is replaced, and what else is `Auto` is
    kept beside it as `planned`. Where nothing tells the device, nothing is settled, and a guess quantizes nothing: only
    the training sees whether the model's modules allow it. Idempotent."""
    if plan is None or plan.device is None:
        return config
    # Whose checkpoint a run goes on from, that run's quantization it keeps, which the training finds there.
    guess = plan.spread >= GUESSED and plan.quantization is not Quantization.NONE
    settles = config.quantization is Quantization.AUTO and config.resume_from is None and not guess
    quantization = plan.quantization if settles else config.quantization
    planned = Planned(
        device=plan.device,
        device_bytes=plan.device_bytes,
        activation_checkpointing=plan.activation_checkpointing,
        micro_batch_tokens=plan.micro_batch_tokens,
        peak_bytes=plan.peak_bytes,
        selective_checkpointing=plan.selective_checkpointing,
        room_bytes=room_bytes(plan),
    )
    return replace(config, quantization=quantization, planned=planned)


def room_bytes(plan: RunPlan) -> int:
    """What must be free of a device for a run to begin: the estimate, with `TOKEN_BUDGET` tokens in a micro-batch where
    the plan has more. Where others hold the rest, micro-batches are halved, at little cost."""
    share = max(0.0, 1 - TOKEN_BUDGET / plan.micro_batch_tokens) if plan.micro_batch_tokens else 0.0
    return plan.peak_bytes - int(share * plan.activation_bytes)


@dataclass(frozen=True, slots=True, kw_only=True)
class OnGpu:
    """A device with its options, and that of the run as it is written; `fits` is whether this does, as the plan of a
    run has it: None where it is tried."""

    name: str
    memory_bytes: int
    options: tuple[Option, ...]
    default: Option
    fits: bool | None


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
    def checkpointing(self) -> ActivationCheckpointing:
        """How it recomputes."""
        return ActivationCheckpointing.of(recompute=self.recompute, selective=self.selective)


def rows(
    config: TrainConfig, shape: ModelArchitecture, adapter: Adapter, quantizations: Iterable[Quantization]
) -> tuple[Row, ...]:
    """Memory by part for each quantization and manner of recomputation."""
    found = []
    for quantization in quantizations:
        for checkpointing in CHECKPOINTING_MODES:
            setting = setting_of(config, shape, REFERENCE, quantization=quantization, checkpointing=checkpointing)
            memory = gpu_memory(shape, adapter, setting)
            default = quantization is config.quantization and config.training.activation_checkpointing is checkpointing
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
    shape: ModelArchitecture,
    adapter: Adapter,
    gpu: Gpu,
    quantizations: Sequence[Quantization],
) -> OnGpu:
    """All options on a device."""
    options = tuple(
        option_on(config, shape, adapter, gpu, quantization=quantization, checkpointing=checkpointing)
        for quantization in quantizations
        for checkpointing in CHECKPOINTING_MODES
    )
    chosen = choose(config, shape, adapter, gpu)
    return OnGpu(
        name=gpu.name,
        memory_bytes=gpu.memory_bytes,
        options=options,
        default=chosen.option,
        fits=fits_surely(config, chosen, shape, adapter, gpu=gpu, load=Load()),
    )


def option_on(
    config: TrainConfig,
    shape: ModelArchitecture,
    adapter: Adapter,
    gpu: Gpu,
    *,
    quantization: Quantization,
    checkpointing: ActivationCheckpointing,
    load: Load | None = None,
) -> Option:
    """One setting on one device: with a micro-batch of `TOKEN_BUDGET`, divided over as few as needed where only that
    fits, with halved ones else."""
    found = [
        candidate.option
        for candidate in candidates_of(
            config, shape, adapter, gpu, quantization=quantization, checkpointing=checkpointing, load=load or Load()
        )
    ]
    fits = next((option for option in found if option.fit is Fit.FITS), None)
    if fits is None:
        return next((option for option in found if option.divided), found[0])
    full = next(option for option in found if option.processes == fits.processes)
    if full is fits:
        return fits
    return replace(fits, fit=Fit.HALVED, spare_bytes=full.spare_bytes, peak_bytes=full.peak_bytes)
