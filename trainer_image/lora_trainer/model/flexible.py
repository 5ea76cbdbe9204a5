"""Whether a run computes attention over packs with FlexAttention: where scores are capped or have sinks, on a GPU on
which it has proven itself."""

import time
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch

from lora_trainer.errors import out_of_memory
from lora_trainer.model import attention, flex
from lora_trainer.model.attention import Attention, Call, Kind, Segments, segments_of
from lora_trainer.model.device import Device
from lora_trainer.model.loading import set_training
from lora_trainer.model.quantize import each_token_alone
from lora_trainer.model.refusal import refusal_of
from lora_trainer.ranks.collectives import ALONE, Ranks

NAME = "isolated-flex"
"""Under which Transformers knows attention of which FlexAttention computes what it suits."""
KERNEL = "flex"
"""Its name for people, in what computes a model's attention."""

_OTHER_LENGTHS, _WINDOW = (301, 90), 64
"""Of a second pack, for which nothing is compiled anew, and the most tokens that a layer with a window sees there: the
model's own windows may be longer than all rows here."""
_MOST_TIME, _ROUNDS = 1.1, 5
"""As of the other fast paths."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """What computes attention, None where FlexAttention does not; why it is left out, None where nothing is against it
    or nothing in the model is for it."""

    kernel: str | None = None
    left_out: str | None = None


def isolated(given: tuple[torch.Tensor, ...], segments: Segments, kind: Kind) -> torch.Tensor:
    """As `attention.isolated`, with FlexAttention where it suits."""
    if not _suits(given, kind):
        return attention.isolated(given, segments, kind)
    segments.kernels.add(KERNEL)
    if kind.window not in segments.tables:
        segments.tables[kind.window] = flex.tables_of(segments.lengths, kind.window, given[0].device)
    query, key, value = (tensor.to(attention.compute_type(given[-1])) for tensor in given)
    tables = segments.tables[kind.window]
    return flex.attention(query, key, value, tables, scaling=kind.scaling, softcap=kind.softcap, sinks=kind.sinks)


def _suits(given: tuple[torch.Tensor, ...], kind: Kind) -> bool:
    """Taken on the GPUs and for the heads that the kernel for packs is, of which less is known to fail."""
    query, _, value = given
    if not kind.written_out or kind.dropout or not flex.suits(query.shape[-1]):
        return False
    dtype, capability = attention.compute_type(value), attention.capability_of(query.device)
    return attention.has_kernel(query.shape[-1], value.shape[-1], dtype, capability)


def choose_flex(
    model: Any,
    found: Attention,
    device: Device,
    ranks: Ranks,
    lengths: Callable[[], Sequence[int]] | None,
) -> Choice:
    """Make a model that packs its rows, as `found`, compute with FlexAttention what that suits, if on all processes it
    proves itself; all of them call this, and find the same. It is timed on a pack of rows of these `lengths`, None not
    to. The model is in evaluation mode afterwards.
    """
    capable = device.dtype != torch.float32 and attention.capability_of(device.torch_device) is not None
    if not all(ranks.gather(found.packs and "sdpa" in found.kernel and capable, bool)):
        return Choice()
    set_training(model, on=False)
    with torch.no_grad(), device.autocast(), each_token_alone(model):
        calls = [call for call in _calls(model, device.torch_device) if _suits(call.given, call.kind)]
        if not all(ranks.gather(bool(calls), bool)):
            return Choice()
        refusal = _agreed(partial(_objection, calls, lengths), ranks)
        if refusal is not None:
            return Choice(left_out=refusal)
        return _taken(model, device.torch_device, ranks)


def _taken(model: Any, device: torch.device, ranks: Ranks) -> Choice:
    """The model with FlexAttention in it, if its rows do not see each other."""
    from transformers import AttentionInterface  # noqa: PLC0415 - Transformers takes seconds to import

    AttentionInterface.register(NAME, partial(attention.attend, compute=isolated))
    ids, segments = attention.probe_tokens(model, device), segments_of(attention.PROBE_LENGTHS, device)
    alone = attention.rows_alone(model, ids)
    model.set_attn_implementation(NAME)
    within = ranks if ranks.lockstep else ALONE
    refusal = _agreed(lambda: attention.trouble_in(model, ids, alone, segments, within) or None, ranks)
    if refusal is None:
        return Choice(kernel="+".join(sorted(segments.kernels)))
    model.set_attn_implementation(attention.NAME)
    return Choice(left_out=refusal)


def _calls(model: Any, device: torch.device) -> list[Call]:
    """The first call of each kind in a pack."""
    calls: dict[Hashable, Call] = {}
    ids, lengths = attention.probe_tokens(model, device), attention.PROBE_LENGTHS
    segments = replace(segments_of(lengths, device), calls=calls)
    model(input_ids=ids, position_ids=attention.positions(lengths, device), use_cache=False, segments=segments)
    return list(calls.values())


def _agreed(refusal: Callable[[], str | None], ranks: Ranks) -> str | None:
    """What one process refuses, all leave out."""
    try:
        own = refusal()
    except Exception as error:
        own = refusal_of(error, "flex-attention")
    return next((one for one in ranks.gather(own, str | None) if one is not None), None)


def _objection(calls: Sequence[Call], lengths: Callable[[], Sequence[int]] | None) -> str | None:
    for call in calls:
        window = None if call.kind.window is None else min(call.kind.window, _WINDOW)
        narrow = replace(call, kind=replace(call.kind, window=window))
        against = attention.objection_to(call, isolated) or attention.objection_to(narrow, isolated, _OTHER_LENGTHS)
        if against is not None:
            return against
        # Without gradients, as evaluations compute: that is compiled by itself.
        segments = segments_of(_OTHER_LENGTHS, call.given[0].device)
        isolated(call.repeated(segments), segments, call.kind)
    return None if lengths is None else _slower(calls, segments_of(tuple(lengths()), calls[0].given[0].device))


def _slower(calls: Sequence[Call], segments: Segments) -> str | None:
    """Why it counts as slower than plain PyTorch, over each kind of layer once; None where it does not, or where memory
    does not suffice for plain PyTorch."""
    fast = plain = 0.0
    for _ in range(_ROUNDS):
        try:
            plain = sum(_seconds(call, segments, attention.isolated) for call in calls)
        except Exception as error:
            if not out_of_memory(error):
                raise
            return None
        fast = sum(_seconds(call, segments, isolated) for call in calls)
        if fast <= _MOST_TIME * plain:
            return None
    return f"it takes {1000 * fast:.1f} ms forward and backward, plain PyTorch {1000 * plain:.1f} ms"


def _seconds(call: Call, segments: Segments, compute: attention.Computed) -> float:
    leaves = tuple(tensor.requires_grad_() for tensor in call.repeated(segments))
    device = leaves[0].device
    wait = partial(torch.cuda.synchronize, device) if device.type == "cuda" else int
    wait()
    began = time.perf_counter()
    with torch.enable_grad(), torch.autocast(device.type, enabled=False):
        result = compute(leaves, segments, call.kind)
        torch.autograd.grad(result, leaves, torch.ones_like(result))
    wait()
    return time.perf_counter() - began
