"""A base model as an estimate sees it: layers with linear modules, experts, norms, and what surrounds them."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

from lora_trainer.contract.fit.names import MLPS

EXACT, MIXTURE, GUESSED = 0.0, 0.15, 0.3
"""By how much an estimate may be off besides the reserve of `limits.FIT_SHARE`: for a dense family that is known, for
activations of a mixture's experts, and for a family that is not known."""

EXPERTS_LEFT_OUT = (
    "its experts are not counted: name the model's address, whose files show them, and not its config.json alone"
)
"""A shape's doubt where it is `understated`."""
ATTENDED = "attended"
"""What a layer's attention gives, for `Linear.reads`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Linear:
    """A linear module: `name` within its layer, and which activation it `reads`; modules that read the same share it.

    `saved` says that autograd keeps this activation anyway, as the attention's output. `reserved` are modules that
    presets pass over, since PEFT takes their names for a mixture's experts.
    """

    name: str
    inputs: int
    outputs: int
    reads: str
    saved: bool = False
    bias: bool = False
    reserved: bool = False

    @property
    def in_mlp(self) -> bool:
        """Whether it is a part of the layer's MLP, shared experts included."""
        return self.name.split(".", 1)[0] in MLPS

    @property
    def weights(self) -> int:
        """Parameters of the matrix."""
        return self.inputs * self.outputs


@dataclass(frozen=True, slots=True, kw_only=True)
class Stack:
    """A parameter of so many `matrices` that belongs to no linear module: experts, a router, biases of experts. `name`
    within its layer, `passed` how many of them multiply a token, `rank` that of its adapter, 0 for none.

    PEFT puts one pair of factors on it, `matrices` times as long as the rank.
    """

    name: str
    inputs: int
    outputs: int
    matrices: int = 1
    passed: int = 1
    rank: int = 0

    @property
    def weights(self) -> int:
        """Parameters of all its matrices."""
        return self.matrices * self.inputs * self.outputs

    @property
    def factors(self) -> tuple[int, int]:
        """Values of A and B."""
        return self.rank * self.matrices * self.inputs, self.rank * self.matrices * self.outputs


@dataclass(frozen=True, slots=True, kw_only=True)
class Layer:
    """A decoder layer. `mlp_values` are values that autograd keeps of the MLP for a token, its inputs not counted, and
    `wide_values` those of them that a GPU's autocast makes fp32; `normed` the values for which norms keep an fp32 copy,
    `statistics` their scales in fp32; `dropped` those of which the model's own dropout keeps a mask.

    `experts` are parameters in stacked matrices, which are not quantized, `active` those of them that a token passes;
    `stacks` these matrices and the router's, in the order of their products; `other` parameters of norms and routers.
    `score_bytes` are kept for each head and each token that is seen, where attention's scores are written out, as
    kernels cannot cap them or add sinks. `fused` says that one module gives queries, keys and values, which a rotation
    changes: its output is kept for the values. `layer_norm` says that norms are PyTorch's, which a GPU's autocast lets
    give fp32. `own_attention` says that the model calls PyTorch's by itself, which cannot be exchanged, so that rows
    are padded; `own_dropout` that attention has dropout of its own, which the kernel for packs has not; `uneven` that
    heads of queries are wider than those of values, which it does not take; `parallel` that attention and MLP read the
    same.
    """

    linear: tuple[Linear, ...]
    hidden: int
    query: int
    key_value: int
    heads: int
    mlp_values: int
    normed: int
    statistics: int
    other: int
    wide_values: int = 0
    dropped: int = 0
    experts: int = 0
    active: int = 0
    stacks: tuple[Stack, ...] = ()
    score_bytes: int = 0
    fused: bool = False
    layer_norm: bool = False
    own_attention: bool = False
    own_dropout: bool = False
    uneven: bool = False
    parallel: bool = False

    @property
    def linear_weights(self) -> int:
        """Parameters of the linear modules' matrices."""
        return sum(module.weights for module in self.linear)

    @property
    def mlp_weights(self) -> int:
        """Those of them that are in the MLP."""
        return sum(module.weights for module in self.linear if module.in_mlp)

    @property
    def parameters(self) -> int:
        """All of them."""
        biases = sum(module.outputs for module in self.linear if module.bias)
        return self.linear_weights + biases + self.experts + self.other


@dataclass(frozen=True, kw_only=True)
class Shape:
    """A model. `prefix` names the list of layers; `embeddings` and `head` are (name, parameters) of the whole matrices,
    the head's 0 where both are one.

    `outside` are all other parameters: positions, last norm, a vision tower. `capped` says that something follows the
    output embedding, so that all logits exist at once, and `soft_cap` that this is a tanh, which is kept; `mixed` that
    there are experts of a size that is not known, and `understated` that no count of files has them either.
    `unexplained` are the parameters by which files and configuration differ, in `outside` where files hold more: they
    may be left in the files. `doubts` are sentences about what is not known, `spread` the relative width that they give
    the estimate.
    """

    family: str
    layers: tuple[Layer, ...]
    prefix: str
    hidden: int
    vocabulary: int
    embeddings: tuple[str, int]
    head: tuple[str, int]
    outside: int
    capped: bool = False
    soft_cap: bool = False
    mixed: bool = False
    understated: bool = False
    unexplained: int = 0
    doubts: tuple[str, ...] = ()
    spread: float = EXACT

    @cached_property
    def parameters(self) -> int:
        """Of the whole model; tied embeddings count once."""
        return sum(layer.parameters for layer in self.layers) + self.whole

    @property
    def whole(self) -> int:
        """Parameters outside of the decoder layers."""
        return self.embeddings[1] + self.head[1] + self.outside

    @cached_property
    def linear_weights(self) -> int:
        """Parameters of the layers' linear modules, which quantization makes smaller; the output embedding is none."""
        return sum(layer.linear_weights for layer in self.layers)

    @cached_property
    def mlp_share(self) -> float:
        """Share of the linear modules' weights that MLPs have."""
        return sum(layer.mlp_weights for layer in self.layers) / max(1, self.linear_weights)

    @cached_property
    def experts(self) -> int:
        """Parameters of all experts."""
        return sum(layer.experts for layer in self.layers)

    @cached_property
    def multiplied(self) -> int:
        """Parameters that a token is multiplied with: linear modules, active experts, the output embedding."""
        return self.linear_weights + sum(layer.active for layer in self.layers) + self.vocabulary * self.hidden

    @cached_property
    def largest_weight(self) -> int:
        """Parameters of the largest linear module of a layer."""
        return max((module.weights for layer in self.layers for module in layer.linear), default=0)

    def modules(self) -> Iterator[tuple[int, int, str, Linear]]:
        """Each linear module: number of its layer, number in it, full name, module."""
        for index, layer in enumerate(self.layers):
            for position, module in enumerate(layer.linear):
                yield index, position, f"{self.prefix}.{index}.{module.name}", module

    def stacks(self) -> Iterator[tuple[int, int, str, Stack]]:
        """Each stack alike."""
        for index, layer in enumerate(self.layers):
            for position, stack in enumerate(layer.stacks):
                yield index, position, f"{self.prefix}.{index}.{stack.name}", stack
