"""Attention in which the rows of a pack do not see each other, for any model that takes it from Transformers.

No mask says so: a mask over a pack of T tokens has T x T entries, of which most are useless. Each row is a causal
attention of its own; on a GPU one kernel call covers all rows.
"""

import inspect
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn.functional import scaled_dot_product_attention

from lora_trainer.errors import GpuUnfitError, InternalError, explain, one_sentence
from lora_trainer.model import windows
from lora_trainer.model.device import Device, sent
from lora_trainer.model.isolation import agree, apart, traced
from lora_trainer.model.loading import set_training
from lora_trainer.model.quantize import each_token_alone
from lora_trainer.model.rounding import Found, drawn_like, objection, wider
from lora_trainer.ranks.collectives import ALONE, Ranks

_SEEN = "in a pack, this kind of model would let them see each other"
_MASKED = "this kind of model says in masks alone, which packs have none of, how far tokens see"
_UNLIKE = "this kind of model does not compute its logits with attention over packs"
_OTHERWISE = "in a pack, this kind of model computes other logits than for each row alone"

NAME, _TRIED = "isolated", "isolated-tried"
"""Under which Transformers, which makes no masks for the first, knows `attend`, and while that is tried."""
_KNOWN = frozenset({"position_ids", "cache_position"})
"""Tensors that layers pass on and that attention needs not."""

PROBE_LENGTHS = (9, 12, 5)
"""Of the rows that a model is tried with."""
COMPARED_LENGTHS = {"cpu": (40, 1, 33, 22), "cuda": (200, 1, 130, 53)}
"""Of the rows that a kernel is compared on: some longer than the blocks that kernels of this device cut rows into."""
_FLOOR = {torch.float32: 2.0**-13, torch.bfloat16: 2.0**-7, torch.float16: 2.0**-10}
"""Relative errors that are never held against a kernel: a few roundings of 16 bits. In fp32, gradients by weights that
are computed anew from scores of hundreds are off by their rounding."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Segments:
    """Where the rows of a pack lie: `lengths` in order, and their bounds on the device, shape (rows + 1,), int32.

    `attend` adds to `kernels` what computed them, to `calls`, where there is such, the first call of each kind, and to
    `tables` those of FlexAttention, by the window.
    """

    lengths: tuple[int, ...]
    bounds: torch.Tensor
    kernels: set[str] = field(default_factory=set)
    calls: "dict[Hashable, Call] | None" = None
    tables: dict[int | None, tuple[torch.Tensor, ...]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Attention:
    """What a model computes attention with: `kernel` for people, and whether rows may be packed.

    Where they may not, `unpacked` says why; `broken` is whether that is a kernel's failure and not the model's kind.
    """

    kernel: str
    packs: bool
    unpacked: str = ""
    broken: bool = False


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
    segments: Segments | None = None,
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
    if segments.calls is not None:
        _keep(segments.calls, (query, key, value), kind)
    return (compute or isolated)((query, key, value), segments, kind), None


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
        """Whether scores of whole rows are held for it, unless FlexAttention computes it."""
        return self.softcap is not None or self.sinks is not None


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """Queries, keys and values of a layer, in the type that it computes in."""

    given: tuple[torch.Tensor, ...]
    kind: Kind

    def repeated(self, segments: Segments) -> tuple[torch.Tensor, ...]:
        """The same tokens again and again, as many as a pack has."""
        return tuple(one[:, :, torch.arange(sum(segments.lengths)) % one.shape[2]] for one in self.given)


Computed = Callable[[tuple[torch.Tensor, ...], Segments, Kind], torch.Tensor]
"""Attention over a pack: queries, keys and values to results, shape (1, tokens, heads, size)."""


def _keep(calls: dict[Hashable, Call], given: tuple[torch.Tensor, ...], kind: Kind) -> None:
    dtype, sinks = compute_type(given[-1]), kind.sinks
    same = (kind.scaling, kind.window, kind.softcap, sinks is None, *(tensor.shape for tensor in given))
    # Copies of what is a layer's own, which is let go of after the layer where layers are divided.
    own = replace(kind, sinks=None if sinks is None else sinks.detach().clone())
    calls.setdefault(same, Call(given=tuple(tensor.detach().to(dtype) for tensor in given), kind=own))


def isolated(given: tuple[torch.Tensor, ...], segments: Segments, kind: Kind) -> torch.Tensor:
    """Causal attention of each row of a pack, with the kernel for packs or row by row."""
    query, key, value = given
    dtype = compute_type(value)
    if kind.fused and has_kernel(query.shape[-1], value.shape[-1], dtype, capability_of(query.device)):
        segments.kernels.add("varlen")
        return _varlen(query.to(dtype), key.to(dtype), value.to(dtype), segments, kind)
    segments.kernels.add("sdpa")
    return row_by_row(causal, given, segments, kind)


def row_by_row(
    compute: Callable[..., torch.Tensor], given: tuple[torch.Tensor, ...], segments: Segments, kind: Kind
) -> torch.Tensor:
    parts = zip(*(torch.split(tensor, list(segments.lengths), 2) for tensor in given), strict=True)
    return torch.cat([compute(*part, kind).transpose(1, 2) for part in parts], dim=1)


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
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, segments: Segments, kind: Kind
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
        segments.bounds,
        segments.bounds,
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
    """With the scores written out, which no fused kernel can cap or add a sink to."""
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


def choose_attention(model: Any, device: Device, ranks: Ranks = ALONE, longest: int | None = None) -> Attention:
    """Make `model` use `attend` where that gives its own logits for rows of up to `longest` tokens, None for any, and
    try whether its rows can be packed. It is in evaluation mode afterwards. Where its layers are divided over `ranks`,
    all of these call it, and find the same of its logits.

    Tried and not looked up: recurrent layers, convolutions, positions that a model counts itself and arguments that it
    does not pass on all let rows of a pack see each other, in ways that no list of kinds keeps up with. Raises what
    ends a run anyway, as memory that does not suffice.
    """
    from transformers import AttentionInterface  # noqa: PLC0415 - Transformers takes seconds to import

    AttentionInterface.register(NAME, attend)
    set_training(model, on=False)
    # What is trained whole is fp32 beside 16-bit weights, which only autocast brings together.
    with torch.no_grad(), device.autocast(), each_token_alone(model):
        return _chosen(model, device.torch_device, ranks if ranks.lockstep else ALONE, longest)


def _chosen(model: Any, device: torch.device, ranks: Ranks, longest: int | None) -> Attention:
    before = model.config._attn_implementation
    if windows.has_chunks(model):
        return Attention(kernel=str(before), packs=False, unpacked=_SEEN)
    ids = probe_tokens(model, device)
    alone = _alone(model, ids, before)
    try:
        masked = windows.register(_TRIED, attend)
        name = _TRIED if windows.has_effect(model, longest) else NAME
        model.set_attn_implementation(name)
        rows = partial(rows_alone, model, ids)
        taken = model.config._attn_implementation == name and agree(model, rows, rows(), alone, ranks)
        if taken and not masked:
            model.set_attn_implementation(NAME)
            calls: dict[Hashable, Call] = {}
            segments = replace(segments_of(PROBE_LENGTHS, device), calls=calls)
            unpacked = _SEEN if windows.has_memory(model) else trouble_in(model, ids, alone, segments, ranks)
            against = next((found for call in calls.values() if (found := objection_to(call)) is not None), None)
            if against is None:
                kernel = "sdpa" if unpacked else "+".join(sorted(segments.kernels))
                return Attention(kernel=kernel, packs=not unpacked, unpacked=unpacked)
            unpacked, broken = f"the kernel for packs computes wrong results on this device: {against}", True
        else:
            unpacked, broken = _MASKED if masked else _UNLIKE, False
    except (TypeError, ValueError, RuntimeError) as error:
        unpacked, broken = _why(error)
    model.set_attn_implementation(before)
    return Attention(kernel=str(before), packs=False, unpacked=unpacked, broken=broken)


def objection_to(call: Call, compute: Computed | None = None, lengths: tuple[int, ...] = ()) -> str | None:
    """What is against the kernel in the numbers of a layer, its gradients included; None where nothing is."""
    device, dtype = call.given[0].device, call.given[0].dtype
    segments = segments_of(lengths or COMPARED_LENGTHS[device.type], device)
    given, compute = call.repeated(segments), compute or isolated

    def written_out(given: tuple[torch.Tensor, ...]) -> torch.Tensor:
        return row_by_row(_explicit, given, segments, call.kind)

    with torch.enable_grad(), torch.autocast(device.type, enabled=False):
        fast = _with_gradients(lambda given: compute(given, segments, call.kind), given, dtype)
        plain = _with_gradients(written_out, given, dtype)
        wanted = _with_gradients(written_out, tuple(tensor.to(wider(dtype)) for tensor in given), dtype)
    return objection(fast, plain, wanted, _FLOOR[dtype])


def _with_gradients(
    compute: Callable[[tuple[torch.Tensor, ...]], torch.Tensor], given: tuple[torch.Tensor, ...], dtype: torch.dtype
) -> Found:
    leaves = tuple(tensor.detach().requires_grad_() for tensor in given)
    result = compute(leaves)
    random = torch.Generator(result.device).manual_seed(0)
    gradients = torch.autograd.grad(result, leaves, drawn_like(result, dtype, random))
    names = (f"the gradient of its {name}" for name in ("queries", "keys", "values"))
    return [("its result", result.detach()), *zip(names, gradients, strict=True)]


def _why(error: Exception) -> tuple[str, bool]:
    """Why rows cannot be packed, and whether a kernel is to blame. Raises what padding would not help against: too
    little memory, a GPU that failed, a process that is gone."""
    known = explain(error)
    if not isinstance(known, GpuUnfitError | InternalError):
        raise error
    if isinstance(error, TypeError | ValueError | NotImplementedError):
        return f"this kind of model does not take packs ({one_sentence(error)})", False
    return f"the kernel for packs does not work on this device ({one_sentence(error)})", True


def _alone(model: Any, ids: torch.Tensor, implementation: str) -> list[torch.Tensor]:
    try:
        return rows_alone(model, ids)
    except ValueError:
        # PyTorch's own attention cannot cap scores; the explicit one of Transformers computes everything.
        model.set_attn_implementation("eager")
        found = rows_alone(model, ids)
        model.set_attn_implementation(implementation)
        return found


def probe_tokens(model: Any, device: torch.device) -> torch.Tensor:
    vocabulary = int(model.config.get_text_config().vocab_size)
    return (torch.arange(sum(PROBE_LENGTHS), device=device) * 7919 + 5)[None] % vocabulary


def rows_alone(model: Any, ids: torch.Tensor) -> list[torch.Tensor]:
    """Logits of each row, whatever follows it: a pass over a few tokens takes as long as reading the weights does."""
    starts = torch.tensor([sum(PROBE_LENGTHS[:row]) for row in range(len(PROBE_LENGTHS))], device=ids.device)
    columns = starts[:, None] + torch.arange(max(PROBE_LENGTHS), device=ids.device)
    logits = model(input_ids=ids[0, columns % ids.shape[1]], use_cache=False).logits.float()
    return [logits[row, :length] for row, length in enumerate(PROBE_LENGTHS)]


def _packed(model: Any, ids: torch.Tensor, segments: Segments) -> list[torch.Tensor]:
    found = model(input_ids=ids, position_ids=positions(PROBE_LENGTHS, ids.device), use_cache=False, segments=segments)
    return list(torch.split(found.logits[0].float(), list(PROBE_LENGTHS)))


def trouble_in(model: Any, ids: torch.Tensor, alone: list[torch.Tensor], segments: Segments, ranks: Ranks) -> str:
    """Why rows cannot be packed: one sees another, which rounding would hide where it changes little, or gives other
    logits than alone. Empty where nothing is against it."""
    found, embedded = traced(model, lambda: _packed(model, ids, segments))
    if ranks.any(not apart(found, embedded)):
        return _SEEN
    same = agree(model, partial(rows_alone, model, ids), [logits.detach() for logits in found], alone, ranks)
    return "" if same else _OTHERWISE


def segments_of(lengths: tuple[int, ...], device: torch.device) -> Segments:
    """Segments of these lengths, one after the other."""
    bounds = np.cumsum([0, *lengths], dtype=np.int32)
    return Segments(lengths=lengths, bounds=sent(bounds, device))


def positions(lengths: tuple[int, ...], device: torch.device) -> torch.Tensor:
    """Position of each token in its row, shape (1, tokens)."""
    return sent(np.concatenate([np.arange(length) for length in lengths])[None], device)
