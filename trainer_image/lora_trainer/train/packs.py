"""How the rows of an optimizer step are spread over processes and micro-batches: evenly, so that none waits for others.

A step is a sum over its rows, whichever micro-batch they are in: the spread changes time and memory, and no result but
for rounding.
"""

import statistics
from collections.abc import Hashable, Sequence

from lora_trainer.distributed.collectives import balance
from lora_trainer.train.batches import MicroBatchLimit, Rows, micro_batches, step_rows

_STEPS_LOOKED_AT = 15
Batches = list[list[int]]
"""Positions of rows, by micro-batch; the largest micro-batch first."""


def spread(lengths: Sequence[int] | Rows, limit: MicroBatchLimit, processes: int, *, fsdp: bool) -> list[Batches]:
    """The micro-batches of each process. In `fsdp`, packs are as many on each as on the busiest: it waits for them
    anyway, and they hold less."""
    shares: Batches = [[] for _ in range(processes)]
    for position, process in enumerate(balance([int(length) for length in lengths], processes)):
        shares[process].append(position)
    sizes = [[int(lengths[position]) for position in share] for share in shares]
    least = max(len(cut(each, limit)) for each in sizes) if fsdp else 0
    return [
        [[share[row] for row in batch] for batch in cut(each, limit, at_least=least)]
        for share, each in zip(shares, sizes, strict=True)
    ]


def room(lengths: Sequence[int] | Rows, limit: MicroBatchLimit, processes: int, *, fsdp: bool) -> int:
    """Tokens that all micro-batches of a step could hold."""
    batches = (batch for each in spread(lengths, limit, processes, fsdp=fsdp) for batch in each)
    return sum(max(limit.tokens, sum(int(lengths[row]) for row in batch)) for batch in batches)


def accumulation(lengths: Rows, limit: MicroBatchLimit, effective: int, seed: int, processes: int = 1) -> int:
    """Micro-batches of an optimizer step of `effective` rows, on the busiest of the processes: the median of the first
    steps. It follows from the rows' lengths, packed or padded, and not from the longest alone."""
    total = min(effective * _STEPS_LOOKED_AT, max(effective, len(lengths)))
    steps = step_rows(len(lengths), effective, total, seed)
    counts = [max(map(len, spread(lengths[rows], limit, processes, fsdp=False))) for rows in steps]
    return statistics.median_high(counts)


def cut(lengths: Sequence[int] | Rows, limit: MicroBatchLimit, *, at_least: int = 0) -> Batches:
    """The micro-batches of one process, each within the budget but for a row that is longer and comes alone.

    Packs are as few as best-fit decreasing finds, or `at_least` so many where there are rows for them. Those of rows
    that may be together differ by the longest row in them at most. Where rows fill them so far that an even spread
    overflows one, they are best fit's.
    """
    found = micro_batches(lengths, limit)
    if not limit.packed:
        return found
    alone = [pack for pack in found if sum(int(lengths[row]) for row in pack) > limit.tokens]
    alike: dict[Hashable, Batches] = {}
    for pack in found[len(alone) :]:
        alike.setdefault(limit.frequencies.at(int(lengths[pack[0]])), []).append(pack)
    counts = _counts(list(alike.values()), lengths, at_least - len(alone))
    even = [
        pack
        for packs, count in zip(alike.values(), counts, strict=True)
        for pack in _evened(packs, lengths, count, limit.tokens)
    ]
    return alone + sorted(even, key=lambda pack: -sum(int(lengths[row]) for row in pack))


def _counts(alike: Sequence[Batches], lengths: Sequence[int] | Rows, at_least: int) -> list[int]:
    """How many packs the rows of each of `alike` take: as many as they are, or more, up to one for each row, until all
    are `at_least` so many. One more goes where packs are the fullest."""
    counts = [len(packs) for packs in alike]
    rows = [sum(map(len, packs)) for packs in alike]
    loads = [sum(int(lengths[row]) for pack in packs for row in pack) for packs in alike]
    for _ in range(min(at_least, sum(rows)) - sum(counts)):
        fullest = max(
            (one for one in range(len(alike)) if counts[one] < rows[one]), key=lambda one: loads[one] / counts[one]
        )
        counts[fullest] += 1
    return counts


def _evened(packs: Batches, lengths: Sequence[int] | Rows, count: int, tokens: int) -> Batches:
    """The rows of some packs in `count` even ones; in these packs where an even one would hold more than `tokens`."""
    rows = sorted((row for pack in packs for row in pack), key=lambda row: (-int(lengths[row]), row))
    # The last row that a pack got is what it is ahead by, at most.
    even: Batches = [[] for _ in range(count)]
    for row, pack in zip(rows, balance([int(lengths[row]) for row in rows], count), strict=True):
        even[pack].append(row)
    return packs if any(sum(int(lengths[row]) for row in pack) > tokens for pack in even) else even
