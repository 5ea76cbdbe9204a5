"""Which rows go into which optimizer step, and how a step is cut into micro-batches, packed or padded."""

from bisect import bisect_left, insort
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from lora_trainer.data.tokens import IGNORED, Example
from lora_trainer.model.attention import SequenceLengths, positions, sequence_lengths
from lora_trainer.model.device import sent
from lora_trainer.model.rope import STEADY, Frequencies
from lora_trainer.plan.limits import CPU_TOKEN_BUDGET, TOKEN_BUDGET

_IDLE = Example(input_ids=np.zeros(2, dtype=np.int64), labels=np.zeros(2, dtype=np.int64), truncated=False)


def idle(sequences: int) -> Example:
    """What a process without rows of its own computes and does not count, where layers are collectives: see `Ranks`."""
    return Example.of([_IDLE] * sequences)


Rows = npt.NDArray[np.integer[Any]]
"""Row numbers, or a number for each row."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MicroBatchLimit:
    """What a micro-batch may hold: at most `tokens`, padding included. A row that is longer comes alone.

    `longest` is the longest row that there is. With `packed` the rows are laid one after the other, without padding.
    Rows that have other `frequencies` than each other are never together.
    """

    tokens: int
    longest: int
    packed: bool = False
    frequencies: Frequencies = STEADY

    @classmethod
    def of(
        cls, micro_batch_size: int | None, longest: int, *, packed: bool = False, tokens: int = TOKEN_BUDGET
    ) -> "MicroBatchLimit":
        """That of a run: as many tokens as `micro_batch_size` rows of the longest length have, else `tokens`."""
        return cls(
            tokens=tokens if micro_batch_size is None else micro_batch_size * longest, longest=longest, packed=packed
        )

    @property
    def rows(self) -> int:
        """How many rows of the longest length a micro-batch holds."""
        return max(1, self.tokens // self.longest)

    def halved(self) -> "MicroBatchLimit | None":
        """Half of it, for a device whose memory did not suffice, and no less than the longest row takes; None where it
        holds no more than that row."""
        return replace(self, tokens=max(self.longest, self.tokens // 2)) if self.tokens > self.longest else None


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """The sequences of some examples on a device: each padded on the right, or all one after the other in a single row,
    with `segments` then. There are `count`, those of an example, `sequences` each, one after the other.

    Shapes: `input_ids` (rows, tokens), `position_ids` the same or None where every row begins at 0, `targets` (learned
    tokens,). `target_positions` (target tokens,) are the positions whose next token is learned, counted through all
    rows; `rows` (target tokens,) says to which of the sequences each of these belongs.
    """

    input_ids: torch.Tensor
    position_ids: torch.Tensor | None
    segments: SequenceLengths | None
    target_positions: torch.Tensor
    targets: torch.Tensor
    rows: torch.Tensor
    count: int
    sequences: int = 1

    @property
    def arguments(self) -> dict[str, Any]:
        """The model's arguments; a model that cannot pack is never given what it does not know."""
        if self.segments is None:
            return {"input_ids": self.input_ids}
        return {"input_ids": self.input_ids, "position_ids": self.position_ids, "segments": self.segments}


def collate(examples: Sequence[Example], device: torch.device, *, packed: bool = False) -> Batch:
    """The examples as a batch. Padding is known by position and never by token id: pad and EOS share an id in many
    models.

    There is no attention mask: a causal model never looks to the right, where the padding is, and without a mask
    PyTorch takes its fastest attention. Nor is there one over a pack, see `attention`.
    """
    return _pack(examples, device) if packed else _pad(examples, device)


def _pad(examples: Sequence[Example], device: torch.device) -> Batch:
    lengths = [length for example in examples for length in example.lengths]
    width, count = max(lengths), len(lengths)
    input_ids = np.zeros((count, width), dtype=np.int64)
    labels = np.full((count, width), IGNORED, dtype=np.int64)
    within = np.arange(width) < np.array(lengths)[:, None]
    input_ids[within] = np.concatenate([example.input_ids for example in examples])
    labels[within] = np.concatenate([example.labels for example in examples])
    following = labels[:, 1:]
    rows, columns = (following != IGNORED).nonzero()
    return Batch(
        input_ids=sent(input_ids, device),
        position_ids=None,
        segments=None,
        target_positions=sent(rows * width + columns, device),
        targets=sent(following[rows, columns], device),
        rows=sent(rows, device),
        count=count,
        sequences=count // len(examples),
    )


def _pack(examples: Sequence[Example], device: torch.device) -> Batch:
    lengths = tuple(length for example in examples for length in example.lengths)
    labels = np.concatenate([example.labels for example in examples])
    # The first token of a row follows the last of another: it is no prediction of that.
    labels[np.cumsum((0, *lengths[:-1]))] = IGNORED
    target_positions = np.flatnonzero(labels[1:] != IGNORED)
    rows = np.repeat(np.arange(len(lengths)), lengths)
    return Batch(
        input_ids=sent(np.concatenate([example.input_ids for example in examples])[None], device),
        position_ids=positions(lengths, device),
        segments=sequence_lengths(lengths, device),
        target_positions=sent(target_positions, device),
        targets=sent(labels[1 + target_positions], device),
        rows=sent(rows[1 + target_positions], device),
        count=len(lengths),
        sequences=len(lengths) // len(examples),
    )


def step_rows(rows: int, effective: int, total_rows: int, seed: int, seen: int = 0) -> Iterator[Rows]:
    """Row numbers of each optimizer step after those that saw the first `seen` rows, up to `total_rows` in all.

    Every pass over the data has an order of its own, which follows from the seed and the number of the pass alone: any
    row can be the first. Only the order of the pass at hand is in memory.
    """
    epoch, order = -1, np.empty(0, dtype=np.int32)
    for start in range(seen, total_rows, effective):
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


def micro_batches(lengths: Sequence[int] | Rows, limit: MicroBatchLimit) -> list[list[int]]:
    """Positions in `lengths`, cut into micro-batches. The largest come first: too little memory shows at once."""
    descending = sorted(range(len(lengths)), key=lambda row: -lengths[row])
    alike = groupby(descending, key=lambda row: limit.frequencies.at(int(lengths[row])))
    cut = _fill if limit.packed else _cut
    batches = [batch for _, rows in alike for batch in cut(rows, lengths, limit.tokens)]
    return sorted(batches, key=lambda batch: -sum(int(lengths[row]) for row in batch)) if limit.packed else batches


def _cut(descending: Iterable[int], lengths: Sequence[int] | Rows, tokens: int) -> list[list[int]]:
    """Rows of like length together, so that little is padded."""
    batches: list[list[int]] = []
    for row in descending:
        if batches and lengths[batches[-1][0]] * (len(batches[-1]) + 1) <= tokens:
            batches[-1].append(row)
        else:
            batches.append([row])
    return batches


def _fill(descending: Iterable[int], lengths: Sequence[int] | Rows, tokens: int) -> list[list[int]]:
    """Best-fit decreasing: each row to the fullest batch that has room for it."""
    batches: list[list[int]] = []
    room: list[tuple[int, int]] = []
    for row in descending:
        length = int(lengths[row])
        best = bisect_left(room, (length, -1))
        if best < len(room):
            left, batch = room.pop(best)
            batches[batch].append(row)
        else:
            left, batch = max(tokens, length), len(batches)
            batches.append([row])
        insort(room, (left - length, batch))
    return batches


def token_limit(device: torch.device) -> int:
    """Most tokens of a micro-batch on `device` where the user sets none."""
    return CPU_TOKEN_BUDGET if device.type == "cpu" else TOKEN_BUDGET


def evaluation_limit(
    micro_batch_size: int | None,
    longest: int,
    frequencies: Frequencies,
    device: torch.device,
    *,
    trained: int,
    packed: bool = False,
) -> MicroBatchLimit:
    """That of an evaluation: no more than a micro-batch of the training where the user limited it to save memory, and
    on a GPU not where the plan did so either, which has `trained` tokens."""
    limit = MicroBatchLimit.of(micro_batch_size, longest, packed=packed)
    most = TOKEN_BUDGET if device.type == "cpu" else min(TOKEN_BUDGET, trained)
    return replace(limit, tokens=min(most, limit.tokens), frequencies=frequencies)
