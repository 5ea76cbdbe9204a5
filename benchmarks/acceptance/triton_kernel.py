"""The smallest kernel of Triton."""

from typing import Any

import torch
import triton
from triton import language as tl

_BLOCK = 256
_library: Any = triton


# Triton compiles the annotations, too, and knows no names of Python's typing.
@_library.jit  # type: ignore[untyped-decorator]
def _add(left, right, total, count, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def] # noqa: N803
    where = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = where < count
    tl.store(total + where, tl.load(left + where, inside) + tl.load(right + where, inside), inside)


def add(left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    """The sum of two vectors of the same length on a GPU."""
    total = torch.empty_like(left)
    _add[(_library.cdiv(left.numel(), _BLOCK),)](left, right, total, left.numel(), BLOCK=_BLOCK)
    return total
