"""Where the held-out loss is going: evaluations on the way are kept by row, and compared by row with the last one."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from lora_trainer.contract.advice.data import FEW_ROWS
from lora_trainer.contract.advice.facts import Change
from lora_trainer.contract.config import TrainingConfig
from lora_trainer.training.evaluate import Evaluation, improvement_standard_error

MOST_COST = 0.02
"""Of the tokens that a run trains on: what the evaluations may take that nobody asked for."""
_FEWEST_STEPS = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Mark:
    """An evaluation after `step`, of every `every`-th evaluated row."""

    step: int
    every: int
    evaluation: Evaluation


@dataclass(frozen=True, slots=True, kw_only=True)
class Interim:
    """Evaluations of a run without `evalSteps`: after which steps, on every `every`-th held-out row; none without
    steps."""

    steps: tuple[int, ...] = ()
    every: int = 1


def interim(
    config: TrainingConfig, total: int, trained_tokens: float, lengths: Sequence[int], rows: Sequence[int] = ()
) -> Interim:
    """After half and three quarters of `total` steps, on as many of the held-out samples of these lengths as cost at
    most `MOST_COST` of the tokens that the run trains on, both together; none where they are of too few `rows` to tell
    anything.
    """
    if config.eval_steps is not None or total < _FEWEST_STEPS:
        return Interim()
    steps, allowed = (total // 2, 3 * total // 4), MOST_COST * trained_tokens
    tokens = sum(lengths)
    every = max(1, math.ceil(len(steps) * tokens / allowed)) if allowed > 0 else len(lengths) + 1
    rows = rows or range(len(lengths))
    while len(set(rows[::every])) >= FEW_ROWS:
        if len(steps) * sum(lengths[::every]) <= allowed:
            return Interim(steps=steps, every=every)
        every += 1
    return Interim()


def remembered(marks: Sequence[Mark], mark: Mark, total: int) -> tuple[Mark, ...]:
    """Of all evaluations so far those that the end is compared with: the last one within three quarters of the steps,
    and the one with the lowest loss."""
    found = (*marks, mark)
    kept = {one.step: one for one in (_late(found, total), _lowest(found)) if one is not None}
    return tuple(kept[step] for step in sorted(kept))


def since_late(marks: Sequence[Mark], end: Evaluation, total: int) -> Change | None:
    """The change since the last evaluation within three quarters of the steps."""
    return _change(_late(marks, total), end)


def since_lowest(marks: Sequence[Mark], end: Evaluation) -> Change | None:
    """The change since the evaluation on the way with the lowest loss."""
    return _change(_lowest(marks), end)


def _late(marks: Sequence[Mark], total: int) -> Mark | None:
    return max((mark for mark in marks if 4 * mark.step <= 3 * total), key=lambda mark: mark.step, default=None)


def _lowest(marks: Sequence[Mark]) -> Mark | None:
    return min((mark for mark in marks if math.isfinite(mark.evaluation.loss)), key=_loss, default=None)


def _loss(mark: Mark) -> float:
    return mark.evaluation.loss


def _change(mark: Mark | None, end: Evaluation) -> Change | None:
    """None where there is no such evaluation, or of other rows than the last one."""
    if mark is None:
        return None
    last = end.every(mark.every)
    if last.tokens != mark.evaluation.tokens:
        return None
    return Change(
        step=mark.step,
        fall=mark.evaluation.loss - last.loss,
        standard_error=improvement_standard_error(mark.evaluation, last) or 0.0,
        rows=last.row_count,
    )
