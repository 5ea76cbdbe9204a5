"""Decoder layers by their sizes: attention and MLP as families write them."""

from collections.abc import Sequence
from dataclasses import dataclass

from lora_trainer.contract.fit.shape import ATTENDED, Layer, Linear, Stack


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
