"""Which rows go into which optimizer step, and how a step is cut into micro-batches."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from lora_trainer.tokens import IGNORED, Example

TOKEN_BUDGET = 4096
"""Most tokens of a micro-batch, padding included, where `training.microBatchSize` is absent."""

Rows = npt.NDArray[np.integer[Any]]
"""Row numbers, or a number for each row."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Budget:
    """What a micro-batch may hold: at most `tokens`, padding included. A row that is longer comes alone.

    `longest` is the longest row that there is.
    """

    tokens: int
    longest: int

    @classmethod
    def of(cls, micro_batch_size: int | None, longest: int) -> "Budget":
        """That of a run: as many tokens as `micro_batch_size` rows of the longest length have, where it is set."""
        return cls(tokens=TOKEN_BUDGET if micro_batch_size is None else micro_batch_size * longest, longest=longest)

    @property
    def rows(self) -> int:
        """How many rows of the longest length a micro-batch holds."""
        return max(1, self.tokens // self.longest)

    def halved(self) -> "Budget | None":
        """Half of it, for a device whose memory did not suffice; None where the longest row already comes alone."""
        return replace(self, tokens=self.tokens // 2) if self.rows > 1 else None


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """Right-padded rows on a device. Shapes: `input_ids` (rows, tokens), `targets` (learned tokens,).

    `learned` (rows, tokens - 1) marks the positions whose next token is learned; `rows` (learned tokens,) says in which
    row of the batch each of these stands.
    """

    input_ids: torch.Tensor
    learned: torch.Tensor
    targets: torch.Tensor
    rows: torch.Tensor


def collate(examples: Sequence[Example], device: torch.device) -> Batch:
    """Pad on the right. Padding is known by position and never by token id: pad and EOS share an id in many models.

    There is no attention mask: a causal model never looks to the right, where the padding is, and without a mask
    PyTorch takes its fastest attention.
    """
    width = max(example.length for example in examples)
    input_ids = np.zeros((len(examples), width), dtype=np.int64)
    labels = np.full((len(examples), width), IGNORED, dtype=np.int64)
    for row, example in enumerate(examples):
        input_ids[row, : example.length] = example.input_ids
        labels[row, : example.length] = example.labels
    following = torch.from_numpy(labels)[:, 1:]
    learned = following != IGNORED
    return Batch(
        input_ids=torch.from_numpy(input_ids).to(device),
        learned=learned.to(device),
        targets=following[learned].to(device),
        rows=learned.nonzero()[:, 0].to(device),
    )


def step_rows(rows: int, effective: int, total_rows: int, seed: int, start_step: int = 0) -> Iterator[Rows]:
    """Row numbers of each optimizer step from `start_step` on, counted from 0, up to `total_rows` in all.

    Every pass over the data has an order of its own, which follows from the seed and the number of the pass alone: any
    step can be the first. Only the order of the pass at hand is in memory.
    """
    epoch, order = -1, np.empty(0, dtype=np.int32)
    for start in range(start_step * effective, total_rows, effective):
        parts: list[Rows] = []
        position, end = start, min(start + effective, total_rows)
        while position < end:
            if position // rows != epoch:
                epoch = position // rows
                order = _order(rows, seed, epoch)
            offset = position % rows
            parts.append(order[offset : offset + end - position])
            position += len(parts[-1])
        yield np.concatenate(parts)


def _order(rows: int, seed: int, epoch: int) -> npt.NDArray[np.int32]:
    order = np.arange(rows, dtype=np.int32)
    np.random.Generator(np.random.PCG64((seed, epoch))).shuffle(order)
    return order


def micro_batches(lengths: Sequence[int] | Rows, budget: Budget) -> Iterator[list[int]]:
    """Positions in `lengths`, cut into micro-batches of rows of like length, so that little is padded.

    The longest come first: memory that does not suffice shows at once.
    """
    batch: list[int] = []
    for row in sorted(range(len(lengths)), key=lambda row: -lengths[row]):
        if batch and lengths[batch[0]] * (len(batch) + 1) > budget.tokens:
            yield batch
            batch = []
        batch.append(row)
    if batch:
        yield batch


def evaluation_budget(micro_batch_size: int | None, longest: int) -> Budget:
    """That of an evaluation: no more than a micro-batch of the training where the user limited it to save memory."""
    budget = Budget.of(micro_batch_size, longest)
    return replace(budget, tokens=min(TOKEN_BUDGET, budget.tokens))
