"""Loss over rows with its standard error, and how sure an improvement is."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from lora_trainer.batches import Budget, collate, micro_batches
from lora_trainer.device import Device
from lora_trainer.loss import token_losses
from lora_trainer.model import set_training
from lora_trainer.tokens import Example


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluation:
    """Summed loss in nats and number of learned tokens of each row."""

    sums: tuple[float, ...]
    tokens: tuple[int, ...]

    @property
    def loss(self) -> float:
        """Mean loss per learned token."""
        return sum(self.sums) / sum(self.tokens)

    @property
    def standard_error(self) -> float:
        """Of `loss`, over rows."""
        return ratio_standard_error(self.sums, self.tokens)


def improvement_standard_error(before: Evaluation, after: Evaluation) -> float:
    """Of the difference of two losses over the same rows: paired, since a hard row is hard before and after."""
    differences = tuple(b - a for b, a in zip(before.sums, after.sums, strict=True))
    return ratio_standard_error(differences, before.tokens)


def ratio_standard_error(sums: Sequence[float], sizes: Sequence[int]) -> float:
    """Standard error of sum(sums) / sum(sizes) over rows; 0 for a single row.

    The linearised ratio estimator (Cochran, Sampling Techniques, 3rd ed., section 6.4): tokens of one row are not
    independent, rows are.
    """
    rows, total = len(sums), sum(sizes)
    if rows < 2:
        return 0.0
    ratio = sum(sums) / total
    squares = sum((value - ratio * size) ** 2 for value, size in zip(sums, sizes, strict=True))
    return math.sqrt(squares * rows / (rows - 1)) / total


def evaluate(
    model: Any,
    head: nn.Module,
    examples: Sequence[Example],
    device: Device,
    done: Callable[[int], None],
    *,
    budget: Budget,
) -> Evaluation:
    """Loss of every row, in batches within `budget`; `done` is told the number of rows after each batch."""
    sums, finished = [0.0] * len(examples), 0
    was_training = model.training
    set_training(model, on=False)
    with torch.no_grad():
        for rows in micro_batches([example.length for example in examples], budget):
            batch = collate([examples[row] for row in rows], device.torch_device)
            losses = token_losses(model, head, batch, device).double()
            totals = torch.zeros(len(rows), dtype=torch.float64, device=device.torch_device).index_add_(
                0, batch.rows, losses
            )
            for row, value in zip(rows, totals.tolist(), strict=True):
                sums[row] = value
            finished += len(rows)
            done(finished)
    set_training(model, on=was_training)
    return Evaluation(sums=tuple(sums), tokens=tuple(example.targets for example in examples))
