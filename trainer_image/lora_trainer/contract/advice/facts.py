"""What advice rests on: all that is known of a run, before its training or after it."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import date

from lora_trainer.contract.config import DatasetFormat, Quantization, TrainConfig
from lora_trainer.contract.fit.names import kinds, matches
from lora_trainer.contract.fit.positions import Positions
from lora_trainer.contract.fit.shape import Shape
from lora_trainer.contract.preflight import Preflight
from lora_trainer.contract.run_plan import RunPlan


@dataclass(frozen=True, slots=True, kw_only=True)
class Rows:
    """Counts of rows and tokens; `tokens` and `learned` are of the training rows.

    `cut` rows of either side lost `cut_tokens`; `duplicates` are copies of other rows. `learned_before` is the share of
    the held-out contents that are among the training rows of a run before this one, and not among its own. `day` is
    what the chat template writes into them, if it writes a date.
    """

    training: int
    held_out: int
    tokens: int
    learned: int
    cut: int = 0
    cut_tokens: int = 0
    duplicates: int = 0
    learned_before: float = 0.0
    day: date | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Columns:
    """Those of the data set's first row: the roles of its format to the columns that are `read`, and the others."""

    format: DatasetFormat
    read: Mapping[str, str]
    unread: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Computing:
    """How the run computes; None is what is not known. It recomputes all activations, or those of MLPs alone, which is
    `selective`. `micro_batch_tokens` are the most of a micro-batch."""

    cpu: bool
    quantization: Quantization
    recomputes: bool | None = None
    selective: bool = False
    micro_batch_tokens: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class LeftAlone:
    """What the adapter leaves alone: `experts` of a mixture in words, modules of the names `passed_over` in a model of
    this `kind`, and all but its language model, whose name is `language_part`. Empty where there is nothing."""

    kind: str = ""
    experts: str = ""
    passed_over: str = ""
    language_part: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """By how much the held-out loss at the end is below that after `step`, nats per token: paired over `rows`, with a
    `standard_error` of 0 where that is a single one."""

    step: int
    fall: float
    standard_error: float
    rows: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Ended:
    """What came out. Losses are nats per token over held-out rows, or with `held_out` false over training rows.

    `late` is the change since an evaluation around three quarters of the steps, `lowest` since the one with the lowest
    loss; with `kept_best` the weights are of that one. `unsteady_steps` are those after which the smoothed loss stood
    far above its lowest, or which were left out for numbers that are none.
    """

    steps: int
    loss_before: float
    improvement_standard_error: float
    held_out: bool
    late: Change | None = None
    lowest: Change | None = None
    kept_best: bool = False
    unsteady_steps: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """What a training took, and what it was estimated to take; None where nothing was."""

    peak_bytes: int
    seconds: float
    estimated_peak_bytes: int | None = None
    estimated_seconds: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """A run as far as it is known. `ended` is None before its end, `left_alone` before the base was looked at;
    `positions` is None where nothing in the base limits the length of a row."""

    config: TrainConfig
    computing: Computing
    shape: Shape | None = None
    positions: Positions | None = None
    trainable_parameters: int | None = None
    rows: Rows | None = None
    columns: Columns | None = None
    left_alone: LeftAlone | None = None
    plan: RunPlan | None = None
    ended: Ended | None = None
    estimate: Estimate | None = None


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
    cpu = config.device.gpus == 0
    computing = Computing(cpu=cpu, quantization=config.quantization)
    if plan is not None:
        computing = Computing(
            cpu=cpu,
            quantization=plan.quantization,
            recomputes=plan.activation_checkpointing,
            selective=plan.selective_checkpointing,
            micro_batch_tokens=plan.micro_batch_tokens,
        )
    trained = plan.trainable_parameters if plan else preflight.model.trainable_parameters or None if preflight else None
    return Facts(
        config=config,
        computing=computing,
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
        tokens=found.tokens,
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
