"""Loss over rows with its standard error, and how sure an improvement is."""

import contextlib
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from lora_trainer.data.store import Examples
from lora_trainer.data.tokens import Example
from lora_trainer.errors import out_of_memory
from lora_trainer.model.device import Device
from lora_trainer.model.loading import set_input_casts, set_training
from lora_trainer.ranks.activity import Counter
from lora_trainer.ranks.collectives import ALONE, Ranks
from lora_trainer.training.batches import IDLE, Budget, collate, micro_batches
from lora_trainer.training.loss import token_losses
from lora_trainer.training.standard_error import ratio_standard_error
from lora_trainer.training.stopping import Interrupted, Stop

log = logging.getLogger(__name__)
ASK_EVERY = 4
"""Batches after which processes ask each other whether one was asked to stop: a collective makes all of them wait for
the slowest, and a batch of a large model takes seconds, of a grace period of two minutes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluation:
    """Summed loss in nats and number of learned tokens of each sample. `rows` numbers the rows that they are of;
    without it each is a row of its own."""

    sums: tuple[float, ...]
    tokens: tuple[int, ...]
    rows: tuple[int, ...] = ()

    @property
    def row_count(self) -> int:
        """Over how many rows it is."""
        return len(set(self.rows)) or len(self.sums)

    @property
    def loss(self) -> float:
        """Mean loss per learned token."""
        return sum(self.sums) / sum(self.tokens)

    @property
    def standard_error(self) -> float | None:
        """Of `loss`, over rows; None for a single one."""
        return ratio_standard_error(self.sums, self.tokens, self.rows)


def improvement_standard_error(before: Evaluation, after: Evaluation) -> float | None:
    """Of the difference of two losses over the same rows: paired, since a hard row is hard before and after. None for a
    single row."""
    differences = tuple(b - a for b, a in zip(before.sums, after.sums, strict=True))
    return ratio_standard_error(differences, before.tokens, after.rows)


def evaluate(
    model: Any,
    head: nn.Module,
    examples: Sequence[Example],
    device: Device,
    done: Callable[[int], None],
    *,
    budget: Budget,
    ranks: Ranks = ALONE,
    stop: Stop | None = None,
) -> Evaluation:
    """Loss of every row, in batches within `budget`, shared out over the processes; the same on each.

    Where memory does not suffice for a batch, its rows come in smaller ones: that changes the last digits alone. `done`
    is called with the number of this process's rows after each batch. With `stop`, raises `Interrupted` on all
    processes where one of them was asked to stop.
    """
    known = examples if isinstance(examples, Examples) else Examples.of(examples)
    lengths, targets = known.lengths, known.targets
    mine = ranks.share(range(len(examples)), lengths.tolist())
    parts = micro_batches([lengths[row] for row in mine], budget)
    sums: dict[int, float] = {}
    counter = Counter("evaluating rows", len(mine))
    with _evaluated(model), torch.no_grad():
        for part in _passes(len(parts), ranks, stop):
            rows = [mine[position] for position in parts[part]] if part < len(parts) else []
            given = [examples[row] for row in rows] or [IDLE]
            # Layers that are collectives are called as often by every process.
            totals, budget = _totals(model, head, given, device, budget, halves=not ranks.lockstep)
            sums.update(zip(rows, totals, strict=False))
            counter(len(sums))
            done(len(sums))
    for others in ranks.gather({str(row): total for row, total in sums.items()}, Mapping[str, float]):
        sums.update((int(row), total) for row, total in others.items())
    counts = tuple(int(count) for count in targets)
    return Evaluation(
        sums=tuple(sums[row] for row in range(len(examples))), tokens=counts, rows=tuple(known.rows.tolist())
    )


def _totals(
    model: Any, head: nn.Module, examples: Sequence[Example], device: Device, budget: Budget, *, halves: bool
) -> tuple[list[float], Budget]:
    """Summed loss of each of these rows, and the budget that sufficed: where memory does not, and it `halves`, there
    are fewer rows at once, as in a step."""
    totals = [0.0] * len(examples)
    left = list(range(len(examples)))
    while left:
        part = [left[row] for row in micro_batches([examples[row].length for row in left], budget)[0]]
        given = [examples[row] for row in part]
        found: list[float] | None = None
        try:
            found = _at_once(model, head, given, device, packed=budget.packed)
        except Exception as error:
            if not halves or len(part) == 1 or not out_of_memory(error):
                raise
        if found is None:
            # Without the error, whose frames hold on to memory.
            budget = _halved(budget, given)
            device.give_back()
            continue
        for row, total in zip(part, found, strict=True):
            totals[row] = total
        left = [row for row in left if row not in part]
    return totals, budget


def _at_once(model: Any, head: nn.Module, examples: Sequence[Example], device: Device, *, packed: bool) -> list[float]:
    batch = collate(examples, device.torch_device, packed=packed)
    losses = token_losses(model, head, batch, device).double()
    totals = torch.zeros(len(examples), dtype=torch.float64, device=device.torch_device)
    found: list[float] = totals.index_add_(0, batch.rows, losses).tolist()
    return found


def _halved(budget: Budget, examples: Sequence[Example]) -> Budget:
    """Half of what these rows took together."""
    lengths = [example.length for example in examples]
    taken = sum(lengths) if budget.packed else len(lengths) * max(lengths)
    log.warning("out of memory with %d tokens of an evaluation at once: continuing with %d", taken, taken // 2)
    return replace(budget, tokens=taken // 2)


@contextlib.contextmanager
def _evaluated(model: Any) -> Iterator[None]:
    """The model's state for an evaluation, also for one that is interrupted."""
    was_training = model.training
    set_training(model, on=False)
    cast = set_input_casts(model, on=True)
    try:
        yield
    finally:
        set_training(model, on=was_training)
        set_input_casts(model, on=cast)


def _passes(batches: int, ranks: Ranks, stop: Stop | None) -> Iterator[int]:
    """The numbers of this process's forward passes. With `stop`, it asks as often as the busiest process does."""
    own = ranks.rounds(batches)
    if stop is None:
        yield from range(own)
        return
    for number in range(max(ranks.gather(own, int))):
        if number % ASK_EVERY == 0 and ranks.any(stop.requested):
            raise Interrupted
        if number < own:
            yield number
