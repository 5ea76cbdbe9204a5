"""Memory by part at the peak of a training, as this project's trainer has it, of a merge and of a checkpoint.
docs/memory-and-time.md shows what comes of it.

Symbols of the comments: s bytes of the compute type, C hidden size, Q width of all queries, KV of all keys, I of the
MLP, H heads, r rank, V vocabulary, T tokens of a micro-batch.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, replace
from functools import cached_property, lru_cache

from lora_trainer.plan.adapter import Adapter, matches
from lora_trainer.plan.architecture import ATTENDED, Layer, Linear, ModelArchitecture, Stack
from lora_trainer.plan.families import CONVERTED
from lora_trainer.plan.limits import CONTEXT_BYTES, MOST_LOGITS, NCCL_BYTES, TOKEN_BUDGET
from lora_trainer.spec.config import (
    ActivationCheckpointing,
    DeviceConfig,
    Merge,
    MergePrecision,
    Optimizer,
    Quantization,
    TrainConfig,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """How a run computes. `tokens` has a micro-batch at most, `row` the longest row; `targets` is the share of tokens
    that is learned. `recompute` says that activations are recomputed, with `selective` those of MLPs alone; `packs`
    that one kernel computes attention over packed rows; `processes` over how many the layers are divided, 1 for not;
    `communicators` are NCCL's; `evaluated` is the longest row that is evaluated.

    The last three are other programs', whose published runs are reproduced with them: `saves_inputs` that quantized
    modules keep their inputs (bitsandbytes of 2023), `double_quantized` False that scales of 4-bit weights stay fp32
    (the libraries' default), `fused_loss` False that all logits exist at once.
    """

    quantization: Quantization
    recompute: bool
    tokens: int
    row: int
    packs: bool = True
    cpu: bool = False
    fp32: bool = False
    dropout: bool = False
    dora: bool = False
    optimizer: Optimizer = Optimizer.ADAMW
    target_share: float = 1.0
    processes: int = 1
    communicators: int = 0
    selective: bool = False
    evaluated: int = 0
    saves_inputs: bool = False
    double_quantized: bool = True
    fused_loss: bool = True

    @property
    def whole_layers(self) -> bool:
        """Whether layers keep their inputs alone."""
        return self.recompute and not self.selective

    @property
    def checkpointing(self) -> ActivationCheckpointing:
        """How it recomputes."""
        return ActivationCheckpointing.of(recompute=self.recompute, selective=self.selective)

    @property
    def size(self) -> int:
        """Bytes of a value of the compute type."""
        return 4 if self.fp32 else 2

    @property
    def is_4bit(self) -> bool:
        """Whether linear weights have four bits."""
        return self.quantization in {Quantization.NF4, Quantization.FP4}

    @property
    def stream_size(self) -> int:
        """Bytes of a value of the residual stream. DoRA's lengths are fp32, and PEFT's quantized modules leave in fp32
        what they make so, where a GPU's autocast is on."""
        wide = self.dora and self.quantization is not Quantization.NONE and not self.cpu
        return 4 if wide else self.size

    @property
    def widened(self) -> bool:
        """Whether a GPU's autocast computes in fp32 what needs it; a CPU's leaves that in 16 bits."""
        return not (self.cpu or self.fp32)


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

    shape: ModelArchitecture
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
    size, targets = setting.size, setting.tokens * setting.target_share
    hidden = size * shape.hidden * targets
    # LayerNorm gave fp32, which the output embedding takes in 16 bits.
    wide = 4 * shape.hidden * targets if run.layers[-1][0].layer_norm and setting.widened else 0.0
    if not setting.fused_loss:
        return hidden + 14 * shape.vocabulary * setting.tokens
    if shape.capped or run.adapter.head_trained:
        return hidden + wide + _all_logits(run, targets)
    most = max(1, MOST_LOGITS["cpu" if setting.cpu else "cuda"] // shape.vocabulary)
    logits = min(targets, most) * shape.vocabulary * (4 if setting.fp32 else 6)
    return 2 * hidden + wide + logits


def _all_logits(run: Run, targets: float) -> float:
    """A softmax, its gradient and that of the logits in fp32; the tanh that capped them. An output embedding that is
    trained has a copy in 16 bits, and a gradient in these and in fp32."""
    shape, setting = run.shape, run.setting
    size, logits = setting.size, targets * shape.vocabulary
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


_PACKED = 0.5
_QUANTIZED, _DOUBLE_QUANTIZED = _PACKED + 4 / 64, _PACKED + 1 / 64 + 4 / (64 * 256)
"""Bytes a weight: 4 bits and a scale in fp32 for 64 weights; or a scale of 8 bits for these, and one in fp32 for 256
such scales (arXiv 2305.14314, section 3)."""
_WHOLE_AT_ONCE = 3
"""Layers of a divided base."""
_SMALLEST_8BIT = 4096
"""Tensors of fewer values keep an optimizer's state in fp32 (bitsandbytes, `min_8bit_size`)."""
CPU_LIBRARIES, GPU_LIBRARIES = 1_300_000_000, 4_000_000_000
"""Resident set of Python with PyTorch, Transformers, PEFT: measured on a CPU; with CUDA a rule of thumb."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Memory:
    """Bytes by part. `weights` of the base, `dequantized` one of its matrices in full; the adapter in fp32 with
    `gradients`, `optimizer` state and autocast's `copies`; `activations` that the backward pass needs; `working` memory
    of the largest moment, the loss or one layer; `constant` for context and libraries.
    """

    weights: int
    dequantized: int
    adapter: int
    gradients: int
    optimizer: int
    copies: int
    activations: int
    working: int
    constant: int

    @property
    def total(self) -> int:
        """All of it."""
        return sum(int(getattr(self, field.name)) for field in fields(self))


def gpu_memory(shape: ModelArchitecture, adapter: Adapter, setting: Setting) -> Memory:
    """Of the GPU, or with `setting.cpu` of the pod: there all parts are main memory."""
    values = adapter.parameters
    moment = largest_moment(Run(shape=shape, adapter=adapter, setting=setting))
    return Memory(
        weights=round(_weight_bytes(shape, setting)),
        dequantized=round(moment.dequantized),
        adapter=4 * values,
        gradients=4 * values,
        optimizer=round(state_bytes(adapter, setting.optimizer)),
        copies=round(moment.copies),
        activations=round(moment.activations),
        working=round(moment.working),
        constant=CPU_LIBRARIES if setting.cpu else outside_bytes(setting.communicators),
    )


def outside_bytes(communicators: int) -> int:
    """Of a GPU's memory what PyTorch's allocator does not give out."""
    return CONTEXT_BYTES + NCCL_BYTES * communicators


def communicators_of(device: DeviceConfig, divided: int = 1) -> int:
    """How many of NCCL's communicators a run has on a GPU: one of all processes, and where each node has the whole base
    one of its node's, over which layers are gathered."""
    everyone = device.processes > 1 and device.gpus > 0
    return everyone + (1 < divided < device.processes)


def main_memory(shape: ModelArchitecture, adapter: Adapter, setting: Setting, *, processes: int = 1) -> int:
    """Bytes of the pod's main memory, without the cache of its files, which the kernel gives back.

    Beside a GPU these are libraries and CUDA's own for each of the pod's `processes`, and a checkpoint's copy of the
    adapter and its state, which the first of them has alone, where it writes one and where it goes on from one.
    """
    if setting.cpu:
        return gpu_memory(shape, adapter, setting).total
    return GPU_LIBRARIES * processes + 12 * adapter.parameters


def base_bytes(
    parameters: int, linear: int, quantization: Quantization, size: int, *, double_quantized: bool = True
) -> float:
    """Of `parameters` weights of a base, of which `linear` are in modules that quantization makes smaller; the others
    have `size` bytes each."""
    four = _DOUBLE_QUANTIZED if double_quantized else _QUANTIZED
    small = {Quantization.NONE: float(size), Quantization.INT8: 1.0}.get(quantization, four)
    return linear * small + (parameters - linear) * size


def _weight_bytes(shape: ModelArchitecture, setting: Setting) -> float:
    """The base's own. Where layers are divided, those of three are whole at once: of the one that computes, what it was
    gathered into, and what the next is gathered into meanwhile. FSDP2 keeps the former until then (PyTorch 2.15,
    `FSDPParamGroup.wait_for_unshard`), and both are of another stream, whose memory the first may not take over.

    Scales of 4-bit weights are no parameters, and stay whole.
    """
    # Models repeat one object, which is known by its identity.
    each = {
        key: base_bytes(
            layer.parameters,
            layer.linear_weights,
            setting.quantization,
            setting.size,
            double_quantized=setting.double_quantized,
        )
        for key, layer in {id(layer): layer for layer in shape.layers}.items()
    }
    layers = [each[id(layer)] for layer in shape.layers]
    whole = shape.whole * setting.size
    if setting.processes == 1:
        return sum(layers) + whole
    scales = (_DOUBLE_QUANTIZED - _PACKED) * shape.linear_weights if setting.is_4bit else 0.0
    return (sum(layers) - scales) / setting.processes + scales + _WHOLE_AT_ONCE * max(layers, default=0.0) + whole


def state_bytes(adapter: Adapter, optimizer: Optimizer) -> float:
    """Two moments: 8 bytes a value, or 2 and two scales in fp32 for 256 values (arXiv 2110.02861)."""
    if optimizer is Optimizer.ADAMW:
        return 8.0 * adapter.parameters
    small = sum(size for size in adapter.tensors if size < _SMALLEST_8BIT)
    return 8.0 * small + (2 + 2 * 4 / 256) * (adapter.parameters - small)


_OF_A_MIXTURE = {MergePrecision.AUTO: 5.5, MergePrecision.FP32: 10.5}
"""Bytes for each parameter of the base: experts in fp32 for the sum, stacked, and one by one for the files. What else
is stacked is taken for as much."""
_READ_IN_FP32, _OF_TIED = 4, 12
"""Bytes for each parameter of the base, and more for each of embeddings that were trained apart."""


def merge_memory(config: TrainConfig, parameters: int, shape: ModelArchitecture | None = None) -> int:
    """Bytes of main memory for the merge of a base of so many `parameters`; 0 where that takes a tensor at a time.

    With the whole model in memory are merged experts, which are stacked when they are read, other matrices that files
    of a few kinds hold otherwise than the model does, and embeddings that are tied there and were trained apart. All
    bytes are measured on models with random weights of some 300 MB in 16 bits (`benchmarks/results/results.yaml`).

    Without its `shape` nobody knows whether embeddings are tied.
    """
    if config.output.merge is Merge.ADAPTER:
        return 0
    precision = config.output.merge_precision
    if config.lora.target_parameters or (shape is not None and shape.family in CONVERTED):
        return CPU_LIBRARIES + int(_OF_A_MIXTURE[precision] * parameters)
    if shape is None or not _trains_tied(config, shape):
        return 0
    whole = _READ_IN_FP32 * parameters if precision is MergePrecision.FP32 else 0
    return CPU_LIBRARIES + whole + _OF_TIED * shape.embeddings[1]


def _trains_tied(config: TrainConfig, shape: ModelArchitecture) -> bool:
    ends = (shape.embeddings[0], shape.head[0])
    return shape.head[1] == 0 and any(matches(end, name) for end in ends for name in config.lora.modules_to_save)


def checkpoint_bytes(config: TrainConfig, adapter: Adapter) -> int:
    """Of one checkpoint: the adapter in fp32 and its optimizer's state; with early stopping the best adapter, too, and
    the start values of an adapter that is converted in the end."""
    adapters = 4 * adapter.parameters * (1 + (config.training.early_stopping_patience is not None))
    return adapters + _start_bytes(config, adapter) + round(state_bytes(adapter, config.training.optimizer))


def claim_bytes(config: TrainConfig, shape: ModelArchitecture, adapter: Adapter) -> int:
    """At most at a time: one checkpoint more than are kept, since the oldest goes when a newer one is verified, and the
    result, which waits there to be published. A merged model is counted with 2 bytes a weight, or 4 in FP32."""
    result = adapter.file_bytes + _start_bytes(config, adapter)
    if config.output.merge is not Merge.ADAPTER:
        result += shape.parameters * (4 if config.output.merge_precision is MergePrecision.FP32 else 2)
    return (config.checkpoint.keep + 1) * checkpoint_bytes(config, adapter) + result


def _start_bytes(config: TrainConfig, adapter: Adapter) -> int:
    """Of the start values of PiSSA and OLoRA, which modules that are trained whole do not have. They double the rank
    of the result."""
    return 4 * sum(adapter.tensors) if config.lora.init.changes_base else 0
