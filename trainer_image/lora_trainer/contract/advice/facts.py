"""What advice rests on: all that is known of a run, before its training or after it."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from lora_trainer.contract.config import DatasetFormat, TrainConfig
from lora_trainer.contract.fit.names import kinds, matches
from lora_trainer.contract.fit.positions import Positions
from lora_trainer.contract.fit.shape import Shape
from lora_trainer.contract.preflight import Preflight
from lora_trainer.contract.run_plan import RunPlan


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
