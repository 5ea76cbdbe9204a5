"""Loss over rows with its standard error, and how sure an improvement is."""

import contextlib
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import nn

from lora_trainer.data.store import Examples
from lora_trainer.data.tokens import Example
from lora_trainer.distributed.activity import Counter
from lora_trainer.distributed.collectives import ALONE, Ranks
from lora_trainer.errors import out_of_memory
from lora_trainer.model.device import Device
from lora_trainer.model.loading import set_input_casts, set_training
from lora_trainer.train.batches import MicroBatchLimit, collate, idle, micro_batches
from lora_trainer.train.loss import token_losses
from lora_trainer.train.objective import SFT, Objective
from lora_trainer.train.standard_error import ratio_standard_error
from lora_trainer.train.stopping import Interrupted, Stop

log = logging.getLogger(__name__)
Sums = tuple[float, ...]
"""Of one example, by measure."""
ASK_EVERY = 4
"""Batches after which processes ask each other whether one was asked to stop: a collective makes all of them wait for
the slowest, and a batch of a large model takes seconds, of a grace period of two minutes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluation:
    """Summed loss in nats and weight, its target tokens in a supervised training, of each example. `rows` numbers the
    rows that they are of; without it each is a row of its own. `others` are the objective's other measures."""

    sums: tuple[float, ...]
    tokens: tuple[int, ...]
    rows: tuple[int, ...] = ()
    others: Mapping[str, float] = field(default_factory=dict)

    @property
    def row_count(self) -> int:
        """Over how many rows it is."""
        return len(set(self.rows)) or len(self.sums)

    @property
    def loss(self) -> float:
        """Mean loss per target token."""
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
    limit: MicroBatchLimit,
    ranks: Ranks = ALONE,
    stop: Stop | None = None,
    objective: Objective = SFT,
) -> Evaluation:
    """The measures of every example, in batches within `limit`, shared out over the processes; the same on each.

    Where memory does not suffice for a batch, its rows come in smaller ones: that changes the last digits alone. `done`
    is called with the number of this process's rows after each batch. With `stop`, raises `Interrupted` on all
    processes where one of them was asked to stop.
    """
    known = examples if isinstance(examples, Examples) else Examples.of(examples)
    room = known.room(packed=limit.packed)
    mine = ranks.share(range(len(examples)), room.tolist())
    parts = micro_batches([room[row] for row in mine], limit)
    sums: dict[int, Sums] = {}

    def measure(some: Sequence[Example]) -> list[Sums]:
        batch = collate(some, device.torch_device, packed=limit.packed)
        measures = objective.measures(token_losses(model, head, batch, device), batch)
        return [tuple(each) for each in torch.stack(list(measures.values()), dim=1).tolist()]

    counter = Counter("evaluating rows", len(mine))
    with _evaluated(model), torch.no_grad():
        for part in _passes(len(parts), ranks, stop):
            rows = [mine[position] for position in parts[part]] if part < len(parts) else []
            given = [examples[row] for row in rows] or [idle(objective.sequences)]
            # Layers that are collectives are called as often by every process.
            totals, limit = _totals(measure, given, device, limit, halves=not ranks.fsdp)
            sums.update(zip(rows, totals, strict=False))
            counter(len(sums))
            done(len(sums))
    for others in ranks.gather({str(row): total for row, total in sums.items()}, Mapping[str, Sums]):
        sums.update((int(row), total) for row, total in others.items())
    found = [[sums[row][measure] for row in range(len(examples))] for measure in range(len(sums[0]))]
    (_, weights), *rest = objective.measure_weights(known).items()
    return Evaluation(
        sums=tuple(found[0]),
        tokens=tuple(weights.tolist()),
        rows=tuple(known.rows.tolist()),
        others={name: sum(each) / float(of.sum()) for (name, of), each in zip(rest, found[1:], strict=True)},
    )


def _totals(
    measure: Callable[[Sequence[Example]], list[Sums]],
    examples: Sequence[Example],
    device: Device,
    limit: MicroBatchLimit,
    *,
    halves: bool,
) -> tuple[list[Sums], MicroBatchLimit]:
    """The measures of each of these examples, and the budget that sufficed: where memory does not, and it `halves`,
    there are fewer at once, as in a step."""
    totals: list[Sums] = [()] * len(examples)
    left = list(range(len(examples)))
    while left:
        room = [examples[row].room(packed=limit.packed) for row in left]
        part = [left[row] for row in micro_batches(room, limit)[0]]
        given = [examples[row] for row in part]
        found: list[Sums] | None = None
        try:
            found = measure(given)
        except Exception as error:
            if not halves or len(part) == 1 or not out_of_memory(error):
                raise
        if found is None:
            # Without the error, whose frames hold on to memory.
            limit = _halved(limit, given)
            device.give_back()
            continue
        for row, total in zip(part, found, strict=True):
            totals[row] = total
        left = [row for row in left if row not in part]
    return totals, limit


def _halved(limit: MicroBatchLimit, examples: Sequence[Example]) -> MicroBatchLimit:
    """Half of what these rows took together."""
    room = [example.room(packed=limit.packed) for example in examples]
    taken = sum(room) if limit.packed else len(room) * max(room)
    log.warning("out of memory with %d tokens of an evaluation at once: continuing with %d", taken, taken // 2)
    return replace(limit, tokens=taken // 2)


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
