"""The plan of a run: how it will compute on its device, what that takes, and why; what does not fit, and what would."""

from collections.abc import Iterable, Iterator
from dataclasses import replace

from lora_trainer.contract.config import ActivationCheckpointing, Kernels, Optimizer, Quantization, TrainConfig
from lora_trainer.contract.fit.adapter import Adapter, doubtful
from lora_trainer.contract.fit.choice import (
    MANNERS,
    Candidate,
    Fit,
    Load,
    Option,
    choose,
    divides,
    lower_end,
    quantizes,
)
from lora_trainer.contract.fit.devices import Gpu, device_of, gib
from lora_trainer.contract.fit.limits import FIT_SHARE
from lora_trainer.contract.fit.memory import Memory, Setting, gpu_memory
from lora_trainer.contract.fit.pod import pod_memory, presumed
from lora_trainer.contract.fit.remedies import LABELS, remedies
from lora_trainer.contract.fit.shape import GUESSED, Shape
from lora_trainer.contract.fit.speed import SHARE
from lora_trainer.contract.fit.storage import checkpoint_bytes, claim_bytes
from lora_trainer.contract.run_plan import Alternative, RunPlan

_MANNER = {
    ActivationCheckpointing.NONE: "kept activations",
    ActivationCheckpointing.SELECTIVE: "recomputed MLPs",
    ActivationCheckpointing.FULL: "recomputed activations",
}
_SAVED_BY_FAST_PATHS = 0.25
"""Of the activations of layers that keep them, at most: SiLU(gate) and the norms' fp32 copies (2I + 4C of some 184 KB a
token and layer of Llama-3-8B), by liger_kernel/ops/swiglu.py and rms_norm.py. Plans assume none of it."""
MOST_ALTERNATIVES = 5
"""With more, much advice leaves a preflight's first row no room in the 4,096 bytes of a termination message."""
_ADVISED = (Quantization.NONE, Quantization.NF4)
"""What advice on quantization looks for among the alternatives."""
CPU = "cpu"


def plan_of(
    config: TrainConfig,
    shape: Shape,
    adapter: Adapter,
    *,
    tokens: int | None = None,
    rows: int | None = None,
    learned_share: float = 1.0,
    longest: int | None = None,
    evaluated: int = 0,
    p95: int | None = None,
    gpu: Gpu | None = None,
    micro_batch_tokens: int | None = None,
    share: float = SHARE,
) -> RunPlan:
    """The plan of a run for `gpu`, or where that is None for the GPU that its configuration tells, if any.

    `tokens` and `rows` are those of the training data, None where not known; `learned_share` is the part of all tokens
    that is learned, `longest` the longest row in tokens (None for `maxSequenceLength`), `evaluated` the longest of the
    rows that are held out, `p95` what 95 % of the rows have at most, `share` of the GPU's peak what times assume.
    `micro_batch_tokens` limits a micro-batch as an earlier plan did. Total: what does not fit has a plan, too, with
    `fits` False and the sentence as its `reason`.
    """
    load = Load(longest=longest, p95=p95, tokens=micro_batch_tokens, evaluated=evaluated)
    shape = doubtful(shape, adapter)
    if tokens is not None and rows:
        # Some row has at least as many learned tokens as all have in the mean, and may be the longest.
        load = replace(load, learned=learned_share * min(1.0, tokens / rows / load.row(config)))
    gpu = gpu or device_of(config.device)
    if config.device.gpus == 0 or gpu is None:
        return _without_gpu(config, shape, adapter, load)
    chosen = choose(config, shape, adapter, gpu, load=load, share=share)
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
        alternatives=_best(_alternatives(config, shape, adapter, gpu, chosen, load=load, share=share)),
    )


def _without_gpu(config: TrainConfig, shape: Shape, adapter: Adapter, load: Load) -> RunPlan:
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
    config: TrainConfig, shape: Shape, adapter: Adapter, setting: Setting, memory: Memory, *, load: Load
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
    config: TrainConfig, chosen: Candidate, shape: Shape, adapter: Adapter, *, gpu: Gpu, load: Load
) -> bool | None:
    """False only where even the lower end of the estimate is above all of the memory that the GPU may have, and the
    family is known; None where it may fit."""
    if chosen.option.fit is Fit.FITS:
        return True
    left_open = chosen.option.fit is Fit.REFUSED or shape.spread >= GUESSED
    return None if left_open or _least(config, chosen, shape, adapter, load) <= gpu.most_bytes else False


def _least(config: TrainConfig, chosen: Candidate, shape: Shape, adapter: Adapter, load: Load) -> float:
    """Bytes of the lower end of the estimate, with as few learned tokens as there may be at once, optimizer state that
    leaves the GPU where it lacks room, and all that fast paths may spare."""
    few = gpu_memory(shape, adapter, replace(chosen.setting, learned=load.learned))
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
    shape: Shape,
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
    manner = _MANNER[setting.manner]
    return f"{base}{divided} with {manner} and {setting.tokens:,} tokens a micro-batch"


def _alternatives(
    config: TrainConfig, shape: Shape, adapter: Adapter, gpu: Gpu, chosen: Candidate, *, load: Load, share: float
) -> Iterator[tuple[Quantization, Alternative]]:
    """Each quantization in each manner of recomputation, but for the chosen way and what the trainer would refuse."""
    for quantization in (Quantization.NONE, Quantization.NF4, Quantization.INT8):
        for manner in MANNERS:
            if (quantization, manner) == (chosen.setting.quantization, chosen.setting.manner):
                continue
            training = replace(config.training, activation_checkpointing=manner)
            other = replace(config, quantization=quantization, training=training)
            found = choose(other, shape, adapter, gpu, load=load, share=share)
            option = found.option
            if option.fit is Fit.REFUSED or (quantization is not Quantization.NONE and not quantizes(config, shape)):
                continue
            alternative = Alternative(
                change=f"quantization: {quantization.value}, training.activationCheckpointing: {manner.value}",
                peak_bytes=option.peak_bytes,
                fits=fits_surely(other, found, shape, adapter, gpu=gpu, load=load),
                tokens_per_second=option.tokens_per_s,
            )
            yield quantization, alternative


def _best(found: Iterable[tuple[Quantization, Alternative]]) -> tuple[Alternative, ...]:
    """At most `MOST_ALTERNATIVES`, in the order in which they were found: the best one of each quantization that advice
    looks for, then those that fit before those that may not, the faster ones first."""
    every = list(found)
    ranked = sorted(every, key=lambda one: _worth(one[1]), reverse=True)
    advised = (next((one for kind, one in ranked if kind is wanted), None) for wanted in _ADVISED)
    kept = dict.fromkeys(one for one in (*advised, *(one for _, one in ranked)) if one is not None)
    taken = list(kept)[:MOST_ALTERNATIVES]
    return tuple(one for _, one in every if one in taken)


def _worth(one: Alternative) -> tuple[int, float]:
    return (False, None, True).index(one.fits), one.tokens_per_second or 0.0
