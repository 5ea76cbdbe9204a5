"""What the first process read, on all: an outline as JSON, then tensor by tensor.

Of an object that is sent as one a process would hold the bytes as a tensor, the bytes, and what they mean, at once:
three times the state of a large adapter in each of eight processes is more main memory than all of a pod's else.
"""

from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import torch

from lora_trainer.distributed.collectives import Ranks

T = TypeVar("T")
PIECE_BYTES = 2**26
"""Most that is sent at once."""
_TYPES = {str(kind): kind for kind in vars(torch).values() if isinstance(kind, torch.dtype)}


def on_all(value: T, ranks: Ranks, device: torch.device) -> T:
    """Rank 0's dictionaries, lists and tuples, on every process; what the others pass does not count.

    Rank 0 keeps its own. The others' tensors lie on `device`, each on its way there alone in main memory; those
    without dimensions, as an optimizer's counts of steps, stay on the CPU.
    """
    if ranks.world == 1:
        return value
    outline = ranks.broadcast_value(outline_of(value) if ranks.is_main else None, Any)
    if not ranks.is_main:
        received: T = filled(outline, lambda gap: _received(gap, ranks, device))
        return received
    for tensor in tensors_of(value):
        _send(tensor, ranks)
    return value


def outline_of(value: Any) -> Any:
    """The value as JSON can have it, with the type and the shape of each tensor in its place."""
    if isinstance(value, torch.Tensor):
        return {"tensor": [str(value.dtype), *value.shape]}
    if isinstance(value, dict):
        return {"dict": [[key, outline_of(inner)] for key, inner in value.items()]}
    if isinstance(value, list | tuple):
        return {"tuple" if isinstance(value, tuple) else "list": [outline_of(inner) for inner in value]}
    return value


def tensors_of(value: Any) -> Iterator[torch.Tensor]:
    """Its tensors, in the order of its outline."""
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, dict | list | tuple):
        for inner in value.values() if isinstance(value, dict) else value:
            yield from tensors_of(inner)


def filled(outline: Any, tensor: Callable[[list[Any]], torch.Tensor]) -> Any:
    """The value of an outline; `tensor` makes one, from its type and shape."""
    if not isinstance(outline, dict):
        return outline
    ((kind, inner),) = outline.items()
    if kind == "tensor":
        return tensor(inner)
    if kind == "dict":
        return {key: filled(item, tensor) for key, item in inner}
    items = [filled(item, tensor) for item in inner]
    return tuple(items) if kind == "tuple" else items


def _send(tensor: torch.Tensor, ranks: Ranks) -> None:
    for piece in pieces_of(tensor.detach().cpu().contiguous()):
        ranks.broadcast(piece)


def _received(gap: list[Any], ranks: Ranks, device: torch.device) -> torch.Tensor:
    kind, *shape = gap
    tensor = torch.empty(shape, dtype=_TYPES[kind])
    for piece in pieces_of(tensor):
        ranks.broadcast(piece)
    return tensor.to(device) if shape else tensor


def pieces_of(tensor: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Its bytes: gloo does not send all types."""
    return torch.split(tensor.view(-1).view(torch.uint8), PIECE_BYTES) if tensor.numel() else ()
