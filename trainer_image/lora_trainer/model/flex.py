"""Attention over packs where scores are capped or have sinks, which FlashAttention does not compute: PyTorch's
FlexAttention, whose Triton kernels are compiled on the GPU.

It holds no scores of a whole row. Neither the lengths of rows nor a layer's window are part of what is compiled: they
are in `Tables`, made once for all layers of a pack.
"""

import functools
import importlib
from collections.abc import Callable
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import torch

from lora_trainer.model.device import sent

Tables = tuple[torch.Tensor, ...]
"""The first token that each token sees, shape (tokens,); then which blocks of keys a block of queries sees in part and
in full, and which blocks of queries see a block of keys, as `BlockMask` has them: four pairs of numbers and indices."""

_BLOCK = 128
"""Tokens of a block, as many as PyTorch's own."""
_SMALLEST_HEAD = 16
_LARGE_HEAD, _LARGE_SHARED_MEMORY = 128, 160 << 10
"""For larger heads, PyTorch's blocks take nearly as much shared memory (bytes), which A10, L4 and RTX GPUs lack."""
_MOST_GRAPHS = 64
"""Of a process: a run has three, for passes with and without gradients, and for a first layer with frozen keys."""


def suits(size: int) -> bool:
    """Whether Triton multiplies heads of this size."""
    return size >= _SMALLEST_HEAD


def tables_of(lengths: tuple[int, ...], window: int | None, device: torch.device) -> Tables:
    """Those of a pack, whose tokens see `window` tokens of their row, themselves included.

    A token sees all from its first one to itself, and no token sees an earlier one than the token before it does: the
    blocks that a block sees are all from one to itself, and those between two bounds it sees in full.
    """
    tokens = sum(lengths)
    first = np.repeat(np.cumsum((0, *lengths[:-1])), lengths)
    if window is not None:
        first = np.maximum(first, np.arange(tokens) - window + 1)
    own = np.arange(-(-tokens // _BLOCK))
    earliest, latest = first[own * _BLOCK], first[np.minimum((own + 1) * _BLOCK, tokens) - 1]
    seen = (own >= earliest[:, None] // _BLOCK) & (own <= own[:, None])
    full = (own >= -(-latest[:, None] // _BLOCK)) & (own < own[:, None])
    # A block that the pack ends within.
    full[tokens // _BLOCK :] = False
    part = seen & ~full
    ordered = [array for mask in (part, full, part.T, full.T) for array in _ordered(mask)]
    return tuple(sent(array.astype(np.int32), device) for array in (first, *ordered))


def _ordered(mask: npt.NDArray[np.bool_]) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.intp]]:
    """How many columns each row has, and these first. Of two rows at least: what is compiled for one is for one alone,
    and rows after the last are not read."""
    more = max(0, 2 - len(mask))
    mask = np.pad(mask, (0, more))
    return mask.sum(1)[None, None], np.argsort(~mask, axis=1, kind="stable")[None, None]


def attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    tables: Tables,
    *,
    scaling: float | None,
    softcap: float | None,
    sinks: torch.Tensor | None,
) -> torch.Tensor:
    """Attention over a pack. Shapes: `query` (1, heads, tokens, size), `key` and `value` (1, key heads, tokens, size),
    `sinks` (heads,), result (1, tokens, heads, size)."""
    # One layout, no views, no parameters, and one state of autocast: of each there is a graph of its own.
    given = (tensor.transpose(1, 2).clone(memory_format=torch.contiguous_format) for tensor in (query, key, value))
    own = None if sinks is None else sinks.clone()
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    # As text: a number would be an input of the graph, which its kernels do not take.
    numbers = {"scaling": repr(float(scale)), "softcap": None if softcap is None else repr(float(softcap))}
    with torch.autocast(query.device.type, dtype=torch.bfloat16, enabled=False):
        return _compiled()(*given, tables, sinks=own, small=_is_small(query), **numbers)


def _is_small(query: torch.Tensor) -> bool:
    """Whether the GPU has too little shared memory for PyTorch's own sizes of blocks."""
    if query.device.type != "cuda" or query.shape[-1] <= _LARGE_HEAD:
        return False
    return torch.cuda.get_device_properties(query.device).shared_memory_per_block_optin < _LARGE_SHARED_MEMORY


@functools.cache
def _compiled() -> Callable[..., torch.Tensor]:
    return compiled_by("inductor")


def compiled_by(backend: Any) -> Callable[..., torch.Tensor]:
    """`computed`, as one of PyTorch's backends compiles it: once for packs of all lengths."""
    inductor, dynamo, autograd = (
        cast("Any", importlib.import_module(f"torch.{part}.config")) for part in ("_inductor", "_dynamo", "_functorch")
    )
    # Two kernels: a pool of processes, each with PyTorch in main memory, would outlive them.
    inductor.compile_threads = 1
    dynamo.recompile_limit = max(dynamo.recompile_limit, _MOST_GRAPHS)
    # Whether rows see each other is asked in two backward passes through one graph.
    autograd.donated_buffer = False
    # What cannot be compiled as a whole would hold all scores.
    return torch.compile(computed, dynamic=True, fullgraph=True, backend=backend)


def computed(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    tables: Tables,
    *,
    sinks: torch.Tensor | None,
    scaling: str,
    softcap: str | None,
    small: bool,
) -> torch.Tensor:
    """What is compiled. Shapes: (1, tokens, heads, size).

    A sink takes its share of the weights, exp(sink) of the sum of it and of the exponentials of all scores.
    """
    from torch.nn.attention.flex_attention import AuxRequest, BlockMask, flex_attention  # noqa: PLC0415 - as in `_varlen`

    first, blocks, cap = tables[0], tables[1:], float(softcap or 1)

    def sees(_batch: Any, _head: Any, query_at: Any, key_at: Any) -> Any:
        return (key_at <= query_at) & (key_at >= first[query_at])

    def capped(score: Any, *_place: Any) -> Any:
        return torch.tanh(score / cap) * cap

    # FLASH is another package's, TRITON_DECODE has no gradients.
    options: Any = {"BACKEND": "TRITON"}
    if small:
        options |= {"fwd_BLOCK_M": 64, "fwd_BLOCK_N": 32, "fwd_num_stages": 2}
        options |= {"bwd_BLOCK_M1": 32, "bwd_BLOCK_N1": 32, "bwd_BLOCK_M2": 32, "bwd_BLOCK_N2": 32, "bwd_num_stages": 1}
    tokens = query.shape[1]
    mask: Callable[..., Any] = BlockMask
    found: tuple[torch.Tensor, Any] = flex_attention(
        query.transpose(1, 2),
        key.transpose(1, 2),
        value.transpose(1, 2),
        score_mod=None if softcap is None else capped,
        block_mask=mask((tokens, tokens), *blocks, (_BLOCK, _BLOCK), sees),
        scale=float(scaling),
        enable_gqa=True,
        kernel_options=options,
        return_aux=AuxRequest(lse=True),
    )
    result, more = found
    if sinks is not None:
        share = torch.sigmoid(more.lse - sinks[None, :, None])
        result = (result * share[..., None]).to(result.dtype)
    return result.transpose(1, 2)
