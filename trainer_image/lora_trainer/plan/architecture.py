"""A base model as an estimate sees it: layers with linear modules, experts, norms, and what surrounds them; and the
reading of a `config.json`, whatever somebody put there.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from lora_trainer.spec.shown import shown

MOST_CHARACTERS = 2**20


class ArchitectureError(ValueError):
    """A configuration that no model can have; the text is a sentence with field, value, rule and remedy."""


class UncountedError(ArchitectureError):
    """A configuration that may be right and cannot be counted here: of a family that is not known, and not like
    Llama's, or without a number, for which Transformers may know another name."""


@dataclass(frozen=True, slots=True)
class Values:
    """One object of a configuration; `path` is its place in the file, `defaults` what an absent key means. Reads raise
    `ArchitectureError`."""

    document: Mapping[str, Any]
    path: str
    defaults: Mapping[str, Any] = field(default_factory=dict)

    def number(self, *keys: str, low: int = 1, high: int, default: int | None = None) -> int:
        """The whole number under the first of `keys` that is set: families name the same thing differently."""
        rule = f"must be a whole number from {low:,} to {high:,}"
        key, value = self.first(*keys)
        if value is None:
            if default is None:
                raise UncountedError(f"{self.path}.{key} is missing: {rule}; take the model's own config.json")
            return default
        if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
            raise self._error(key, value, rule)
        return value

    def fraction(self, key: str, *, default: float) -> float:
        """A number from 0 to 1."""
        _, value = self.first(key)
        if value is None:
            return default
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 1:
            raise self._error(key, value, "must be a number from 0 to 1")
        return float(value)

    def flag(self, key: str, *, default: bool) -> bool:
        """true or false."""
        _, value = self.first(key)
        if value is not None and not isinstance(value, bool):
            raise self._error(key, value, "must be true or false")
        return default if value is None else value

    def text(self, *keys: str, default: str) -> str:
        """A string, under the first of `keys` that is set."""
        key, value = self.first(*keys)
        if value is None:
            return default
        if not isinstance(value, str) or not 1 <= len(value) <= 100 or not value.isprintable():
            raise self._error(key, value, "must be a string of 1 to 100 printable characters")
        return value

    def numbers(self, key: str, *, high: int) -> tuple[int, ...]:
        """A list of whole numbers from 0 to `high`; empty where there is none."""
        value = self.document.get(key)
        if value is None:
            return ()
        whole = isinstance(value, list) and all(type(item) is int and 0 <= item <= high for item in value)
        if not whole:
            raise self._error(key, value, f"must be a list of whole numbers from 0 to {high:,}")
        return tuple(value)

    def is_set(self, key: str) -> bool:
        """Whether there is anything but null."""
        return self.first(key)[1] is not None

    def child(self, key: str) -> "Values | None":
        """The object under `key`, None where there is none."""
        value = self.document.get(key)
        if value is None:
            return None
        if not isinstance(value, Mapping):
            raise self._error(key, value, "must be an object")
        return Values(value, f"{self.path}.{key}")

    def first(self, *keys: str) -> tuple[str, Any]:
        """The first of `keys` that is set, and its value; None where none is, and no default for what is absent."""
        for of in (self.document, {} if any(key in self.document for key in keys) else self.defaults):
            for key in keys:
                if of.get(key) is not None:
                    return key, of[key]
        return keys[0], None

    def _error(self, key: str, value: object, rule: str) -> ArchitectureError:
        return ArchitectureError(f"{self.path}.{key} is {shown(value)}: {rule}; take the model's own config.json")


def read_json(text: str, name: str) -> Mapping[str, Any]:
    """The object that a JSON text holds; `name` is the file's. Raises `ArchitectureError`."""
    if len(text) > MOST_CHARACTERS:
        raise ArchitectureError(
            f"{name} has over {MOST_CHARACTERS:,} characters, more than a config.json has; name another"
        )
    remedy = "name the config.json of a Transformers model"
    try:
        document = json.loads(text)
    except RecursionError as error:
        raise ArchitectureError(f"{name} cannot be read: it is nested too deeply; {remedy}") from error
    except ValueError as error:
        raise ArchitectureError(f"{name} is not JSON ({str(error)[:100]}): must be an object; {remedy}") from error
    if not isinstance(document, dict):
        raise ArchitectureError(f"{name} is {shown(document)}: must be an object; {remedy}")
    return document


MLPS = ("mlp", "feed_forward")
"""What a decoder layer calls its MLP in every family that is known, a mixture's experts included."""

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
class ModelArchitecture:
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


@dataclass(frozen=True, slots=True, kw_only=True)
class Sizes:
    """Widths of a layer: hidden, heads, key and value heads, size of a head, MLP."""

    hidden: int
    heads: int
    kv_heads: int
    head: int
    mlp: int

    @property
    def query(self) -> int:
        """Width of all queries."""
        return self.heads * self.head

    @property
    def key_value(self) -> int:
        """Width of all keys, and of all values."""
        return self.kv_heads * self.head


def split_attention(
    sizes: Sizes, *, bias: bool, out_bias: bool, output: str = "o_proj", partial: bool = False
) -> tuple[Linear, ...]:
    """Queries, keys and values by a module each, as Llama. With `partial` only a part of each head is rotated: what is
    put together again lies otherwise in memory, and so does what attention gives, which is copied for the next."""
    inputs = {"query": sizes.query, "key": sizes.key_value, "value": sizes.key_value}
    modules = [
        Linear(name=f"self_attn.{kind[0]}_proj", inputs=sizes.hidden, outputs=size, reads="attention", bias=bias)
        for kind, size in inputs.items()
    ]
    return (*modules, _output(f"self_attn.{output}", sizes, bias=out_bias, partial=partial))


def fused_attention(sizes: Sizes, *, name: str, output: str, bias: bool, partial: bool = False) -> tuple[Linear, ...]:
    """Queries, keys and values by one module, as GPT-2, Falcon and Phi-3; `partial` as above."""
    outputs = sizes.query + 2 * sizes.key_value
    return (
        Linear(name=name, inputs=sizes.hidden, outputs=outputs, reads="attention", bias=bias),
        _output(output, sizes, bias=bias, partial=partial),
    )


def _output(name: str, sizes: Sizes, *, bias: bool, partial: bool) -> Linear:
    saved = not partial
    return Linear(name=name, inputs=sizes.query, outputs=sizes.hidden, reads=ATTENDED, saved=saved, bias=bias)


def gated_mlp(
    hidden: int, size: int, *, bias: bool = False, parent: str = "mlp", reserved: bool = False
) -> tuple[Linear, ...]:
    """Gate, up and down by a module each, as Llama."""
    return (
        *(
            Linear(name=f"{parent}.{kind}_proj", inputs=hidden, outputs=size, reads="mlp", bias=bias, reserved=reserved)
            for kind in ("gate", "up")
        ),
        Linear(
            name=f"{parent}.down_proj",
            inputs=size,
            outputs=hidden,
            reads=f"{parent} product",
            bias=bias,
            reserved=reserved,
        ),
    )


def plain_mlp(hidden: int, size: int, names: Sequence[str], *, bias: bool, reads: str = "mlp") -> tuple[Linear, ...]:
    """Two modules with an activation between them, as GPT-2. `reads` is attention's where both run side by side."""
    return (
        Linear(name=names[0], inputs=hidden, outputs=size, reads=reads, bias=bias),
        Linear(name=names[1], inputs=size, outputs=hidden, reads="mlp product", bias=bias),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Norms:
    """Those of a layer: how many over the hidden size, with biases as PyTorch's LayerNorm or without, and with `heads`
    one over each query's and each key's head."""

    count: int = 2
    bias: bool = False
    heads: bool = False


def layer(
    sizes: Sizes,
    linear: tuple[Linear, ...],
    *,
    mlp_values: int,
    norms: Norms = Norms(),
    wide_values: int = 0,
    dropped: int = 0,
    routed: int = 0,
    other: int = 0,
    experts: int = 0,
    active: int = 0,
    stacks: tuple[Stack, ...] = (),
    score_bytes: int = 0,
    fused: bool = False,
    own_attention: bool = False,
    own_dropout: bool = False,
    parallel: bool = False,
) -> Layer:
    """A layer of these modules and norms; `routed` are values in fp32 that a mixture's routing keeps for a token. For
    the rest see `Layer`."""
    heads = sizes.query + sizes.key_value if norms.heads else 0
    norm_parameters = norms.count * sizes.hidden * (2 if norms.bias else 1) + (2 * sizes.head if norms.heads else 0)
    # A mean and a scale, or a scale alone.
    scales = norms.count * (2 if norms.bias else 1) + (sizes.heads + sizes.kv_heads if norms.heads else 0)
    return Layer(
        linear=linear,
        hidden=sizes.hidden,
        query=sizes.query,
        key_value=sizes.key_value,
        heads=sizes.heads,
        mlp_values=mlp_values,
        wide_values=wide_values,
        normed=norms.count * sizes.hidden + heads,
        statistics=scales + routed,
        dropped=dropped,
        other=norm_parameters + other,
        experts=experts,
        active=active,
        stacks=stacks,
        score_bytes=score_bytes,
        fused=fused,
        layer_norm=norms.bias,
        own_attention=own_attention,
        own_dropout=own_dropout,
        parallel=parallel,
    )


def plain_activation(exact: str, size: int) -> tuple[int, int]:
    """Values that the activation between two modules of an MLP keeps, in the compute type and those that autocast makes
    fp32. GPT-2's first approximation of GELU is written out, with a power, which a GPU's autocast computes in fp32."""
    return (size, 3 * size) if exact == "gelu_new" else (size, 0)
