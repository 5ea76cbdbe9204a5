"""Memory by part at the peak of a training, as this project's trainer has it. See docs/fit.md for each formula's proof.

Symbols of the comments: s bytes of the compute type, C hidden size, Q width of all queries, KV of all keys, I of the
MLP, H heads, r rank, V vocabulary, T tokens of a micro-batch.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from functools import lru_cache

from lora_trainer.contract.config import Optimizer, Quantization
from lora_trainer.contract.fit.adapter import Adapter
from lora_trainer.contract.fit.limits import CONTEXT_BYTES, MOST_LOGITS, TOKEN_BUDGET
from lora_trainer.contract.fit.shape import Layer, Shape

_DOUBLE_QUANTIZED = 0.5 + 1 / 64 + 4 / (64 * 256)
"""Bytes a weight: 4 bits, a scale of 8 bits for 64 weights, a scale in fp32 for 256 of these (arXiv 2305.14314,
section 3)."""
_SMALLEST_8BIT = 4096
"""Tensors of fewer values keep an optimizer's state in fp32 (bitsandbytes, `min_8bit_size`)."""
_RECOMPUTED, _BACKWARD = 1.25, 0.25
"""Of one layer's activations: what its recomputation and gradients take at once; gradients alone where all is kept."""
_CPU_LIBRARIES, _GPU_LIBRARIES = 1_300_000_000, 4_000_000_000
"""Resident set of Python with PyTorch, Transformers, PEFT: measured on a CPU; with CUDA a rule of thumb."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """How a run computes. `tokens` has a micro-batch at most, `row` the longest row; `learned` is the share of tokens
    that is learned. `packs` says that one kernel computes attention over packed rows; `processes` over how many the
    layers are divided, 1 for not.
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
    learned: float = 1.0
    processes: int = 1

    @property
    def size(self) -> int:
        """Bytes of a value of the compute type."""
        return 4 if self.fp32 else 2


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


def gpu_memory(shape: Shape, adapter: Adapter, setting: Setting) -> Memory:
    """Of the GPU, or with `setting.cpu` of the pod: there all parts are main memory."""
    values, tokens = adapter.parameters, setting.tokens
    kept, largest = _activations(shape, adapter, setting)
    loss = _loss_bytes(shape, adapter, setting)
    one_layer = (_RECOMPUTED if setting.recompute else _BACKWARD) * largest * tokens + _dora_bytes(shape, setting)
    # An evaluation keeps nothing, so that it may take more at once.
    working = max(loss, one_layer, _evaluation_bytes(shape, adapter, setting) - kept)
    return Memory(
        weights=round(_weight_bytes(shape, setting)),
        dequantized=setting.size * shape.largest_weight if _is_4bit(setting.quantization) else 0,
        adapter=4 * values,
        gradients=4 * values,
        optimizer=round(_state_bytes(adapter, setting.optimizer)),
        copies=0 if setting.fp32 else 2 * values,
        activations=round(kept),
        working=round(working),
        constant=_CPU_LIBRARIES if setting.cpu else CONTEXT_BYTES,
    )


def main_memory(shape: Shape, adapter: Adapter, setting: Setting, *, processes: int = 1) -> int:
    """Bytes of the pod's main memory, without the cache of its files, which the kernel gives back.

    Beside a GPU these are libraries and CUDA's own for each of the pod's `processes`, and a checkpoint's copy of the
    adapter and its state.
    """
    if setting.cpu:
        return gpu_memory(shape, adapter, setting).total
    return _GPU_LIBRARIES * processes + 12 * adapter.parameters


def _is_4bit(quantization: Quantization) -> bool:
    return quantization in {Quantization.NF4, Quantization.FP4}


def base_bytes(parameters: int, linear: int, quantization: Quantization, size: int) -> float:
    """Of `parameters` weights of a base, of which `linear` are in modules that quantization makes smaller; the others
    have `size` bytes each."""
    small = {Quantization.NONE: float(size), Quantization.INT8: 1.0}.get(quantization, _DOUBLE_QUANTIZED)
    return linear * small + (parameters - linear) * size


def _weight_bytes(shape: Shape, setting: Setting) -> float:
    """The base's own; where layers are divided, two of them are whole at once: the one that computes, and the next."""
    layers = [
        base_bytes(layer.parameters, layer.linear_weights, setting.quantization, setting.size) for layer in shape.layers
    ]
    whole = shape.whole * setting.size
    if setting.processes == 1:
        return sum(layers) + whole
    return sum(layers) / setting.processes + 2 * max(layers, default=0.0) + whole


def _state_bytes(adapter: Adapter, optimizer: Optimizer) -> float:
    """Two moments: 8 bytes a value, or 2 and two scales in fp32 for 256 values (arXiv 2110.02861)."""
    if optimizer is Optimizer.ADAMW:
        return 8.0 * adapter.parameters
    small = sum(size for size in adapter.tensors if size < _SMALLEST_8BIT)
    return 8.0 * small + (2 + 2 * 4 / 256) * (adapter.parameters - small)


def _activations(shape: Shape, adapter: Adapter, setting: Setting) -> tuple[float, float]:
    """Bytes that are kept for the backward pass, and bytes of the largest layer for a token."""
    of_layers = [layer_bytes(layer, ranks, setting) for layer, ranks in zip(shape.layers, adapter.ranks, strict=True)]
    # The last norm keeps its input in fp32.
    last = 4 * shape.hidden * setting.tokens
    if setting.recompute:
        return setting.size * shape.hidden * len(shape.layers) * setting.tokens + last, max(of_layers)
    return sum(of_layers) * setting.tokens + last, max(of_layers)


@lru_cache(maxsize=4096)
def layer_bytes(layer: Layer, ranks: tuple[int, ...], setting: Setting) -> float:
    """Bytes that autograd keeps of a layer for a token.

    For Llama with the adapter on all modules, in 16 bits: 8C + 4Q + 4KV + 6I + 4H + 8, and 4C + 2I + 14r.
    """
    size = setting.size
    core = 4 * (layer.normed + layer.statistics) + size * layer.mlp_values + _attention_bytes(layer, setting)
    return core + _input_bytes(layer, ranks, setting) + _adapter_bytes(layer, ranks, setting)


def _attention_bytes(layer: Layer, setting: Setting) -> float:
    """What attention reads and gives, and a sum for each head. Where no kernel takes grouped heads, keys and values are
    repeated for each; scores that are written out are kept thrice, as a softmax in fp32 among them, with their mask."""
    if layer.scores:
        return 3 * setting.size * layer.query + (8 * layer.heads + 1) * setting.row
    key_value = layer.key_value if setting.packs else layer.query
    return setting.size * 2 * (layer.query + key_value) + 4 * layer.heads


def _input_bytes(layer: Layer, ranks: Sequence[int], setting: Setting) -> float:
    """Inputs that only adapters need, each kept once for all modules that read it; with dropout see below.

    LLM.int8() keeps the input of every module that it quantizes, adapted or not.
    """
    every = setting.quantization is Quantization.INT8
    read: dict[str, int] = {}
    for module, rank in zip(layer.linear, ranks, strict=True):
        needed = every or (rank > 0 and not setting.dropout)
        if needed and not (module.saved and setting.packs and not layer.scores):
            read[module.reads] = module.inputs
    return setting.size * sum(read.values())


def _adapter_bytes(layer: Layer, ranks: Sequence[int], setting: Setting) -> float:
    """A's output; with dropout each module's own input and its mask; with DoRA the base's output and the adapter's."""
    total = 0.0
    for module, rank in zip(layer.linear, ranks, strict=True):
        if rank:
            total += setting.size * rank
            # A GPU's mask has a byte a value, a CPU's the compute type.
            mask = setting.size if setting.cpu else 1
            total += (setting.size + mask) * module.inputs if setting.dropout else 0
            total += 2 * setting.size * module.outputs if setting.dora else 0
    return total


def _dora_bytes(shape: Shape, setting: Setting) -> float:
    """PEFT makes the adapter's whole product to learn its lengths: the sum, and the product in the compute type."""
    return (4 + 2 * setting.size) * shape.largest_weight if setting.dora else 0.0


def _loss_bytes(shape: Shape, adapter: Adapter, setting: Setting) -> float:
    """A few logits at once in the compute type and in fp32, with the learned positions' hidden states and gradients;
    all of them, with the steps of a softmax between, where the output embedding is trained or something follows it."""
    learned = setting.tokens * setting.learned
    hidden = 2 * setting.size * shape.hidden * learned
    if shape.capped or adapter.head_trained:
        return hidden + learned * shape.vocabulary * (14 + (2 * setting.size if shape.capped else 0))
    most = max(1, MOST_LOGITS["cpu" if setting.cpu else "cuda"] // shape.vocabulary)
    return hidden + min(learned, most) * shape.vocabulary * (4 if setting.fp32 else 6)


def _evaluation_bytes(shape: Shape, adapter: Adapter, setting: Setting) -> float:
    """Nothing is kept there: the residual stream, a norm in fp32, and the MLP's values of one layer. A CPU evaluates
    with a GPU's number of tokens."""
    tokens = max(setting.tokens, TOKEN_BUDGET) if setting.cpu else setting.tokens
    widest = max(layer.mlp_values + layer.query + 2 * layer.key_value for layer in shape.layers)
    one = 4 * shape.hidden + setting.size * (2 * shape.hidden + widest)
    return one * tokens + _loss_bytes(shape, adapter, setting)
