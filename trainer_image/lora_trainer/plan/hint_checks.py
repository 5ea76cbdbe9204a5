"""What advice rests on, and whether a rule of the table holds: of each the values of its sentences, or None.

Pure functions over facts, in the table's order. The table says in words when each finds something.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from lora_trainer.plan.adapter import in_preset, kinds, matches
from lora_trainer.plan.architecture import ModelArchitecture, Stack
from lora_trainer.spec.config import (
    DatasetFormat,
    Layers,
    LoraConfig,
    Merge,
    Quantization,
    Scaling,
    TrainConfig,
)
from lora_trainer.spec.manifest import checkpoint_claim
from lora_trainer.spec.preflight import Preflight
from lora_trainer.spec.run_plan import Alternative, RunPlan
from lora_trainer.spec.serving import obstacles, traits_of


@dataclass(frozen=True, slots=True, kw_only=True)
class Rows:
    """Counts of rows and tokens; `learned` are tokens of the training rows. `cut` rows of either side lost
    `cut_tokens`; `duplicates` are copies of other rows."""

    training: int
    held_out: int
    target_tokens: int
    cut: int = 0
    cut_tokens: int = 0
    duplicates: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Columns:
    """Those of the data set's first row: the roles of its format to the columns that are `read`, and the others."""

    format: DatasetFormat
    read: Mapping[str, str]
    unread: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class LeftAlone:
    """What the adapter leaves alone: `experts` of a mixture in words, modules of the names `passed_over` in a model of
    this `kind`, and all but its language model, whose name is `language_part`. Empty where there is nothing."""

    kind: str = ""
    experts: str = ""
    passed_over: str = ""
    language_part: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Ended:
    """What came out after `steps` of the `planned` ones. Losses are nats per token over held-out rows, or with
    `held_out` false over training rows: before the training, of its result, and `on_the_way` those of all evaluations,
    by step. With `kept_best` the result has the weights of the lowest of these."""

    steps: int
    planned: int
    loss_before: float
    loss: float
    improvement_standard_error: float
    held_out: bool
    on_the_way: Mapping[int, float] = field(default_factory=dict)
    kept_best: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """A run as far as it is known. `ended` is None before its end, `left_alone` before the base was looked at."""

    config: TrainConfig
    shape: ModelArchitecture | None = None
    trainable_parameters: int | None = None
    rows: Rows | None = None
    columns: Columns | None = None
    left_alone: LeftAlone | None = None
    plan: RunPlan | None = None
    ended: Ended | None = None


def facts_before(
    config: TrainConfig,
    preflight: Preflight | None,
    plan: RunPlan | None,
    shape: ModelArchitecture | None = None,
    *,
    columns: Columns | None = None,
) -> Facts:
    """What is known before the training. `shape` is the base's, where its configuration was read, `columns` those of
    the data set."""
    trained = plan.trainable_parameters if plan else preflight.model.trainable_parameters or None if preflight else None
    return Facts(
        config=config,
        shape=shape,
        trainable_parameters=trained,
        rows=_rows(preflight) if preflight else None,
        columns=columns,
        left_alone=left_alone_of(config, shape) if shape else None,
        plan=plan,
    )


def _rows(preflight: Preflight) -> Rows:
    found = preflight.dataset
    return Rows(
        training=found.train_samples,
        held_out=found.validation_samples if found.validation_rows is None else found.validation_rows,
        target_tokens=found.target_tokens,
        cut=found.truncated_samples,
        cut_tokens=found.truncated_tokens,
        duplicates=found.duplicate_samples,
    )


def left_alone_of(config: TrainConfig, shape: ModelArchitecture) -> LeftAlone:
    """What an adapter leaves alone, as far as a shape tells it."""
    lora = config.lora
    reserved = () if lora.target_modules else (name for _, _, name, module in shape.modules() if module.reserved)
    passed_over = (
        name for name in reserved if not any(matches(f"{name}.weight", one) for one in lora.target_parameters)
    )
    share = shape.experts / max(1, shape.parameters)
    experts = dict.fromkeys(stack.name for layer in shape.layers for stack in layer.stacks if _holds_experts(stack))
    named = f"experts ({', '.join(experts)}, {share:.0%} of the parameters)"
    return LeftAlone(
        kind=shape.family,
        experts=named if experts and not lora.target_parameters else "",
        passed_over=", ".join(kinds(passed_over)),
    )


def _holds_experts(stack: Stack) -> bool:
    return "experts" in stack.name and not stack.name.endswith("_bias")


Values = Mapping[str, str]

_BITS_A_PARAMETER, _BITS_A_TOKEN = 2, 1
_RANK_THAT_SCALES = 128
_ATTENTION = frozenset(
    [
        "q_proj",
        "k_proj",
        "v_proj",
        "o_proj",
        "qkv_proj",
        "out_proj",
        "query",
        "key",
        "value",
        "query_key_value",
        "c_attn",
        "Wqkv",
    ]
)
_MANY_DUPLICATES = 0.05
_SURE = 2.0
"""Standard errors beyond which a difference is no chance."""
_FEW_ROWS = 20
"""Losses over fewer held-out rows have standard errors that are themselves uncertain; that of one row is unknown."""
_FEW_PER_CENT = 0.03
_LARGE_BATCH = 32
_LOWEST_RATE, _USUAL_RATE, _HIGHEST_RATE = 5e-5, 2e-4, 1e-3
_QUANTIZED = (Quantization.NF4, Quantization.FP4, Quantization.INT8)
_CONTENT = frozenset(
    [
        "context",
        "input",
        "answer",
        "completion",
        "label",
        "output",
        "response",
        "summary",
        "target",
        "system",
        "system_prompt",
    ]
)
"""Names of columns that rows are hardly meant to be learned without."""
_LONGEST_LIST = 160
_GIB = 2**30
_UNITS = ((_GIB, "GiB"), (2**20, "MiB"), (2**10, "KiB"))


def rank_too_low(facts: Facts) -> Values | None:
    """With the rank that is `enough`, a power of two: what an adapter holds grows with it."""
    if facts.rows is None or facts.trainable_parameters is None:
        return None
    rank, capacity = facts.config.lora.rank, _BITS_A_PARAMETER * facts.trainable_parameters
    learned = _BITS_A_TOKEN * facts.rows.target_tokens
    if capacity >= learned:
        return None
    needed = -(-rank * learned // max(1, capacity))
    return {
        "rank": str(rank),
        "enough": _count(1 << (needed - 1).bit_length()),
        "parameters": _count(facts.trainable_parameters),
        "capacity": _count(capacity),
        "tokens": _count(learned),
    }


def alpha_ratio(facts: Facts) -> Values | None:
    """Of what is divided by the rank itself."""
    lora = facts.config.lora
    if lora.scaling is not Scaling.CLASSIC or lora.rank <= lora.alpha <= 2 * lora.rank:
        return None
    ratio = _number(lora.alpha / max(1, lora.rank))
    return {"rank": str(lora.rank), "double": str(2 * lora.rank), "alpha": str(lora.alpha), "ratio": ratio}


def alpha_at_high_rank(facts: Facts) -> Values | None:
    """With a `lower` rate to start from."""
    lora, rate = facts.config.lora, facts.config.training.learning_rate
    classic = lora.scaling is Scaling.CLASSIC
    if not classic or lora.rank < _RANK_THAT_SCALES or lora.alpha < 2 * lora.rank or rate < _USUAL_RATE:
        return None
    return {"rank": str(lora.rank), "alpha": str(lora.alpha), "rate": _number(rate), "lower": _number(_USUAL_RATE / 2)}


def few_layers(facts: Facts) -> Values | None:
    """Silent where no preset would adapt more."""
    lora = facts.config.lora
    if lora.modules_to_save or lora.target_parameters or (facts.shape is not None and not _has_mlps(lora, facts.shape)):
        return None
    if lora.target_modules:
        attention = all(name.rsplit(".", 1)[-1] in _ATTENTION for name in lora.target_modules)
        return {"layers": _clipped(", ".join(lora.target_modules))} if attention else None
    if lora.layers not in {Layers.ATTENTION, Layers.QUERY_VALUE}:
        return None
    return {"layers": lora.layers.value}


def _has_mlps(lora: LoraConfig, shape: ModelArchitecture) -> bool:
    """Whether `AllLinear` would adapt a module of an MLP; a mixture's experts are none."""
    return any(
        in_preset(name, Layers.MLP)
        and not module.reserved
        and not any(matches(name, one) for one in lora.exclude_modules)
        for index, _, name, module in shape.modules()
        if not lora.layer_indices or index in lora.layer_indices
    )


def several_epochs(facts: Facts) -> Values | None:
    """Of a run that is given in steps, where its rows are counted."""
    training, rows = facts.config.training, facts.rows
    epochs = training.epochs
    if epochs is None and rows is not None and training.max_steps is not None:
        epochs = training.max_steps * training.effective_batch_size / max(1, rows.training)
    return None if epochs is None or epochs <= 1 else {"epochs": f"{epochs:.3g}"}


def many_duplicates(facts: Facts) -> Values | None:
    """Of all rows, held out or not."""
    if facts.rows is None:
        return None
    rows = facts.rows.training + facts.rows.held_out
    if rows <= 0 or facts.rows.duplicates < _MANY_DUPLICATES * rows:
        return None
    return {"duplicates": _count(facts.rows.duplicates), "rows": _count(rows)}


def still_improving(facts: Facts) -> Values | None:
    """Since the last evaluation within three quarters of the steps."""
    ended = _compared(facts)
    if ended is None:
        return None
    late = max((step for step in ended.on_the_way if 4 * step <= 3 * ended.planned), default=None)
    return None if late is None else _if_sure(ended, late, ended.on_the_way[late] - ended.loss)


def held_out_loss_rose(facts: Facts) -> Values | None:
    """Since the evaluation on the way with the lowest loss."""
    ended = _compared(facts)
    if ended is None:
        return None
    finite = {step: loss for step, loss in ended.on_the_way.items() if math.isfinite(loss)}
    lowest = min(finite, key=lambda step: finite[step], default=None)
    return None if lowest is None else _if_sure(ended, lowest, ended.loss - finite[lowest])


def _compared(facts: Facts) -> Ended | None:
    """An end whose loss tells something beside those of evaluations on the way."""
    ended, rows = facts.ended, facts.rows
    if ended is None or rows is None or not ended.held_out or ended.kept_best or rows.held_out < _FEW_ROWS:
        return None
    return ended


def _if_sure(ended: Ended, step: int, difference: float) -> Values | None:
    # Of losses on the way no row is kept, over which a difference could be paired. From before the training to its end
    # rows mostly differ more than from there, so that its standard error is on the safe side.
    error = ended.improvement_standard_error
    if not difference > _SURE * error:
        return None
    values = {"step": _count(step), "steps": _count(ended.steps)}
    return {**values, "difference": f"{difference:.3g}", "error": f"{error:.2g}"}


def large_batch(facts: Facts) -> Values | None:
    """Each process needs a row of a step."""
    batch, most = facts.config.training.effective_batch_size, max(_LARGE_BATCH, facts.config.device.processes)
    return {"batch": _count(batch), "smaller": str(most)} if batch > most else None


def learning_rate(facts: Facts) -> Values | None:
    """Outside of what adapters take."""
    rate = facts.config.training.learning_rate
    return None if _LOWEST_RATE <= rate <= _HIGHEST_RATE else {"rate": _number(rate)}


def quantization_not_needed(facts: Facts) -> Values | None:
    """With how much `slower` the run is than in 16 bits; silent where no speed is known."""
    wanted, other = facts.config.quantization, _alternative(facts, Quantization.NONE)
    if wanted not in _QUANTIZED or other is None or facts.plan is None:
        return None
    ours, theirs = facts.plan.tokens_per_second or 0.0, other.tokens_per_second or 0.0
    if not 0 < ours <= theirs:
        return None
    return {
        "quantization": wanted.value,
        "slower": f"{theirs / ours - 1:.0%}",
        "peak": _size(other.peak_bytes),
        "memory": _size(facts.plan.device_bytes or 0),
    }


def quantization_would_fit(facts: Facts) -> Values | None:
    """Silent where nothing tells the device."""
    other = _alternative(facts, Quantization.NF4)
    if facts.config.quantization is not Quantization.NONE or other is None or facts.plan is None or facts.plan.fits:
        return None
    return {
        "peak": _size(other.peak_bytes),
        "needed": _size(facts.plan.peak_bytes),
        "memory": _size(facts.plan.device_bytes or 0),
    }


def _alternative(facts: Facts, quantization: Quantization) -> Alternative | None:
    """How it would run with that quantization, where that fits the plan's device."""
    if facts.plan is None or facts.plan.device_bytes is None:
        return None
    change = f"quantization: {quantization.value}"
    return next((one for one in facts.plan.alternatives if one.fits and one.change == change), None)


def columns_not_read(facts: Facts) -> Values | None:
    """Of rows that nobody named a format or columns for; conversations are complete in themselves."""
    columns, dataset = facts.columns, facts.config.dataset
    chosen = dataset.columns or dataset.format is not DatasetFormat.AUTO
    if columns is None or chosen or columns.format is DatasetFormat.MESSAGES:
        return None
    content = [name for name in columns.unread if name.lower() in _CONTENT]
    if not content:
        return None
    return {
        "columns": _clipped(" and ".join(content)),
        "read": _clipped(" and ".join(columns.read.values())),
        "format": columns.format.value,
    }


def rows_cut(facts: Facts) -> Values | None:
    """Of either side."""
    if facts.rows is None or facts.rows.cut <= 0:
        return None
    length = facts.config.training.max_sequence_length
    return {"cut": _count(facts.rows.cut), "tokens": _count(facts.rows.cut_tokens), "length": str(length)}


def few_held_out_rows(facts: Facts) -> Values | None:
    """After a training also by the smallest improvement that is no chance."""
    if facts.rows is None:
        return None
    rows, ended = facts.rows.held_out, facts.ended
    if ended is None or not ended.held_out or rows < _FEW_ROWS:
        return {"rows": _count(rows)} if rows < _FEW_ROWS else None
    smallest = _SURE * ended.improvement_standard_error
    if not ended.loss_before > 0 or not smallest > _FEW_PER_CENT * ended.loss_before:
        return None
    chance = f"less than {smallest:.3g} nats ({smallest / ended.loss_before:.1%} of the loss)"
    return {"rows": f"{_count(rows)}, over which {chance} cannot be distinguished from chance"}


def pod_memory(facts: Facts) -> Values | None:
    """Before the rows are known a plan is an upper bound, far above what short rows take."""
    given, plan = facts.config.device.pod_memory_bytes, facts.plan
    if given is None or plan is None or facts.rows is None or given >= plan.pod_memory_bytes:
        return None
    least = f"{math.ceil(plan.pod_memory_bytes / _GIB)}Gi"
    return {"given": _size(given), "needed": _size(plan.pod_memory_bytes), "least": least}


def claim_size(facts: Facts) -> Values | None:
    """Silent below a gibibyte, which any claim has."""
    claim, plan = checkpoint_claim(facts.config), facts.plan
    if claim is None or plan is None or plan.claim_bytes < _GIB:
        return None
    return {
        "claim": claim,
        "needed": _size(plan.claim_bytes),
        "checkpoint": _size(plan.checkpoint_bytes),
        "count": str(facts.config.checkpoint.keep + 1),
    }


def serve_merged(facts: Facts) -> Values | None:
    """By the adapter alone."""
    found = "; ".join(obstacles(traits_of(facts.config.lora)))
    return {"obstacles": found} if found and facts.config.output.merge is Merge.ADAPTER else None


def modules_not_adapted(facts: Facts) -> Values | None:
    """The experts of a mixture, and modules that a preset passes over."""
    found = facts.left_alone
    if found is None or not (found.experts or found.passed_over):
        return None
    modules = f"modules named {found.passed_over}" if found.passed_over else ""
    left = " and ".join(filter(None, (found.experts, modules)))
    return {"kind": _clipped(found.kind), "left": _clipped(left)}


def language_model_alone(facts: Facts) -> Values | None:
    """Of a base that was looked at in whole."""
    if facts.left_alone is None or not facts.left_alone.language_part:
        return None
    return {"part": _clipped(facts.left_alone.language_part), "kind": _clipped(facts.left_alone.kind)}


def _clipped(text: str) -> str:
    return text if len(text) <= _LONGEST_LIST else text[: _LONGEST_LIST - 1] + "…"


def _count(number: float) -> str:
    """A whole number, with separators."""
    return f"{number:,.0f}"


def _number(value: float) -> str:
    """A fraction as one writes it."""
    return f"{value:g}"


def _size(count_of_bytes: float) -> str:
    """Bytes in binary units."""
    for unit, name in _UNITS:
        if count_of_bytes >= unit:
            return f"{count_of_bytes / unit:.1f} {name}"
    return f"{count_of_bytes:.0f} bytes"
