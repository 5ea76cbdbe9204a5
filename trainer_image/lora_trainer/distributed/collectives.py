"""The processes of one training: which part of a step is this one's, and the collectives between them.

A run on one device is the group of one, in which nothing is sent; `group.join` makes larger ones.
"""

import heapq
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import nn

T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class Ranks:
    """This process's place: `rank` of `world`, `local_rank` of the `local_world` on its node. Rank 0 logs, saves and
    exports.

    Every method but `share` is a collective: all processes call it, in the same order, also one without any rows. Each
    raises `PeerFailedError` where another process is gone, or does not come within `timeout_s`. With `fsdp` the
    model's own layers are collectives too.
    """

    rank: int = 0
    world: int = 1
    local_rank: int = 0
    local_world: int = 1
    fsdp: bool = False
    timeout_s: float | None = None

    @property
    def is_main(self) -> bool:
        """Whether this is the process that logs, saves and exports."""
        return self.rank == 0

    def share(self, items: Sequence[T], sizes: Sequence[int]) -> list[T]:
        """This process's part of a step's items, balanced by size in tokens; the same partition on every process.

        Items keep their order. A process may get none.
        """
        return [item for item, rank in zip(items, balance(sizes, self.world), strict=True) if rank == self.rank]

    def rounds(self, micro_batches: int) -> int:
        """How many forward and backward passes this process makes for that many micro-batches of its own."""
        return micro_batches

    def sum(self, value: float) -> float:
        """The sum over all processes, the same on each."""
        return value

    def any(self, flag: bool) -> bool:
        """Whether any process says so."""
        return flag

    def sum_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """Replace the gradients by their sums over all processes."""

    def broadcast(self, tensor: torch.Tensor) -> torch.Tensor:
        """Rank 0's tensor, on every process, written over `tensor`, which has the same shape and type everywhere."""
        return tensor

    def broadcast_value(self, value: T, kind: Any) -> T:
        """Rank 0's value, on every process; what the others pass does not count. It is sent as JSON and read as a
        `kind`, as of `lora_trainer.spec.codec`."""
        return value

    def gather(self, value: T, kind: Any) -> list[T]:
        """The values of all processes, by rank, on every process; `kind` as of `broadcast_value`."""
        return [value]

    def barrier(self) -> None:
        """Wait until every process is here."""


ALONE = Ranks()


def balance(sizes: Sequence[int], parts: int) -> list[int]:
    """The part, from 0 to `parts` - 1, of each of some sizes, so that the sums of the parts are nearly equal.

    The largest first, each to the part that is smallest so far: at most 4/3 of the best possible (Graham, Bounds on
    multiprocessing timing anomalies, 1969). Ties go by position, so that every process finds the same.
    """
    part_of = [0] * len(sizes)
    loads = [(0, part) for part in range(parts)]
    for position in sorted(range(len(sizes)), key=lambda position: (-int(sizes[position]), position)):
        load, part = heapq.heappop(loads)
        part_of[position] = part
        heapq.heappush(loads, (load + int(sizes[position]), part))
    return part_of
