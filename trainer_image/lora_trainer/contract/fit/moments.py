"""The moments of a training step in which memory may be at its peak, in bytes above what stands all the time.

Symbols of the comments as in `activations`, and V vocabulary, T tokens of a micro-batch.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property

from lora_trainer.contract.config import Quantization
from lora_trainer.contract.fit.activations import (
    keeps_input,
    kept_bytes,
    kept_weights,
    layer_bytes,
    reads_fp32,
    stack_bytes,
    stream_size,
    untrained_bytes,
    without_mlp,
)
from lora_trainer.contract.fit.adapter import Adapter
from lora_trainer.contract.fit.limits import MOST_LOGITS, TOKEN_BUDGET
from lora_trainer.contract.fit.setting import Setting
from lora_trainer.contract.fit.shape import Layer, Linear, Shape

_NORM_GRADIENTS = 20
"""Bytes a value of the hidden size in the backward pass of a norm that is written out: five steps in fp32."""
_LAYER_NORM_GRADIENTS = 12


@dataclass(frozen=True, slots=True, kw_only=True)
class Moment:
    """Bytes of activations, of autocast's copies of the adapter, of a 4-bit matrix in full, and of what is computed."""

    activations: float
    working: float
    copies: float = 0.0
    dequantized: float = 0.0

    @property
    def total(self) -> float:
        """All of them."""
        return self.activations + self.working + self.copies + self.dequantized


@dataclass(frozen=True, kw_only=True)
class Run:
    """A model, its adapter and how they are trained."""

    shape: Shape
    adapter: Adapter
    setting: Setting

    @cached_property
    def layers(self) -> list[tuple[Layer, tuple[int, ...]]]:
        """Each, its stacks with their ranks, and the ranks of its modules."""
        made: dict[tuple[int, tuple[int, ...]], Layer] = {}
        found: list[tuple[Layer, tuple[int, ...]]] = []
        for layer, ranks, stacks in zip(self.shape.layers, self.adapter.ranks, self.adapter.stacks, strict=True):
            key = id(layer), stacks
            if key not in made:
                made[key] = with_ranks(layer, stacks)
            found.append((made[key], ranks))
        return found

    @cached_property
    def kinds(self) -> list[tuple[Layer, tuple[int, ...], int]]:
        """Those that differ, each with its number. Models repeat one object, which is known by its identity."""
        found: dict[tuple[int, tuple[int, ...]], tuple[Layer, int]] = {}
        for layer, ranks in self.layers:
            _, before = found.get((id(layer), ranks), (layer, 0))
            found[id(layer), ranks] = layer, before + 1
        return [(layer, ranks, number) for (_, ranks), (layer, number) in found.items()]


def with_ranks(layer: Layer, stacks: tuple[int, ...]) -> Layer:
    """The layer itself where none of its stacks is adapted."""
    if not any(stacks):
        return layer
    adapted = (replace(stack, rank=rank) for stack, rank in zip(layer.stacks, stacks, strict=True))
    return replace(layer, stacks=tuple(adapted))


def largest_moment(run: Run) -> Moment:
    """Of all moments the one that takes most."""
    return max(_moments(run), key=lambda moment: moment.total)


def _moments(run: Run) -> Iterator[Moment]:
    setting, copies = run.setting, _copies(run)
    kept, last_norm = _kept(run), 4 * run.shape.hidden * setting.tokens
    dora = max(_dora_bytes(layer, ranks, setting) for layer, ranks, _ in run.kinds)
    held = _held_copies(run)
    yield Moment(activations=kept + last_norm, working=_loss_bytes(run), copies=held)
    # Those of layers that are not recomputed are kept.
    summed = _summed(run) if setting.recompute else 0.0
    yield Moment(activations=kept, working=_forward_bytes(run) * setting.tokens + dora + summed, copies=copies)
    norm = (_LAYER_NORM_GRADIENTS if run.layers[-1][0].layer_norm else _NORM_GRADIENTS) * run.shape.hidden
    yield Moment(activations=kept + last_norm, working=norm * setting.tokens, copies=held)
    left = held + _largest_copies(run)
    for layer, ranks, _ in run.kinds:
        again = _again(layer, ranks, setting)
        of_product, of_factors = (bytes_ * setting.tokens for bytes_ in _gradient_bytes(layer, ranks, setting))
        of_dora = _dora_bytes(layer, ranks, setting) + _beside_dora(layer, setting) * setting.tokens
        yield Moment(activations=kept, working=again + max(of_factors, of_dora), copies=left)
        full = _dequantized(layer, setting)
        yield Moment(activations=kept, working=again + of_product, copies=left, dequantized=full)
        for of_stack in _stack_gradients(layer, setting):
            yield Moment(activations=kept, working=again + of_stack, copies=left)
    # The gradient of embeddings that are trained is made whole, before it is added: everything else is gone by then.
    yield Moment(activations=0.0, working=4.0 * run.adapter.whole)
    yield from _evaluation(run)


def _kept(run: Run) -> float:
    """Kept of all layers for the backward pass."""
    setting = run.setting
    of_layers = sum(number * kept_bytes(layer, ranks, setting) for layer, ranks, number in run.kinds)
    if setting.whole_layers:
        return of_layers * setting.tokens
    # What is before the first trained parameter needs no gradient.
    before = 0.0 if run.adapter.whole else untrained_bytes(*run.layers[0], setting)
    weights = sum(number * kept_weights(*_held(layer, ranks, setting), setting) for layer, ranks, number in run.kinds)
    return (of_layers - before) * setting.tokens + weights


def _again(layer: Layer, ranks: tuple[int, ...], setting: Setting) -> float:
    """What a layer's backward pass makes once more: all that the layer would keep, or what is within its MLP."""
    if not setting.recompute:
        return 0.0
    whole, weights = layer_bytes(layer, ranks, setting), kept_weights(layer, ranks, setting)
    if setting.selective:
        attention = without_mlp(layer, ranks)
        whole, weights = whole - layer_bytes(*attention, setting), weights - kept_weights(*attention, setting)
    return whole * setting.tokens + weights


def _held(layer: Layer, ranks: tuple[int, ...], setting: Setting) -> tuple[Layer, tuple[int, ...]]:
    """The part of a layer that is not recomputed."""
    return without_mlp(layer, ranks) if setting.selective else (layer, ranks)


def _copies(run: Run) -> float:
    """Autocast's, of A and B in 16 bits."""
    return 0.0 if run.setting.fp32 else 2.0 * sum(number * _values(layer, ranks) for layer, ranks, number in run.kinds)


def _held_copies(run: Run) -> float:
    """Those that are kept for the backward pass: at the end of the forward pass autocast forgets the others."""
    if run.setting.fp32 or run.setting.whole_layers:
        return 0.0
    return 2.0 * sum(number * _values(*_held(layer, ranks, run.setting)) for layer, ranks, number in run.kinds)


def _largest_copies(run: Run) -> float:
    """Those that recomputing a layer makes again."""
    if run.setting.fp32 or not run.setting.recompute:
        return 0.0

    def made(layer: Layer, ranks: tuple[int, ...]) -> int:
        held = _values(*without_mlp(layer, ranks)) if run.setting.selective else 0
        return _values(layer, ranks) - held

    return 2.0 * max(made(layer, ranks) for layer, ranks, _ in run.kinds)


def _values(layer: Layer, ranks: tuple[int, ...]) -> int:
    return sum(rank * (module.inputs + module.outputs) for module, rank in zip(layer.linear, ranks, strict=True))


def _dequantized(layer: Layer, setting: Setting) -> float:
    """A quantized matrix that its backward pass needs in full."""
    if setting.quantization is Quantization.NONE:
        return 0.0
    return float(setting.size * max((module.weights for module in layer.linear), default=0))


def _gradient_bytes(layer: Layer, ranks: tuple[int, ...], setting: Setting) -> tuple[float, float]:
    """What a layer's backward pass has at once beside what is kept, for a token: while the last module of its MLP gives
    the gradient of its input, and after that.

    Then there are the gradients of both factors and of their product, less the product, which is gone by then; where
    scores are written out, their gradient in fp32 twice, when the MLP is gone.
    """
    size = stream_size(layer, setting)
    stream = 2 * size * layer.hidden
    products = [(m, rank) for m, rank in zip(layer.linear, ranks, strict=True) if m.reads.endswith("product")]
    product = max((module.inputs for module, _ in products), default=0)
    gone = setting.size * sum(module.inputs for module, rank in products if keeps_input(rank, setting))
    wide = (4 if setting.widened else size) * layer.wide_values
    mlp = max(size * max(layer.mlp_values, 2 * product), wide) - gone
    of_mlp = size * layer.mlp_values + wide + gone
    scores = 8 * layer.heads * setting.row - of_mlp if layer.score_bytes else 0.0
    return stream + size * product, stream + max(mlp, scores)


def _summed(run: Run) -> float:
    """Sums of a layer's stacks and their adapters."""
    return float(max(sum(stack_bytes(stack, run.setting) for stack in layer.stacks) for layer, *_ in run.kinds))


def _stack_gradients(layer: Layer, setting: Setting) -> Iterator[float]:
    """What a layer's backward pass has at once beside what is kept, when it has made the gradient of a stack's sum.

    Then there are both factors' gradients and those of the products, whose values are gone, as is what followed them.
    """
    size, gone = setting.size, 0.0
    stream = 2 * size * layer.hidden * setting.tokens
    for stack in reversed(layer.stacks):
        of_token = size * stack.passed * setting.tokens
        if stack.rank:
            yield size * (stack.weights + sum(stack.factors)) + of_token * stack.inputs + stream - gone
        kept = stack.outputs + stack.inputs * (2 if stack.rank else 1)
        gone += of_token * kept + stack_bytes(stack, setting)


def _dora_bytes(layer: Layer, ranks: tuple[int, ...], setting: Setting) -> float:
    """Of the module of a layer that takes most of it."""
    if not setting.dora:
        return 0.0
    adapted = (module for module, rank in zip(layer.linear, ranks, strict=True) if rank)
    return max((_lengths_bytes(layer, module, setting) for module in adapted), default=0.0)


def _lengths_bytes(layer: Layer, module: Linear, setting: Setting) -> float:
    """PEFT makes the adapter's whole product to learn its lengths: from a unit matrix, in fp32 and for autocast in 16
    bits; then beside it the sum with the weight, and that in fp32 for its norm, or all of it in fp32 where the module
    reads that."""
    size = setting.size
    unit, low = module.inputs**2, 0 if setting.fp32 else size
    quantized = 0 if setting.quantization is Quantization.NONE else size
    made = (4 + low) * unit + size * module.weights
    of_weights = 2 * size + low * 2 + quantized
    # What a quantized module reads is fp32 there, and so is what dropout leaves of it.
    wide = setting.stream_size if setting.stream_size > size else 0
    if not quantized and reads_fp32(layer, module, setting):
        wide, of_weights = 4, 4 * 4 + size
    read = wide * module.inputs * (2 if setting.dropout else 1)
    return float(max(made, size * unit + of_weights * module.weights) + read * setting.tokens)


def _beside_dora(layer: Layer, setting: Setting) -> int:
    """What there is of a token when a recomputed layer learns those lengths: the gradient of what it gave, the residual
    stream, and what LayerNorm gave. Of a quantized base the inputs in fp32 are more than that, and stand for it."""
    if not (setting.dora and setting.recompute and setting.quantization is Quantization.NONE):
        return 0
    return (2 * stream_size(layer, setting) + (4 if layer.layer_norm else 0)) * layer.hidden


def _loss_bytes(run: Run) -> float:
    """A few logits at once in the compute type and in fp32, with the learned positions' hidden states and gradients;
    all of them, with the steps of a softmax between, where the output embedding is trained or something follows it."""
    shape, setting = run.shape, run.setting
    size, learned = setting.size, setting.tokens * setting.learned
    hidden = size * shape.hidden * learned
    # LayerNorm gave fp32, which the output embedding takes in 16 bits.
    wide = 4 * shape.hidden * learned if run.layers[-1][0].layer_norm and setting.widened else 0.0
    if not setting.fused_loss:
        return hidden + 14 * shape.vocabulary * setting.tokens
    if shape.capped or run.adapter.head_trained:
        return hidden + wide + _all_logits(run, learned)
    most = max(1, MOST_LOGITS["cpu" if setting.cpu else "cuda"] // shape.vocabulary)
    logits = min(learned, most) * shape.vocabulary * (4 if setting.fp32 else 6)
    return 2 * hidden + wide + logits


def _all_logits(run: Run, learned: float) -> float:
    """A softmax, its gradient and that of the logits in fp32; the tanh that capped them. An output embedding that is
    trained has a copy in 16 bits, and a gradient in these and in fp32."""
    shape, setting = run.shape, run.setting
    size, logits = setting.size, learned * shape.vocabulary
    softmax = (12 + (size if shape.soft_cap else 0)) * logits
    if not run.adapter.head_trained:
        return softmax
    matrix = shape.vocabulary * shape.hidden
    copy = 0 if setting.fp32 else 2 * matrix
    return copy + max(softmax, size * logits + 4 * matrix + copy)


def _forward_bytes(run: Run) -> float:
    """One layer where nothing is kept, for a token: the residual stream, a norm in fp32, and the MLP or the scores."""
    size = run.setting.size

    def one(layer: Layer) -> float:
        mlp = size * (layer.mlp_values + max((m.inputs for m in layer.linear), default=0)) + 4 * layer.wide_values
        scores = 10 * layer.heads * run.setting.row if layer.score_bytes else 0
        attention = size * (2 * layer.query + 2 * layer.key_value) + scores
        return 4 * layer.hidden + 2 * size * layer.hidden + max(mlp, attention)

    return max(one(layer) for layer, *_ in run.kinds)


def _evaluation(run: Run) -> Iterator[Moment]:
    """Nothing is kept there. A CPU evaluates with a GPU's number of tokens; a row longer than those comes alone."""
    setting = run.setting
    if setting.evaluated > setting.row:
        most, longest = max(setting.tokens, setting.evaluated), setting.evaluated
        run = replace(run, setting=replace(setting, tokens=most, row=longest))
    tokens = max(run.setting.tokens, TOKEN_BUDGET) if setting.cpu else run.setting.tokens
    yield Moment(activations=0.0, working=_forward_bytes(run) * tokens + _summed(run), copies=_copies(run))
    yield Moment(activations=0.0, working=_loss_bytes(run))
