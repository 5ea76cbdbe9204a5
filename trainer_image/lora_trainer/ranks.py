"""The processes of one training: which part of a step is this one's, and what they tell each other.

A run on one device is the group of one, in which nothing needs to be told.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import nn

T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class Ranks:
    """This process's place: `rank` of `world`, `local_rank` on its node. Rank 0 logs, saves and reports."""

    rank: int = 0
    world: int = 1
    local_rank: int = 0

    @property
    def is_main(self) -> bool:
        """Whether this is the process that logs, saves and reports."""
        return self.rank == 0

    def share(self, items: Sequence[T], sizes: Sequence[int]) -> list[T]:
        """This process's part of a step's items, balanced by size in tokens; the same partition on every process."""
        return list(items)

    def sum(self, value: float) -> float:
        """The sum over all processes, the same on each."""
        return value

    def any(self, flag: bool) -> bool:
        """Whether any process says so."""
        return flag

    def sum_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """Replace the gradients by their sums over all processes."""

    def broadcast(self, tensor: torch.Tensor) -> torch.Tensor:
        """Rank 0's tensor, on every process."""
        return tensor

    def barrier(self) -> None:
        """Wait until every process is here."""
