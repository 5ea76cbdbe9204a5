"""Decoder layers by their sizes: attention and MLP as families write them."""

from collections.abc import Sequence
from dataclasses import dataclass

from lora_trainer.contract.fit.shape import Layer, Linear


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


def split_attention(sizes: Sizes, *, bias: bool, out_bias: bool, output: str = "o_proj") -> tuple[Linear, ...]:
    """Queries, keys and values by a module each, as Llama."""
    inputs = {"query": sizes.query, "key": sizes.key_value, "value": sizes.key_value}
    modules = [
        Linear(name=f"self_attn.{kind[0]}_proj", inputs=sizes.hidden, outputs=size, reads="attention", bias=bias)
        for kind, size in inputs.items()
    ]
    return (*modules, _output(f"self_attn.{output}", sizes, bias=out_bias))


def fused_attention(sizes: Sizes, *, name: str, output: str, bias: bool) -> tuple[Linear, ...]:
    """Queries, keys and values by one module, as GPT-2, Falcon and Phi-3."""
    outputs = sizes.query + 2 * sizes.key_value
    return (
        Linear(name=name, inputs=sizes.hidden, outputs=outputs, reads="attention", bias=bias),
        _output(output, sizes, bias=bias),
    )


def _output(name: str, sizes: Sizes, *, bias: bool) -> Linear:
    return Linear(name=name, inputs=sizes.query, outputs=sizes.hidden, reads="attended", saved=True, bias=bias)


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


def layer(
    sizes: Sizes,
    linear: tuple[Linear, ...],
    *,
    mlp_values: int,
    norms: int = 2,
    norm_bias: bool = False,
    head_norms: bool = False,
    other: int = 0,
    experts: int = 0,
    active: int = 0,
    scores: bool = False,
) -> Layer:
    """A layer with `norms` over the hidden size and, with `head_norms`, one over each query's and each key's head."""
    heads = sizes.query + sizes.key_value if head_norms else 0
    norm_parameters = norms * sizes.hidden * (2 if norm_bias else 1) + (2 * sizes.head if head_norms else 0)
    return Layer(
        linear=linear,
        hidden=sizes.hidden,
        query=sizes.query,
        key_value=sizes.key_value,
        heads=sizes.heads,
        mlp_values=mlp_values,
        normed=norms * sizes.hidden + heads,
        statistics=norms + (sizes.heads + sizes.kv_heads if head_norms else 0),
        other=norm_parameters + other,
        experts=experts,
        active=active,
        scores=scores,
    )
