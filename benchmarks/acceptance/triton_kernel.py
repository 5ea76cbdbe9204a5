"""The smallest kernel of Triton."""

from typing import Any

import torch
import triton
from triton import language

_BLOCK = 256
_library: Any = triton
tl: Any = language


def _add(left: Any, right: Any, total: Any, count: Any, BLOCK: Any) -> None:  # noqa: N803 - Triton's custom
    where = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = where < count
    tl.store(total + where, tl.load(left + where, inside) + tl.load(right + where, inside), inside)


_add.__annotations__["BLOCK"] = language.constexpr
_compiled: Any = _library.jit(_add)


def add(left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    """The sum of two vectors of the same length on a GPU."""
    total = torch.empty_like(left)
    _compiled[(_library.cdiv(left.numel(), _BLOCK),)](left, right, total, left.numel(), BLOCK=_BLOCK)
    return total
