"""What the first process read, on all: tensor by tensor, since an object is sent as one pickle.

Of that a process would hold the bytes as a tensor, the bytes, and what they mean, at once: three times the state of a
large adapter in each of eight processes is more main memory than all of a pod's else.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import torch

from lora_trainer.ranks.collectives import Ranks

T = TypeVar("T")
PIECE_BYTES = 2**26
"""Most that is sent at once."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Gap:
    """Where a tensor belongs."""

    shape: tuple[int, ...]
    dtype: torch.dtype


def on_all(value: T, ranks: Ranks, device: torch.device) -> T:
    """Rank 0's dictionaries, lists and tuples, on every process; what the others pass does not count.

    Rank 0 keeps its own. The others' tensors lie on `device`, each on its way there alone in main memory; those
    without dimensions, as an optimizer's counts of steps, stay on the CPU.
    """
    if ranks.world == 1:
        return value
    outline = ranks.broadcast_object(_mapped(value, _gap) if ranks.is_main else value)
    if not ranks.is_main:
        received: T = _mapped(outline, lambda gap: _received(gap, ranks, device))
        return received
    _mapped(value, lambda tensor: _send(tensor, ranks))
    return value


def _mapped(value: Any, change: Callable[[Any], Any]) -> Any:
    """The same with its tensors, or the gaps for them, changed; in the same order on all processes."""
    if isinstance(value, _Gap) or (isinstance(value, torch.Tensor) and value.dim()):
        return change(value)
    if isinstance(value, dict):
        return {key: _mapped(inner, change) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_mapped(inner, change) for inner in value)
    return value


def _gap(tensor: torch.Tensor) -> _Gap:
    return _Gap(shape=tuple(tensor.shape), dtype=tensor.dtype)


def _send(tensor: torch.Tensor, ranks: Ranks) -> None:
    for piece in _pieces(tensor.detach().cpu().contiguous()):
        ranks.broadcast(piece)


def _received(gap: _Gap, ranks: Ranks, device: torch.device) -> torch.Tensor:
    tensor = torch.empty(gap.shape, dtype=gap.dtype)
    for piece in _pieces(tensor):
        ranks.broadcast(piece)
    return tensor.to(device)


def _pieces(tensor: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Its bytes: gloo does not send all types."""
    return torch.split(tensor.view(-1).view(torch.uint8), PIECE_BYTES) if tensor.numel() else ()
