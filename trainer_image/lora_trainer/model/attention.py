"""Attention in which the rows of a pack do not see each other, for any model that takes it from Transformers.

No mask says so: a mask over a pack of T tokens has T x T entries, of which most are useless. Each row is a causal
attention of its own; on a GPU one kernel call covers all rows. Which models may is in `fast`.
"""

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn.functional import scaled_dot_product_attention

from lora_trainer.model.device import sent

ROWS, VARLEN = "isolated", "isolated-varlen"
"""Under which Transformers, which makes no masks for either, knows `attend`: row by row, and with the kernel for packs
where that suits."""
_KNOWN = frozenset({"position_ids", "cache_position"})
"""Tensors that layers pass on and that attention needs not."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SequenceLengths:
    """Where the rows of a pack lie: `lengths` in order, and their bounds on the device, shape (rows + 1,), int32."""

    lengths: tuple[int, ...]
    cu_seqlens: torch.Tensor


def attend(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    *,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    softcap: float | None = None,
    s_aux: torch.Tensor | None = None,
    segments: SequenceLengths | None = None,
    compute: "Computed | None" = None,
    **others: Any,
) -> tuple[torch.Tensor, None]:
    """Causal attention, within each of `segments` where the one row of the batch is a pack. Transformers' interface.

    Shapes: `query` (rows, heads, tokens, size), `key` and `value` (rows, key heads, tokens, size), result (rows,
    tokens, heads, size). `sliding_window` is how many tokens a token sees, itself included; `softcap` bounds scores by
    a tanh (arXiv 2408.00118, section 2); `s_aux` are learned sinks, one score for each head; `compute` computes a pack.
    Raises `ValueError` for what is not causal, or comes with a mask or another tensor that says what is seen.
    """
    if attention_mask is not None or not getattr(module, "is_causal", True):
        raise ValueError("isolated attention is causal and takes no mask")
    if unknown := [name for name, given in others.items() if isinstance(given, torch.Tensor) and name not in _KNOWN]:
        raise ValueError(f"isolated attention takes no {unknown[0]}")
    kind = Kind(scaling=scaling, dropout=dropout, window=sliding_window, softcap=softcap, sinks=s_aux)
    if segments is None:
        return causal(query, key, value, kind).transpose(1, 2), None
    return (compute or row_by_row)((query, key, value), segments, kind), None


@dataclass(frozen=True, slots=True, kw_only=True)
class Kind:
    """What a layer asks for, beside its inputs; see `attend`."""

    scaling: float | None
    dropout: float
    window: int | None
    softcap: float | None
    sinks: torch.Tensor | None

    @property
    def fused(self) -> bool:
        """Whether the GPU's kernel for packs computes this."""
        return self.softcap is None and self.sinks is None and not self.dropout

    @property
    def written_out(self) -> bool:
        """Whether scores of whole rows are held for it, which no fused kernel can cap or add a sink to."""
        return self.softcap is not None or self.sinks is not None


Computed = Callable[[tuple[torch.Tensor, ...], SequenceLengths, Kind], torch.Tensor]
"""Attention over a pack: queries, keys and values to results, shape (1, tokens, heads, size)."""


def row_by_row(given: tuple[torch.Tensor, ...], segments: SequenceLengths, kind: Kind) -> torch.Tensor:
    """Causal attention of each row of a pack, one after the other."""
    parts = zip(*(torch.split(tensor, list(segments.lengths), 2) for tensor in given), strict=True)
    return torch.cat([causal(q, k, v, kind).transpose(1, 2) for q, k, v in parts], dim=1)


def at_once(given: tuple[torch.Tensor, ...], segments: SequenceLengths, kind: Kind) -> torch.Tensor:
    """The same with the kernel for packs, where it computes this."""
    query, key, value = given
    dtype = compute_type(value)
    if not (kind.fused and has_kernel(query.shape[-1], value.shape[-1], dtype, capability_of(query.device))):
        return row_by_row(given, segments, kind)
    return _varlen(query.to(dtype), key.to(dtype), value.to(dtype), segments, kind)


def attend_at_once(*given: Any, **more: Any) -> tuple[torch.Tensor, None]:
    """`attend` with the kernel for packs."""
    return attend(*given, compute=at_once, **more)


def has_kernel(query_size: int, value_size: int, dtype: torch.dtype, capability: tuple[int, int] | None) -> bool:
    """Whether a device of that compute capability, None for a CPU, has a kernel for packs of heads of these sizes.

    The limits are FlashAttention's, which PyTorch calls: 16 bits, GPUs from Ampere on, heads of up to 256.
    """
    fits = query_size == value_size and query_size % 8 == 0 and query_size <= 256
    return fits and dtype in (torch.float16, torch.bfloat16) and capability is not None and capability >= (8, 0)


def capability_of(device: torch.device) -> tuple[int, int] | None:
    return torch.cuda.get_device_capability(device) if device.type == "cuda" else None


def compute_type(value: torch.Tensor) -> torch.dtype:
    """Autocast does not know the kernel for packs: rotary embeddings in fp32 may have widened queries and keys."""
    kind = value.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else value.dtype


def _varlen(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, segments: SequenceLengths, kind: Kind
) -> torch.Tensor:
    from torch.nn.attention.varlen import varlen_attn  # noqa: PLC0415 - for GPUs alone

    query, key, value = (tensor[0].transpose(0, 1) for tensor in (query, key, value))
    longest = max(segments.lengths)
    shared: dict[str, Any] = {}
    if (repeats := query.shape[1] // key.shape[1]) > 1:
        if "enable_gqa" in inspect.signature(varlen_attn).parameters:
            shared = {"enable_gqa": True}
        else:  # PyTorch 2.11
            key, value = key.repeat_interleave(repeats, 1), value.repeat_interleave(repeats, 1)
    found: Any = varlen_attn(
        query,
        key,
        value,
        segments.cu_seqlens,
        segments.cu_seqlens,
        longest,
        longest,
        scale=kind.scaling,
        window_size=(-1 if kind.window is None else kind.window - 1, 0),
        **shared,
    )
    result: torch.Tensor = found[None]
    return result


def causal(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, kind: Kind) -> torch.Tensor:
    """Causal attention of each row of the batch, shape as `query`."""
    repeats, tokens = query.shape[1] // key.shape[1], query.shape[2]
    # A CPU's kernel shares keys and values between heads by itself, and keeps no copies for the backward pass.
    shares = query.device.type == "cpu" and not kind.written_out
    if kind.written_out:
        return _explicit(query, key, value, kind)
    if repeats > 1 and not shares:
        key, value = key.repeat_interleave(repeats, 1), value.repeat_interleave(repeats, 1)
    windowed = kind.window is not None and kind.window < tokens
    return scaled_dot_product_attention(
        query,
        key,
        value,
        attn_mask=_visible(tokens, kind.window, query.device) if windowed else None,
        dropout_p=kind.dropout,
        is_causal=not windowed,
        scale=kind.scaling,
        enable_gqa=repeats > 1 and shares,
    )


def _visible(tokens: int, window: int | None, device: torch.device) -> torch.Tensor:
    """Which token (rows) sees which (columns)."""
    position = torch.arange(tokens, device=device)
    distance = position[:, None] - position
    return (distance >= 0) & (distance < (window or tokens))


def _explicit(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, kind: Kind) -> torch.Tensor:
    """With the scores written out."""
    repeats = query.shape[1] // key.shape[1]
    if repeats > 1:
        key, value = key.repeat_interleave(repeats, 1), value.repeat_interleave(repeats, 1)
    scores = query @ key.transpose(2, 3) * (query.shape[-1] ** -0.5 if kind.scaling is None else kind.scaling)
    if kind.softcap is not None:
        scores = torch.tanh(scores / kind.softcap) * kind.softcap
    visible = _visible(query.shape[2], kind.window, query.device)
    scores = scores.masked_fill(~visible, torch.finfo(scores.dtype).min)
    if kind.sinks is not None:
        sinks = kind.sinks.reshape(1, -1, 1, 1).expand(scores.shape[0], -1, scores.shape[2], -1)
        scores = torch.cat([scores, sinks.to(scores.dtype)], dim=-1)
    exact = torch.promote_types(scores.dtype, torch.float32)
    weights = scores.softmax(dim=-1, dtype=exact).to(value.dtype)[..., : key.shape[2]]
    return nn.functional.dropout(weights, kind.dropout) @ value


def sequence_lengths(lengths: tuple[int, ...], device: torch.device) -> SequenceLengths:
    """Segments of these lengths, one after the other."""
    cu_seqlens = np.cumsum([0, *lengths], dtype=np.int32)
    return SequenceLengths(lengths=lengths, cu_seqlens=sent(cu_seqlens, device))


def positions(lengths: tuple[int, ...], device: torch.device) -> torch.Tensor:
    """Position of each token in its row, shape (1, tokens)."""
    return sent(np.concatenate([np.arange(length) for length in lengths])[None], device)
