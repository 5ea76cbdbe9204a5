"""A plan for people, as tables that fit 80 columns, and for programs, as JSON or YAML."""

import json
import textwrap
from collections.abc import Iterator, Sequence
from typing import Any

from lora_trainer.plan.answer import Plan, PlanByWeights
from lora_trainer.plan.architecture import EXPERTS_LEFT_OUT
from lora_trainer.plan.choice import Fit, Option
from lora_trainer.plan.limits import FIT_SHARE
from lora_trainer.plan.planning import OnGpu, Row
from lora_trainer.plan.speed import SHARE
from lora_trainer.spec import codec
from lora_trainer.spec.config import ActivationCheckpointing, Quantization

_GIB = 2**30
_MILLION = 1_000_000
_LEAST_WIDTH, _MOST_WIDTH = 60, 120
_BESIDE, _COLUMN, _NAME = 40, 8, 8
"""Columns of the devices' table but for names and settings, of each setting, and of names at least."""
_WHAT = {
    ActivationCheckpointing.NONE: ("no", "kept", "keeps activations"),
    ActivationCheckpointing.SELECTIVE: ("MLPs", "MLPs", "recomputes MLPs"),
    ActivationCheckpointing.FULL: ("yes", "recomp.", "recomputes activations"),
}
"""What is recomputed: in the table of memory, in that of devices, and in a sentence."""


def show(plan: Plan | PlanByWeights, form: str, width: int) -> str:
    """The plan as `json`, `yaml` or `table`, whose sentences are wrapped at `width` columns."""
    if form == "json":
        return json.dumps(document(plan), indent=2, ensure_ascii=False)
    if form == "yaml":
        import yaml  # noqa: PLC0415 - the one library of the room

        return yaml.safe_dump(document(plan), sort_keys=False, allow_unicode=True).rstrip()
    width = max(_LEAST_WIDTH, min(_MOST_WIDTH, width))
    return "\n".join(_by_weights(plan, width) if isinstance(plan, PlanByWeights) else _table(plan, width))


def document(plan: Plan | PlanByWeights) -> Any:
    """The plan as dicts and lists of plain values."""
    return codec.encode(plan)


def _table(plan: Plan, width: int) -> Iterator[str]:
    share = plan.trainable_parameters / plan.parameters
    yield from _wrapped(f"{plan.run}: {plan.model} ({plan.family}, {plan.parameters:,} parameters)", width)
    yield from _wrapped(
        f"Adapter: rank {plan.rank} on {plan.adapted_modules} linear modules, {plan.trainable_parameters:,} trained "
        f"parameters ({share:.2%}), {_size(plan.adapter_bytes)}",
        width,
    )
    yield from _wrapped(
        f"A micro-batch has at most {plan.micro_batch_tokens:,} tokens, a row {plan.longest_row:,}; every token is "
        "taken for learned",
        width,
    )
    yield ""
    yield from _memory(plan)
    yield ""
    name = max(_NAME, *(len(_short(gpu.name)) for gpu in plan.gpus))
    shown = _shown(plan, width - name)
    yield from _devices(plan, shown, name)
    yield ""
    for line in _explanations(plan, shown):
        yield from _wrapped(line, width)


def _memory(plan: Plan) -> Iterator[str]:
    divided = any(option.divided for gpu in plan.gpus for option in gpu.options)
    yield f"Memory of a GPU at the peak, GiB{', with the whole base' if divided else ''}"
    names = f"{'weights':>8}{'adapter':>8}{'activations':>12}{'working':>9}{'other':>7}{'total':>8}"
    yield f"  {'quantization':<13}{'recomputed':<11}{names}"
    for row in plan.rows:
        memory = row.memory
        adapter = memory.adapter + memory.gradients + memory.optimizer + memory.copies
        parts = (
            f"{_gib(memory.weights):>8}{_gib(adapter):>8}{_gib(memory.activations):>12}{_gib(memory.working):>9}"
            f"{_gib(memory.constant + memory.dequantized):>7}{_gib(row.peak_bytes):>8}"
        )
        mark = "*" if row.default else " "
        yield f"{mark} {row.quantization.value:<13}{_WHAT[row.checkpointing][0]:<11}{parts}"


def _devices(plan: Plan, shown: Sequence[Row], name: int) -> Iterator[str]:
    unit = "per 1M" if plan.trained_tokens is None else "time"
    yield f"GiB to spare on a GPU (or lacking), within {FIT_SHARE:.0%} of its memory"
    first = "".join(f"{('*' if row.default else '') + row.quantization.value:>8}" for row in shown)
    second = "".join(f"{_WHAT[row.checkpointing][1]:>8}" for row in shown)
    yield f"{'':<{name}}{'':>6}{first}  the run takes there"
    yield f"{'GPU':<{name}}{'GiB':>6}{second}  {'':<15}{'tokens/s':>9}{unit:>8}"
    for gpu in plan.gpus:
        by_setting = {(option.quantization, option.checkpointing): option for option in gpu.options}
        cells = "".join(f"{_cell(by_setting[row.quantization, row.checkpointing]):>8}" for row in shown)
        yield f"{_short(gpu.name):<{name}}{gpu.memory_bytes / _GIB:>6.1f}{cells}  {_taken(gpu, plan)}".rstrip()


def _short(name: str) -> str:
    """As there is room for: a slice by its profile."""
    return name.removeprefix("mig-")


def _shown(plan: Plan, width: int) -> list[Row]:
    """As many settings as there is room for: all, or of each quantization two, or those of none and of the one that the
    run asks for."""
    room = (width - _BESIDE) // _COLUMN
    between = plan.recompute is ActivationCheckpointing.SELECTIVE
    left_out = ActivationCheckpointing.NONE if between else ActivationCheckpointing.SELECTIVE
    two = [row for row in plan.rows if row.checkpointing is not left_out]
    wanted = [row for row in two if row.quantization in {Quantization.NONE, plan.quantization}]
    return next((rows for rows in (list(plan.rows), two) if len(rows) <= room), wanted if len(two) > 4 else two)


def _cell(option: Option) -> str:
    amount = f"{option.spare_bytes / _GIB:+.1f}"
    return {Fit.UNSURE: f"{amount}?", Fit.HALVED: f"{amount}/2", Fit.REFUSED: "refused"}.get(option.fit, amount)


def _taken(gpu: OnGpu, plan: Plan) -> str:
    taken = gpu.default
    if taken.fit is not Fit.FITS:
        tried = gpu.fits is None and taken.fit is not Fit.REFUSED
        return "may not fit" if tried else "nothing that fits"
    smaller, larger = plan.micro_batch_tokens // taken.tokens, taken.tokens // plan.micro_batch_tokens
    times = f"/{smaller}" if smaller > 1 else f"*{larger}" if larger > 1 else ""
    checkpointing = f"{_WHAT[taken.checkpointing][1]}{times}"
    name = f"{taken.quantization.value}, {checkpointing}"
    if taken.tokens_per_s is None:
        return name
    seconds = (plan.trained_tokens or _MILLION) / taken.tokens_per_s
    return f"{name:<15}{taken.tokens_per_s:>9,.0f}{_duration(seconds):>8}"


def _verdicts(plan: Plan) -> str:
    """On which GPUs it fits, on which it is tried, and on which not: as the plan of a run decides."""
    tried = {
        Fit.FITS: "It fits",
        Fit.UNSURE: "Perhaps it fits",
        Fit.TOO_LARGE: "It is tried, and may not fit, on",
        Fit.REFUSED: "It is refused on",
    }
    never = "It does not fit"
    said = [(never if gpu.fits is False else tried[gpu.default.fit], gpu.name) for gpu in plan.gpus]
    names = {verdict: ", ".join(name for one, name in said if one == verdict) for verdict in (*tried.values(), never)}
    return " ".join(f"{verdict} {named}." for verdict, named in names.items() if named)


def _duration(seconds: float) -> str:
    minutes = seconds / 60
    if minutes < 1:
        return f"{seconds:.0f} s"
    if minutes < 100:
        return f"{minutes:.0f} min"
    return f"{minutes / 60:.1f} h" if minutes < 100 * 60 else f"{minutes / 1440:.0f} d"


def _asked(plan: Plan) -> str:
    """What the run leaves open, and what not."""
    auto = [
        name
        for name, value in (
            ("quantization", plan.quantization),
            ("training.activationCheckpointing", plan.recompute),
        )
        if value.value == "Auto"
    ]
    if auto:
        return f"The run leaves {' and '.join(auto)} to Auto: the last column is what that takes on each GPU."
    return f"* the run as it is written: quantization {plan.quantization.value}, {_WHAT[plan.recompute][2]}."


def _explanations(plan: Plan, shown: Sequence[Row]) -> Iterator[str]:
    yield f"{_asked(plan)} {_verdicts(plan)}"
    if plan.preflight.device is not None:
        yield f"Plan: {plan.preflight.reason}."
    yield "kept, MLPs, recomp.: activations are kept for the backward pass, those of MLPs or all are recomputed in it."
    modes = [row.checkpointing for row in shown]
    for checkpointing in dict.fromkeys(row.checkpointing for row in plan.rows if row.checkpointing not in modes):
        yield f"The table has no room for {_WHAT[checkpointing][1]}: a wider terminal shows it, and -o json has it."
    options = [option for gpu in plan.gpus for option in gpu.options]
    taken = [gpu.default.tokens for gpu in plan.gpus if gpu.default.fit is Fit.FITS]
    if any(tokens < plan.micro_batch_tokens for tokens in taken) or any(option.fit is Fit.HALVED for option in options):
        yield "/2 and the like: fits with so many times fewer tokens in a micro-batch."
    if any(tokens > plan.micro_batch_tokens for tokens in taken):
        yield "*2 and the like: there is room for so many times more of them, which is taken."
    if any(option.fit is Fit.UNSURE for option in options):
        uncounted = "experts are not counted, and " if EXPERTS_LEFT_OUT in plan.doubts else ""
        yield f"?: {uncounted}the estimate may be off by {plan.spread:.0%}, too much to decide."
    for refusal in dict.fromkeys(option.refusal for option in options if option.refusal):
        yield f"refused: {refusal}."
    if any(option.divided for option in options):
        yield "Where weights need it, their layers are divided over the run's GPUs; numbers are those of one of these."
    if plan.trained_tokens is not None:
        yield f"time: of {plan.trained_tokens:,} tokens, all epochs together."
    yield (
        f"Speed assumes {SHARE:.0%} of the GPU's dense peak in 16 bits, evaluations not counted; nothing of "
        "it is measured."
    )
    yield f"Main memory of each pod (resources.memory): about {_size(plan.pod_memory_bytes)}."
    yield from _remarks(plan)


def _by_weights(plan: PlanByWeights, width: int) -> Iterator[str]:
    """Of a model whose layers are not known, and perhaps not even how many parameters it has."""
    size = "" if plan.parameters is None else f", {plan.parameters:,} parameters"
    lines = [f"{plan.run}: {plan.model} ({plan.family}{size})"]
    if plan.preflight is not None:
        lines += [
            f"Plan: {plan.preflight.reason}.",
            f"Weights without quantization: {_size(plan.preflight.weight_bytes)}; adapter and activations are added.",
            f"Main memory of each pod (resources.memory): about {_size(plan.preflight.pod_memory_bytes)}.",
        ]
    for line in (*lines, *_remarks(plan)):
        yield from _wrapped(line, width)


def _remarks(plan: Plan | PlanByWeights) -> Iterator[str]:
    for doubt in plan.doubts:
        yield f"Not sure: {doubt}."
    for note in plan.notes:
        yield f"Note: {note}."
    for advice in plan.advice:
        yield f"{advice.severity.value}: {advice.line}"


def _gib(size: int) -> str:
    return f"{size / _GIB:.2f}"


def _size(size: int) -> str:
    return f"{size / _GIB:.1f} GiB" if size >= _GIB else f"{size / 2**20:.1f} MiB"


def _wrapped(text: str, width: int) -> list[str]:
    return textwrap.wrap(text, width, subsequent_indent="  ", break_on_hyphens=False)
