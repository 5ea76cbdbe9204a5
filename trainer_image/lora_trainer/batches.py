"""Which rows go into which optimizer step, and how a step is cut into micro-batches."""

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch

from lora_trainer.tokens import IGNORED, Example

TOKEN_BUDGET = 4096
"""Most tokens of a micro-batch, padding included, where `training.microBatchSize` is absent."""


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
    input_ids = torch.tensor([(*e.input_ids, *(0,) * (width - e.length)) for e in examples])
    labels = torch.tensor([(*e.labels, *(IGNORED,) * (width - e.length)) for e in examples])[:, 1:]
    learned = labels != IGNORED
    return Batch(
        input_ids=input_ids.to(device),
        learned=learned.to(device),
        targets=labels[learned].to(device),
        rows=learned.nonzero()[:, 0].to(device),
    )


def micro_batch_size(effective: int, longest: int, budget: int = TOKEN_BUDGET) -> int:
    """The largest divisor of the effective batch whose rows, at the longest length, stay within the token budget."""
    return max(
        size for size in range(1, effective + 1) if effective % size == 0 and (size == 1 or size * longest <= budget)
    )


def steps(rows: int, effective: int, total_rows: int, seed: int) -> Iterator[tuple[int, ...]]:
    """Row numbers of each optimizer step up to `total_rows` in all: a fresh shuffle for every pass over the data."""
    order: list[int] = []
    taken = 0
    epoch = 0
    while taken < total_rows:
        wanted = min(effective, total_rows - taken)
        while len(order) < wanted:
            shuffled = list(range(rows))
            random.Random(f"{seed}/{epoch}").shuffle(shuffled)  # noqa: S311 - a reproducible order, not a secret
            order += shuffled
            epoch += 1
        yield tuple(order[:wanted])
        order = order[wanted:]
        taken += wanted


def micro_batches(examples: Sequence[Example], size: int) -> Iterator[Sequence[Example]]:
    """Cut a step's rows into micro-batches of rows of like length, so that little is padded. The longest come first:
    memory that does not suffice shows at once."""
    ordered = sorted(examples, key=lambda example: -example.length)
    for start in range(0, len(ordered), size):
        yield ordered[start : start + size]


def evaluation_budget(micro: int | None, longest: int) -> int:
    """Most tokens of a batch of the evaluation: those of a micro-batch where the user limited it to save memory.

    The logits of an evaluation can take more than a training step with few rows.
    """
    return TOKEN_BUDGET if micro is None else min(TOKEN_BUDGET, micro * longest)


def evaluation_batches(lengths: Sequence[int], budget: int = TOKEN_BUDGET) -> Iterator[tuple[int, ...]]:
    """Row numbers in batches of like length within the token budget."""
    batch: list[int] = []
    for row in sorted(range(len(lengths)), key=lambda row: -lengths[row]):
        if batch and lengths[batch[0]] * (len(batch) + 1) > budget:
            yield tuple(batch)
            batch = []
        batch.append(row)
    if batch:
        yield tuple(batch)
