"""Bytes that a decoder layer keeps for the backward pass.

Symbols of the comments: s bytes of the compute type, C hidden size, Q width of all queries, KV of all keys, I of the
MLP, H heads, r rank.
"""

from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache

from lora_trainer.contract.config import Quantization
from lora_trainer.contract.fit.setting import Setting
from lora_trainer.contract.fit.shape import ATTENDED, Layer, Linear, Stack


@lru_cache(maxsize=4096)
def layer_bytes(layer: Layer, ranks: tuple[int, ...], setting: Setting) -> float:
    """Bytes that autograd keeps of a layer for a token.

    For Llama with the adapter on all modules, in 16 bits: 8C + 4Q + 4KV + 6I + 4H + 8, and 4C + 2I + 14r.
    """
    return (
        _norm_bytes(layer, setting)
        + _mlp_bytes(layer, setting)
        + mask_bytes(setting) * layer.dropped
        + attention_bytes(layer, setting)
        + _input_bytes(layer, ranks, setting)
        + _adapter_bytes(layer, ranks, setting)
        + setting.size * sum(stack.passed * stack.inputs for stack in layer.stacks if stack.rank)
    )


@lru_cache(maxsize=4096)
def kept_bytes(layer: Layer, ranks: tuple[int, ...], setting: Setting) -> float:
    """Bytes that a layer keeps for a token until its backward pass, as `setting` recomputes.

    Recomputed whole, its input. Selectively all but what is within its MLP, and the MLP's input, which attention may
    keep already. bitsandbytes keeps the inputs of 8-bit modules by itself, out of recomputation's reach.
    """
    if not setting.recompute:
        return layer_bytes(layer, ranks, setting)
    in_8_bits = setting.quantization is Quantization.INT8
    stream = stream_size(layer, setting)
    if not setting.selective:
        of_quantized = stream * inputs_of(layer) + setting.size * layer.query
        return stream * layer.hidden + (of_quantized if in_8_bits else 0)
    attention, its_ranks = without_mlp(layer, ranks)
    found = layer_bytes(attention, its_ranks, setting)
    mlp = [module for module in layer.linear if module.in_mlp]
    if in_8_bits:
        found += stream * sum(module.inputs for module in mlp if module.reads.endswith("product"))
    size = 4 if layer.layer_norm and setting.widened else stream
    read = {
        module.reads
        for module, rank in zip(attention.linear, its_ranks, strict=True)
        if in_8_bits or keeps_input(rank, setting)
    }
    shared = (in_8_bits or size == setting.size) and any(module.reads in read for module in mlp)
    return found if shared else found + size * layer.hidden


def without_mlp(layer: Layer, ranks: tuple[int, ...]) -> tuple[Layer, tuple[int, ...]]:
    """A layer of attention and norms alone, and the ranks of its modules."""
    left = [(module, rank) for module, rank in zip(layer.linear, ranks, strict=True) if not module.in_mlp]
    attention = replace(layer, linear=tuple(module for module, _ in left), mlp_values=0, wide_values=0, stacks=())
    return attention, tuple(rank for _, rank in left)


def stream_size(layer: Layer, setting: Setting) -> int:
    """Bytes of a value of the residual stream. A GPU's LayerNorm gives fp32, and bitsandbytes' modules give back the
    type that they are given: so the MLP behind it gives fp32, and what it is added to."""
    wide = layer.layer_norm and setting.widened and setting.quantization is not Quantization.NONE
    return 4 if wide else setting.stream_size


def _mlp_bytes(layer: Layer, setting: Setting) -> int:
    return stream_size(layer, setting) * layer.mlp_values + (4 if setting.widened else setting.size) * layer.wide_values


def mask_bytes(setting: Setting) -> int:
    """Of dropout, a value: a GPU's mask has a byte, a CPU's the compute type."""
    return setting.size if setting.cpu else 1


def has_kernel(layer: Layer, setting: Setting) -> bool:
    """Whether one kernel computes attention over all rows, and takes heads that share keys and values."""
    return layer.own_attention or (
        setting.packs and not layer.score_bytes and not layer.own_dropout and not layer.uneven
    )


def _norm_bytes(layer: Layer, setting: Setting) -> int:
    """An input in fp32 each; LayerNorm's as it is where nothing widens it, or where it is fp32 already: then once for
    norms side by side."""
    size = stream_size(layer, setting)
    if not layer.layer_norm or (setting.widened and size < 4):
        return 4 * (layer.normed + layer.statistics)
    normed = layer.hidden if layer.parallel else layer.normed
    return size * normed + (4 if setting.widened else size) * layer.statistics


def attention_bytes(layer: Layer, setting: Setting) -> float:
    """What attention reads and gives, and a sum for each head. Where no kernel takes grouped heads (a CPU's does), keys
    and values are repeated for each; uneven ones are never shared. Scores that are written out are kept with their
    mask."""
    size = setting.size
    if layer.score_bytes:
        scores = layer.score_bytes if not setting.fp32 else 4 * (layer.score_bytes - 4) // 2
        return 3 * size * layer.query + (scores * layer.heads + 1) * setting.row
    shared = setting.cpu or layer.uneven or has_kernel(layer, setting)
    key_value = layer.key_value if shared else layer.query
    # Values are a part of what the fused module gave, unless they are repeated, or that is fp32, which is converted.
    part = layer.fused and key_value == layer.key_value and stream_size(layer, setting) == size
    whole = layer.query + layer.key_value if part else 0
    values = 2 * (layer.query + key_value) + whole
    if layer.own_dropout and setting.cpu:
        # PyTorch's attention for CPUs knows no dropout: it is written out in fp32, with scaled queries and keys; a
        # softmax, a mask and their product.
        return 4 * (5 if setting.fp32 else 3) * layer.query + 12 * layer.heads * setting.row
    return size * values + 4 * layer.heads


def _input_bytes(layer: Layer, ranks: Sequence[int], setting: Setting) -> float:
    """Inputs that only adapters need, each kept once for all modules that read it; with dropout see below.

    LLM.int8() keeps the input of every module that it quantizes, adapted or not. Where it is fp32, each module makes a
    copy of its own in 16 bits.
    """
    wide = stream_size(layer, setting) > setting.size
    alone = (layer.layer_norm and setting.widened) or wide
    every = setting.saves_inputs or setting.quantization is Quantization.INT8
    read: dict[str, int] = {}
    for module, rank in zip(layer.linear, ranks, strict=True):
        needed = (every and (not wide or module.reads == ATTENDED)) or (rank > 0 and not setting.dropout)
        if needed and not (module.saved and has_kernel(layer, setting)):
            own_copy = alone and not module.saved and (wide or not module.reads.endswith("product"))
            read[module.name if own_copy else module.reads] = module.inputs
    of_quantized = stream_size(layer, setting) * inputs_of(layer) if every and wide else 0
    return setting.size * sum(read.values()) + of_quantized


def keeps_input(rank: int, setting: Setting) -> bool:
    """Whether a module with an adapter of that rank keeps its input as it is."""
    return rank > 0 and not setting.dropout


def kept_weights(layer: Layer, ranks: tuple[int, ...], setting: Setting) -> int:
    """Bytes of matrices that a layer keeps a copy of, however few its tokens are: with dropout, PEFT's DoRA multiplies
    what was dropped by the weight itself, and the backward pass needs that again. That is a quantized matrix in full,
    or another where what it reads is fp32: PEFT makes it so, too, and autocast 16 bits of that.

    Stacks with an adapter are added to it whole, see `stack_bytes`.
    """
    stacks = sum(stack_bytes(stack, setting) for stack in layer.stacks)
    if not (setting.dora and setting.dropout):
        return stacks
    whole = setting.quantization is Quantization.NONE
    return stacks + setting.size * sum(
        module.weights
        for module, rank in zip(layer.linear, ranks, strict=True)
        if rank and (not whole or reads_fp32(layer, module, setting))
    )


def stack_bytes(stack: Stack, setting: Setting) -> int:
    """Of the sum of a stack and its adapter, which PEFT makes of all its matrices, and of both factors in 16 bits."""
    if not stack.rank:
        return 0
    return setting.size * stack.weights + (0 if setting.fp32 else 2 * sum(stack.factors))


def reads_fp32(layer: Layer, module: Linear, setting: Setting) -> bool:
    """Whether autocast has 16 bits made of what a module of an unquantized layer reads."""
    of_norm = layer.layer_norm and not module.reads.endswith("product") and module.reads != ATTENDED
    return setting.widened and (of_norm or (layer.wide_values > 0 and module.reads.endswith("product")))


def inputs_of(layer: Layer) -> int:
    """Values of all inputs of linear modules, each once, but for what attention gives: that has the compute type."""
    return sum({module.reads: module.inputs for module in layer.linear if module.reads != ATTENDED}.values())


def untrained_bytes(layer: Layer, ranks: tuple[int, ...], setting: Setting) -> float:
    """What the first layer does not keep of `layer_bytes`: the input of its first norm, and an MLP that stands beside
    attention and has no adapters."""
    found = (setting.size if layer.layer_norm and not setting.widened else 4) * layer.hidden
    beside = [rank for module, rank in zip(layer.linear, ranks, strict=True) if module.in_mlp]
    if layer.parallel and not any(beside) and not setting.selective:
        found += _mlp_bytes(layer, setting)
    return found


def _adapter_bytes(layer: Layer, ranks: Sequence[int], setting: Setting) -> float:
    """A's output; with dropout each module's own input and its mask; with DoRA the base's output and the adapter's."""
    total = 0.0
    for module, rank in zip(layer.linear, ranks, strict=True):
        if rank:
            total += setting.size * rank
            total += (setting.size + mask_bytes(setting)) * module.inputs if setting.dropout else 0
            # With dropout the base's output is computed again, in the compute type.
            narrow = setting.dropout or module.reads == ATTENDED
            base = setting.size if narrow else setting.stream_size
            total += (base + setting.size) * module.outputs if setting.dora else 0
    return total
