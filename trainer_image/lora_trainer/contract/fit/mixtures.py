"""Mixtures of experts: stacked matrices beside the linear modules, of which a token passes some."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from lora_trainer.contract.fit.layers import Norms, Sizes, gated_mlp, layer, split_attention
from lora_trainer.contract.fit.reading import Values
from lora_trainer.contract.fit.shape import ATTENDED, Layer, Linear, Stack

_MOST_EXPERTS, _WIDEST = 2**14, 2**20


@dataclass(frozen=True, slots=True, kw_only=True)
class Mixture:
    """How a family builds its layers: a function of configuration, sizes and number of layers."""

    layers: Callable[[Values, Sizes, int], tuple[Layer, ...]]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Experts:
    """How many there are, how many a token passes, and the width of each."""

    count: int
    active: int
    size: int

    @classmethod
    def read(cls, values: Values, *keys: str, size: int) -> "_Experts":
        count = values.number(*keys, high=_MOST_EXPERTS)
        active = values.number("num_experts_per_tok", high=count)
        return cls(count=count, active=active, size=size)

    def weights(self, hidden: int) -> int:
        """Parameters of one: gate, up and down."""
        return 3 * hidden * self.size

    def values(self, hidden: int, *, widths: int = 3) -> int:
        """What autograd keeps for a token of each active expert: so many of its widths, and its output."""
        return self.active * (widths * self.size + hidden)

    def stacks(
        self, hidden: int, *, parent: str = "mlp", router: str = "gate", biases: bool = False
    ) -> tuple[Stack, ...]:
        """The router's matrix, gates and ups in one stack, downs in another."""
        name = f"{parent}.experts"
        sides = {"gate_up_proj": (hidden, 2 * self.size), "down_proj": (self.size, hidden)}
        return (
            Stack(name=f"{parent}.{router}.weight", inputs=hidden, outputs=self.count),
            *(
                Stack(name=f"{name}.{own}", inputs=inputs, outputs=outputs, matrices=self.count, passed=self.active)
                for own, (inputs, outputs) in sides.items()
            ),
            # PEFT takes the biases of all experts for one matrix, which multiplies nothing.
            *(
                Stack(name=f"{name}.{own}_bias", inputs=outputs, outputs=self.count, passed=0)
                for own, (_, outputs) in (sides.items() if biases else ())
            ),
        )

    @property
    def routed(self) -> int:
        """Values in fp32, or as many bytes, that routing keeps for a token: a softmax over all experts; of each active
        one its weight, its number and places in the order of experts in 64 bits."""
        return self.count + 9 * self.active


def _mixtral(values: Values, sizes: Sizes, layers: int) -> tuple[Layer, ...]:
    experts = _Experts.read(values, "num_local_experts", size=sizes.mlp)
    one = layer(
        sizes,
        split_attention(sizes, bias=False, out_bias=False),
        mlp_values=experts.values(sizes.hidden),
        routed=experts.routed,
        other=experts.count * sizes.hidden,
        experts=experts.count * experts.weights(sizes.hidden),
        active=experts.active * experts.weights(sizes.hidden),
        stacks=experts.stacks(sizes.hidden),
    )
    return (one,) * layers


def _qwen_moe(values: Values, sizes: Sizes, layers: int) -> tuple[Layer, ...]:
    """Qwen2's, with a shared expert whose output a gate scales, and Qwen3's. Some layers may be dense, of which PEFT
    0.21 reads the names in Qwen3's as its experts'."""
    second = values.text("model_type", default="") == "qwen2_moe"
    size = values.number("moe_intermediate_size", high=_WIDEST)
    experts = _Experts.read(values, "num_experts", "num_local_experts", size=size)
    shared = values.number("shared_expert_intermediate_size", high=_WIDEST) if second else 0
    bias = values.flag("qkv_bias", default=True) if second else values.flag("attention_bias", default=False)
    attention = split_attention(sizes, bias=bias, out_bias=not second and bias)
    gate = Linear(name="mlp.shared_expert_gate", inputs=sizes.hidden, outputs=1, reads="mlp")
    beside = gated_mlp(sizes.hidden, shared, parent="mlp.shared_expert") if shared else ()
    sparse = layer(
        sizes,
        (*attention, *beside, *((gate,) if shared else ())),
        mlp_values=experts.values(sizes.hidden) + (3 * shared + sizes.hidden if shared else 0),
        norms=Norms(heads=not second),
        routed=experts.routed,
        other=experts.count * sizes.hidden,
        experts=experts.count * experts.weights(sizes.hidden),
        active=experts.active * experts.weights(sizes.hidden),
        stacks=experts.stacks(sizes.hidden),
    )
    dense = layer(
        sizes,
        (*attention, *gated_mlp(sizes.hidden, sizes.mlp, reserved=not second)),
        mlp_values=3 * sizes.mlp,
        norms=Norms(heads=not second),
    )
    every = values.number("decoder_sparse_step", high=2**16, default=1)
    without = values.numbers("mlp_only_layers", high=2**16)
    return tuple(dense if index in without or (index + 1) % every else sparse for index in range(layers))


def _gpt_oss(values: Values, sizes: Sizes, layers: int) -> tuple[Layer, ...]:
    """Experts and router have biases, attention a learned sink for each head, so that its scores are written out."""
    experts = _Experts.read(values, "num_local_experts", "num_experts", size=sizes.mlp)
    biases = experts.count * (2 * sizes.mlp + sizes.hidden)
    one = layer(
        sizes,
        split_attention(sizes, bias=True, out_bias=True),
        # Gates and ups are bounded, both are kept, and so is what each bound and the sigmoid give.
        mlp_values=experts.values(sizes.hidden, widths=6),
        routed=experts.routed,
        other=experts.count * (sizes.hidden + 1) + biases + sizes.heads,
        experts=experts.count * experts.weights(sizes.hidden),
        active=experts.active * experts.weights(sizes.hidden),
        stacks=experts.stacks(sizes.hidden, router="router", biases=True),
        score_bytes=6,
    )
    return (one,) * layers


def _deepseek_v3(values: Values, sizes: Sizes, layers: int) -> tuple[Layer, ...]:
    """The first layers are dense, the others have shared experts beside the routed ones. PEFT 0.21 takes the names of
    both for experts'."""
    size = values.number("moe_intermediate_size", high=_WIDEST)
    experts = _Experts.read(values, "n_routed_experts", size=size)
    shared = size * values.number("n_shared_experts", high=_MOST_EXPERTS)
    dense = _latent(values, sizes, gated_mlp(sizes.hidden, sizes.mlp, reserved=True), mlp_values=3 * sizes.mlp)
    sparse = _latent(
        values,
        sizes,
        gated_mlp(sizes.hidden, shared, parent="mlp.shared_experts", reserved=True),
        mlp_values=experts.values(sizes.hidden) + 3 * shared,
        routed=experts.routed,
        other=experts.count * sizes.hidden,
        experts=experts.count * experts.weights(sizes.hidden),
        active=experts.active * experts.weights(sizes.hidden),
        stacks=experts.stacks(sizes.hidden),
    )
    first = values.number("first_k_dense_replace", low=0, high=2**16)
    return tuple(dense if index < first else sparse for index in range(layers))


def _latent(values: Values, sizes: Sizes, mlp: tuple[Linear, ...], *, other: int = 0, **counts: Any) -> Layer:
    """A layer whose keys and values, and mostly its queries, are made from fewer numbers with a norm of their own.
    Heads of queries and keys are wider than those of values: `head` is their mean."""
    hidden, heads = sizes.hidden, sizes.heads
    straight, rotated, value, narrow = (
        values.number(key, high=_WIDEST)
        for key in ("qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim", "kv_lora_rank")
    )
    low = values.number("q_lora_rank", high=_WIDEST, default=0)
    bias, head = values.flag("attention_bias", default=False), straight + rotated
    first = partial(Linear, inputs=hidden, reads="attention")
    queries = (
        (
            first(name="self_attn.q_a_proj", outputs=low, bias=bias),
            Linear(name="self_attn.q_b_proj", inputs=low, outputs=heads * head, reads="queries"),
        )
        if low
        else (first(name="self_attn.q_proj", outputs=heads * head),)
    )
    keys = (
        first(name="self_attn.kv_a_proj_with_mqa", outputs=narrow + rotated, bias=bias),
        Linear(name="self_attn.kv_b_proj", inputs=narrow, outputs=heads * (straight + value), reads="keys and values"),
    )
    output = Linear(
        name="self_attn.o_proj", inputs=heads * value, outputs=hidden, reads=ATTENDED, saved=True, bias=bias
    )
    of_heads = replace(sizes, kv_heads=heads, head=(head + value) // 2)
    one = layer(of_heads, (*queries, *keys, output, *mlp), other=other + low + narrow, **counts)
    # Values are a part of what also gave the keys, which are put together anew.
    key_value = one.key_value + heads * straight // 2
    normed, statistics = one.normed + low + narrow, one.statistics + 1 + bool(low)
    return replace(one, key_value=key_value, normed=normed, statistics=statistics, uneven=head != value)


def _llama4(values: Values, sizes: Sizes, layers: int) -> tuple[Layer, ...]:
    """Every so many layers have a shared expert beside the routed ones. Transformers computes each expert for each
    token, with an input that is scaled by 0 where it is not the token's: all are multiplied with and kept."""
    experts = _Experts.read(values, "num_local_experts", size=sizes.mlp)
    bias = values.flag("attention_bias", default=False)
    attention = split_attention(sizes, bias=bias, out_bias=bias)
    whole, all_pass = experts.count * experts.weights(sizes.hidden), replace(experts, active=experts.count)
    sparse = layer(
        sizes,
        (*attention, *gated_mlp(sizes.hidden, experts.size, parent="feed_forward.shared_expert")),
        mlp_values=all_pass.values(sizes.hidden) + 3 * experts.size,
        routed=experts.count,
        other=experts.count * sizes.hidden,
        experts=whole,
        active=whole,
        stacks=all_pass.stacks(sizes.hidden, parent="feed_forward", router="router"),
    )
    size = values.number("intermediate_size_mlp", high=_WIDEST)
    dense = layer(sizes, (*attention, *gated_mlp(sizes.hidden, size, parent="feed_forward")), mlp_values=3 * size)
    if values.flag("use_qk_norm", default=True):
        # Lengths of queries and keys are made 1 by norms without parameters.
        heads, normed = sizes.heads + sizes.kv_heads, sizes.query + sizes.key_value
        sparse, dense = (
            replace(one, normed=one.normed + normed, statistics=one.statistics + heads) for one in (sparse, dense)
        )
    every = values.number("interleave_moe_layer_step", high=2**16, default=1)
    named = values.numbers("moe_layers", high=2**16)
    chosen = named if values.is_set("moe_layers") else range(every - 1, layers, every)
    return tuple(sparse if index in chosen else dense for index in range(layers))


MIXTURES: Mapping[str, Mixture] = {
    "mixtral": Mixture(layers=_mixtral),
    "qwen2_moe": Mixture(layers=_qwen_moe),
    "qwen3_moe": Mixture(layers=_qwen_moe),
    "gpt_oss": Mixture(layers=_gpt_oss),
    "deepseek_v3": Mixture(layers=_deepseek_v3),
    "llama4_text": Mixture(layers=_llama4),
}
