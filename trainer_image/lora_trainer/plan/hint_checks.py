"""What advice rests on, and whether a rule of the table holds: of each the values of its sentences, or None.

Pure functions over facts, in the table's order. The table says in words when each finds something.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace

from lora_trainer.contract.config import (
    LARGEST_RANK,
    DatasetFormat,
    Layers,
    LoraConfig,
    Merge,
    Quantization,
    Scaling,
    TrainConfig,
    Variant,
)
from lora_trainer.contract.manifest import checkpoint_claim
from lora_trainer.contract.preflight import Preflight
from lora_trainer.contract.run_plan import Alternative, RunPlan
from lora_trainer.contract.serving import obstacles, traits_of
from lora_trainer.plan.adapter import AdapterError, in_preset, kinds, matches, plan_adapter
from lora_trainer.plan.families import Positions
from lora_trainer.plan.shapes import Shape


@dataclass(frozen=True, slots=True, kw_only=True)
class Rows:
    """Counts of rows and tokens; `learned` are tokens of the training rows. `cut` rows of either side lost
    `cut_tokens`; `duplicates` are copies of other rows."""

    training: int
    held_out: int
    learned: int
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
    """A run as far as it is known. `ended` is None before its end, `left_alone` before the base was looked at;
    `positions` is None where nothing in the base limits the length of a row."""

    config: TrainConfig
    shape: Shape | None = None
    positions: Positions | None = None
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
    shape: Shape | None = None,
    positions: Positions | None = None,
    *,
    columns: Columns | None = None,
) -> Facts:
    """What is known before the training. `shape` and `positions` are the base's, where its configuration was read,
    `columns` those of the data set."""
    trained = plan.trainable_parameters if plan else preflight.model.trainable_parameters or None if preflight else None
    return Facts(
        config=config,
        shape=shape,
        positions=positions,
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
        learned=found.target_tokens,
        cut=found.truncated_samples,
        cut_tokens=found.truncated_tokens,
        duplicates=found.duplicate_samples,
    )


def left_alone_of(config: TrainConfig, shape: Shape) -> LeftAlone:
    """What an adapter leaves alone, as far as a shape tells it."""
    lora = config.lora
    reserved = () if lora.target_modules else (name for _, _, name, module in shape.modules() if module.reserved)
    passed_over = (
        name for name in reserved if not any(matches(f"{name}.weight", one) for one in lora.target_parameters)
    )
    share = shape.experts / max(1, shape.parameters)
    return LeftAlone(
        kind=shape.family,
        experts=f"experts, {share:.0%} of the parameters," if shape.experts and not lora.target_parameters else "",
        passed_over=", ".join(kinds(passed_over)),
    )


Values = Mapping[str, str]

_BITS_A_PARAMETER, _BITS_A_TOKEN = 2, 1
_RANKS = (8, 16, 32, 64, 128, 256, 512, LARGEST_RANK)
_RANK_THAT_SCALES, _ITS_RATE = 128, 0.0002
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
_OF_PROMPTS = frozenset({"context", "input"})
_OF_ANSWERS = frozenset({"answer", "completion", "label", "output", "response", "summary", "target"})
_CONTENT = _OF_PROMPTS | _OF_ANSWERS | {"system", "system_prompt"}
"""Names of columns that rows are hardly meant to be learned without."""
_LONGEST_LIST = 160
_GIB = 2**30
_UNITS = ((_GIB, "GiB"), (2**20, "MiB"), (2**10, "KiB"))


def rank_too_low(facts: Facts) -> Values | None:
    """With the smallest rank that is `enough`, or the `highest` one that is not."""
    lora, bits = facts.config.lora, _capacity(facts)
    if bits is None or bits[0] >= bits[1] or lora.rank >= LARGEST_RANK or facts.trainable_parameters is None:
        return None
    values = {
        "rank": str(lora.rank),
        "parameters": _count(facts.trainable_parameters),
        "capacity": _count(bits[0]),
        "tokens": _count(bits[1]),
    }
    few = few_layers(facts) is not None and facts.shape is not None
    wide = replace(lora, layers=Layers.ALL_LINEAR, target_modules=()) if few else lora
    held = {rank: _held(facts, replace(wide, rank=rank)) for rank in _ranks(facts, wide, also_present=few)}
    highest = max((rank for rank, most in held.items() if most is not None), default=lora.rank)
    enough = next((rank for rank, most in held.items() if most is not None and most >= bits[1]), None)
    instead = {"layers": f"AllLinear{_instead(facts)}"} if few else {}
    if enough is None:
        return {**values, "highest": f"{highest}{' on all layers' if few else ''}"}
    return {**values, **instead, **({"enough": str(enough)} if enough > lora.rank else {})}


def _capacity(facts: Facts) -> tuple[int, int] | None:
    """Bits that the adapter holds, and that the learned tokens do."""
    if facts.rows is None or facts.trainable_parameters is None:
        return None
    return _BITS_A_PARAMETER * facts.trainable_parameters, _BITS_A_TOKEN * facts.rows.learned


def _ranks(facts: Facts, lora: LoraConfig, *, also_present: bool) -> Iterator[int]:
    """Ranks that may be advised: the usual ones above the present one, of which no server refuses what it takes now."""
    if also_present:
        yield lora.rank
    adapter_alone = facts.config.output.merge is Merge.ADAPTER and not any(obstacles(traits_of(lora)))
    for rank in _RANKS:
        if rank > lora.rank and not (adapter_alone and any(obstacles(traits_of(replace(lora, rank=rank))))):
            yield rank


def _held(facts: Facts, lora: LoraConfig) -> float | None:
    """Bits that another adapter holds; None where the model cannot have it. By the ranks alone where its layers are not
    known."""
    if facts.shape is None:
        capacity = _capacity(facts)
        return None if capacity is None else capacity[0] * lora.rank / max(1, facts.config.lora.rank)
    try:
        return float(_BITS_A_PARAMETER * plan_adapter(lora, facts.shape).parameters)
    except AdapterError:
        return None


def alpha_ratio(facts: Facts) -> Values | None:
    """With the `same` alpha as the rank where twice that is advised against."""
    lora = facts.config.lora
    if lora.scaling is not Scaling.CLASSIC or lora.rank <= lora.alpha <= 2 * lora.rank:
        return None
    values = {"rank": str(lora.rank), "double": str(2 * lora.rank), "alpha": str(lora.alpha)}
    values["ratio"] = _number(lora.alpha / max(1, lora.rank))
    return {**values, "same": str(lora.rank)} if _grows_with_rank(facts.config) else values


def _grows_with_rank(config: TrainConfig) -> bool:
    """Whether alpha twice the rank would make steps too large, at that rank and rate."""
    classic = config.lora.scaling is Scaling.CLASSIC
    return classic and config.lora.rank >= _RANK_THAT_SCALES and config.training.learning_rate >= _ITS_RATE


def alpha_at_high_rank(facts: Facts) -> Values | None:
    """With a `lower` rate to start from."""
    lora, rate = facts.config.lora, facts.config.training.learning_rate
    if not _grows_with_rank(facts.config) or lora.alpha < 2 * lora.rank:
        return None
    return {"rank": str(lora.rank), "alpha": str(lora.alpha), "rate": _number(rate), "lower": _number(_ITS_RATE / 2)}


def few_layers(facts: Facts) -> Values | None:
    """Silent where no preset would adapt more."""
    lora = facts.config.lora
    if lora.modules_to_save or lora.target_parameters or (facts.shape is not None and not _has_mlps(lora, facts.shape)):
        return None
    if lora.target_modules:
        attention = all(name.rsplit(".", 1)[-1] in _ATTENTION for name in lora.target_modules)
        adapted = ", ".join(lora.target_modules)[:120]
        return {"layers": adapted, "instead": _instead(facts)} if attention else None
    if lora.layers not in {Layers.ATTENTION, Layers.QUERY_VALUE}:
        return None
    return {"layers": lora.layers.value}


def _instead(facts: Facts) -> str:
    return " in place of targetModules" if facts.config.lora.target_modules else ""


def _has_mlps(lora: LoraConfig, shape: Shape) -> bool:
    """Whether `AllLinear` would adapt a module of an MLP; a mixture's experts are none."""
    return any(
        in_preset(name, Layers.MLP)
        and not module.reserved
        and not any(matches(name, one) for one in lora.exclude_modules)
        for index, _, name, module in shape.modules()
        if not lora.layer_indices or index in lora.layer_indices
    )


def several_epochs(facts: Facts) -> Values | None:
    """With the `steps` of one epoch where the run is given in steps."""
    training, rows = facts.config.training, facts.rows
    epochs, steps = training.epochs, None
    if epochs is None and rows is not None and training.max_steps is not None:
        epochs = training.max_steps * training.effective_batch_size / max(1, rows.training)
        steps = rows.training // max(1, training.effective_batch_size)
    if epochs is None or epochs <= 1:
        return None
    return {"epochs": f"{epochs:.3g}", **({"steps": str(steps)} if steps else {})}


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
    """With a `smaller` batch that the size of micro-batches divides."""
    training, processes = facts.config.training, facts.config.device.processes
    batch, micro, most = training.effective_batch_size, training.micro_batch_size, max(_LARGE_BATCH, processes)
    if batch <= most:
        return None
    values = {"batch": _count(batch), "smaller": str(most)}
    if micro and most % micro:
        divided = most - most % micro
        return (
            {**values, "smaller": str(divided)} if divided >= processes and divided else {**values, "micro": str(micro)}
        )
    return {**values, "least": str(most)} if processes >= _LARGE_BATCH else values


def learning_rate(facts: Facts) -> Values | None:
    """With a rate to `start` from where the usual one is too high for the rank."""
    rate = facts.config.training.learning_rate
    if _LOWEST_RATE <= rate <= _HIGHEST_RATE:
        return None
    lora = facts.config.lora
    usual = replace(facts.config.training, learning_rate=_USUAL_RATE)
    high = lora.alpha >= 2 * lora.rank and _grows_with_rank(replace(facts.config, training=usual))
    return {"rate": _number(rate), **({"start": _number(_USUAL_RATE / 2), "rank": str(lora.rank)} if high else {})}


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
    found = {
        "columns": _clipped(" and ".join(content)),
        "read": _clipped(" and ".join(columns.read.values())),
        "format": columns.format.value,
    }
    mapping = _with_content(columns.read, content[0])
    return found | {"column": content[0], "mapping": mapping} if mapping else found


def _with_content(read: Mapping[str, str], name: str) -> str:
    """The mapping under which a column is read beside the others; empty where no role of one format is left for it."""
    if "text" in read and name.lower() in _OF_ANSWERS:
        return f"prompt to {read['text']} and completion to {name}"
    if name.lower() == "system_prompt" and not {"text", "system"} & read.keys():
        return f"system to {name}"
    asked, answer = read.get("prompt", read.get("instruction")), read.get("completion", read.get("output"))
    if asked and answer and name.lower() in _OF_PROMPTS and not {"input", "tools"} & read.keys():
        return f"instruction to {asked}, input to {name} and output to {answer}"
    return ""


def rows_cut(facts: Facts) -> Values | None:
    """With the length that the model has positions `to`, or its `positions` where rows have as many."""
    if facts.rows is None or facts.rows.cut <= 0:
        return None
    length = facts.config.training.max_sequence_length
    found = {"cut": _count(facts.rows.cut), "tokens": _count(facts.rows.cut_tokens), "length": str(length)}
    if facts.positions is None:
        return found
    return found | {"to" if length < facts.positions.most else "positions": str(facts.positions.most)}


def few_held_out_rows(facts: Facts) -> Values | None:
    """With the `smallest` improvement that is no chance, after a training."""
    if facts.rows is None:
        return None
    rows, ended = facts.rows.held_out, facts.ended
    if ended is None or not ended.held_out or rows < _FEW_ROWS:
        return {"rows": _count(rows), **_more_held_out(facts, rows)} if rows < _FEW_ROWS else None
    smallest = _SURE * ended.improvement_standard_error
    if not ended.loss_before > 0 or not smallest > _FEW_PER_CENT * ended.loss_before:
        return None
    values = {"rows": _count(rows), "smallest": f"{smallest:.3g}", "share": f"{smallest / ended.loss_before:.1%}"}
    return {**values, **_more_held_out(facts, rows)}


def _more_held_out(facts: Facts, rows: int) -> Values:
    """What keeps the held-out rows few, where it is not the share of them."""
    dataset = facts.config.dataset
    if dataset.max_validation_rows is not None and rows >= dataset.max_validation_rows:
        return {"most": str(dataset.max_validation_rows)}
    return {} if dataset.validation_uri is None else {"held_out": _clipped(dataset.validation_uri)}


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
    """With over how many GPUs the base is `divided`, which keeps the run from merging."""
    found = "; ".join(obstacles(traits_of(facts.config.lora)))
    if not found or facts.config.output.merge is not Merge.ADAPTER:
        return None
    if facts.plan is None or not facts.plan.sharded:
        return {"obstacles": found}
    return {"obstacles": found, "divided": str(facts.plan.sharded_over or "several")}


def modules_not_adapted(facts: Facts) -> Values | None:
    """With the `experts` of a mixture, the `names` of modules that a preset passes over, or both."""
    found = facts.left_alone
    if found is None or not (found.experts or found.passed_over):
        return None
    values = {"kind": _clipped(found.kind)}
    if found.passed_over:
        values["names"] = _clipped(found.passed_over)
    if not found.experts:
        return values
    weights, others = ", ".join(_expert_names(facts)), ", ".join(_for_experts(facts))
    return values | {
        "experts": _clipped(found.experts),
        "named": f"the experts ({_clipped(weights)})" if weights else "the experts",
        "others": f", with {others}," if others else "",
    }


def _expert_names(facts: Facts) -> tuple[str, ...]:
    """What the experts' matrices are called, from within a layer on."""
    layers = () if facts.shape is None else facts.shape.layers
    return tuple(
        dict.fromkeys(
            one.name
            for layer in layers
            for one in layer.stacks
            if "experts" in one.name and not one.name.endswith("_bias")
        )
    )


def _for_experts(facts: Facts) -> Iterator[str]:
    """What adapters on experts cannot go with, as it would have to be."""
    lora = facts.config.lora
    if lora.variant is Variant.DORA:
        yield "variant LoRA"
    if lora.dropout > 0:
        yield 'dropout "0"'
    if lora.init.changes_base:
        yield "init Default"
    if facts.plan is not None and facts.plan.sharded:
        yield "GPUs that hold the whole base each"


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
