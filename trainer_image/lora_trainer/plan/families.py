"""From `config.json` to a shape: the families whose modules are known, and a guess that says so for the others.

All that is known of a family by its name is here: its layers, what the configuration classes of Transformers 5.24 take
for what a file does not have, mixtures of experts, vision towers, tables of positions, and what reads weights or stacks
them.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from types import MappingProxyType
from typing import Any

from lora_trainer.plan.architecture import (
    ATTENDED,
    EXACT,
    EXPERTS_LEFT_OUT,
    GUESSED,
    MIXTURE,
    ArchitectureError,
    Layer,
    Linear,
    ModelArchitecture,
    Norms,
    Sizes,
    Stack,
    UncountedError,
    Values,
    fused_attention,
    gated_mlp,
    layer,
    plain_activation,
    plain_mlp,
    split_attention,
)
from lora_trainer.spec.config import LARGEST_LAYER_INDEX
from lora_trainer.spec.shown import shown


def _defaults(*, hidden: int, mlp: int, layers: int, heads: int, vocabulary: int, **others: Any) -> Mapping[str, Any]:
    return MappingProxyType(
        {
            "hidden_size": hidden,
            "intermediate_size": mlp,
            "num_hidden_layers": layers,
            "num_attention_heads": heads,
            "vocab_size": vocabulary,
            **others,
        }
    )


_MISTRAL = _defaults(hidden=4096, mlp=14336, layers=32, heads=32, vocabulary=32000, num_key_value_heads=8)
_GEMMA_2: Mapping[str, Any] = {"num_key_value_heads": 4, "head_dim": 256, "tie_word_embeddings": True}
DEFAULTS: Mapping[str, Mapping[str, Any]] = {
    "llama": _defaults(hidden=4096, mlp=11008, layers=32, heads=32, vocabulary=32000),
    "mistral": _MISTRAL,
    "ministral": _MISTRAL,
    "smollm3": {"num_key_value_heads": 4, "tie_word_embeddings": True},
    "qwen2": _defaults(hidden=4096, mlp=22016, layers=32, heads=32, vocabulary=151936, num_key_value_heads=32),
    "qwen3": {"num_key_value_heads": 32, "head_dim": 128},
    "gemma": _defaults(
        hidden=3072,
        mlp=24576,
        layers=28,
        heads=16,
        vocabulary=256000,
        num_key_value_heads=16,
        head_dim=256,
        tie_word_embeddings=True,
    ),
    "gemma2": _defaults(
        hidden=2304,
        mlp=9216,
        layers=26,
        heads=8,
        vocabulary=256000,
        final_logit_softcapping=30.0,
        attn_logit_softcapping=50.0,
        **_GEMMA_2,
    ),
    "gemma3_text": _defaults(hidden=2304, mlp=9216, layers=26, heads=8, vocabulary=262208, **_GEMMA_2),
    "gpt2": {"tie_word_embeddings": True},
    "starcoder2": {"num_key_value_heads": 2, "tie_word_embeddings": True},
    "falcon": {"tie_word_embeddings": True},
    "mixtral": {"num_key_value_heads": 8},
    "qwen2_moe": {"num_key_value_heads": 16},
    "qwen3_moe": {"num_key_value_heads": 4},
    "gpt_oss": {"num_key_value_heads": 8, "head_dim": 64},
    "deepseek_v3": {"q_lora_rank": 1536},
    "llama4_text": {"num_key_value_heads": 8, "head_dim": 128},
}
"""Kind of a known language model to what its class takes for keys that files leave out: of a family that models with a
vision tower are made of, whose files hold little of it, all sizes; of others what nothing else tells."""


_MOST_EXPERTS, _WIDEST = 2**14, 2**20


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


MIXTURES: Mapping[str, Callable[[Values, Sizes, int], tuple[Layer, ...]]] = {
    "mixtral": _mixtral,
    "qwen2_moe": _qwen_moe,
    "qwen3_moe": _qwen_moe,
    "gpt_oss": _gpt_oss,
    "deepseek_v3": _deepseek_v3,
    "llama4_text": _llama4,
}


def tower(values: Values, hidden: int) -> int | None:
    """Parameters of the tower and of what leads from it to the language model, whose width is `hidden`; None where
    they are not known. Raises `ArchitectureError`."""
    vision = values.child("vision_config")
    if vision is None or values.text("model_type", default="") != "gemma3":
        return None
    # SigLIP (arXiv 2303.15343), then Gemma 3's norm and projection.
    width = vision.number("hidden_size", high=_WIDEST, default=768)
    mlp = vision.number("intermediate_size", high=_WIDEST, default=3072)
    layers = vision.number("num_hidden_layers", high=1024, default=12)
    patch = vision.number("patch_size", high=1024, default=16)
    image = vision.number("image_size", high=2**16, default=224)
    channels = vision.number("num_channels", high=64, default=3)
    one = 4 * (width + 1) * width + (width + 1) * mlp + (mlp + 1) * width + 4 * width
    embeddings = (channels * patch**2 + 1) * width + (image // patch) ** 2 * width
    # Pools by the attention of one learned query: a layer with one norm less.
    head = one - 2 * width + width if vision.flag("vision_use_head", default=True) else 0
    return embeddings + layers * one + head + 2 * width + width + width * hidden


TEXT_ALONE = frozenset({"llama4"})
"""Kinds whose seeing class Transformers 5.24 cannot compute with: Llama 4's asks its language model for an output that
this has not. They are loaded without what sees, as people have to."""
_UNGROUPED = frozenset({"gpt2", "gpt_neox", "falcon"})
"""Kinds in whose configuration nobody reads num_key_value_heads."""
_DIVIDED = frozenset({"llama", *_UNGROUPED})
"""Kinds that Transformers 5.24 refuses where heads do not divide the hidden size: others round their width down."""
_MOST_HEADS, _LARGEST_VOCABULARY = 2**14, 2**25


READS_WEIGHTS = frozenset({"mamba", "falcon_mamba", "gemma3n_text"})
"""Kinds of models that compute with weights, or clamp them, which bitsandbytes would have packed."""
STATE_SPACE = frozenset({"falcon_h1", "mamba", "mamba2", "falcon_mamba", "nemotron_h"})
"""Kinds of which PEFT 0.21 refuses the modules whose weights a kernel reads by itself."""
CONVERTED = frozenset({"hrm_text", "lara_mini", "minimax_m3_vl", "molmo2", "sarvam_moe"})
"""Of the kinds that Transformers 5.24 loads as a language model those whose files have linear modules stacked."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Family:
    """What the configurations of a family do not say."""

    bias: bool = False
    norms: int = 2
    head_norms: bool = False
    capped: bool = False


_LLAMAS: Mapping[str, _Family] = {
    "llama": _Family(),
    "mistral": _Family(),
    "ministral": _Family(),
    "smollm3": _Family(),
    "granite": _Family(capped=True),
    "qwen2": _Family(bias=True),
    "qwen3": _Family(head_norms=True),
    "gemma": _Family(),
    "gemma2": _Family(norms=4),
    "gemma3_text": _Family(norms=4, head_norms=True),
}
"""Families whose layers are Llama's but for this."""

_EXPERTS = ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts")
"""What configurations call the number of a mixture's experts."""
_LIKE_LLAMA = (
    "its kind {kind!r} is not known here: layers like Llama's are assumed, so sizes and names of modules are a guess"
)


def architecture_of(document: Mapping[str, Any], path: str = "config.json") -> ModelArchitecture:
    """The shape of the model that a `config.json` describes. Raises `ArchitectureError`; an unknown family is a
    guess."""
    values = Values(document, path)
    kind = values.text("model_type", default="")
    if not kind:
        raise ArchitectureError(
            f"{path}.model_type is missing: must name the family, as in llama; take the model's own config.json"
        )
    if values.flag("is_encoder_decoder", default=False):
        raise ArchitectureError(
            f"{path}.is_encoder_decoder is true: must be false, as in a causal language model, which writes text from "
            "left to right; name one that is, such as Llama, Qwen or Mistral"
        )
    text = values.child("text_config")
    if text is None:
        return _language_model(values, kind)
    inner = text.text("model_type", default=kind)
    shape = _language_model(text, inner)
    if values.is_set("tie_word_embeddings") and not text.is_set("tie_word_embeddings"):
        shape = _retied(shape, tied=values.flag("tie_word_embeddings", default=True))
    if kind in TEXT_ALONE:
        return replace(shape, family=kind)
    shape = replace(shape, prefix="model.language_model.layers", family=kind)
    return _with_tower(shape, values, kind)


def _with_tower(shape: ModelArchitecture, values: Values, kind: str) -> ModelArchitecture:
    found = tower(values, shape.hidden)
    if found is not None:
        return replace(shape, outside=shape.outside + found)
    if values.child("vision_config") is None and values.child("audio_config") is None:
        return shape
    doubt = f"what the kind {kind!r} sees or hears with is not counted: the weights take more than stated"
    return replace(shape, doubts=(*shape.doubts, doubt), spread=max(shape.spread, MIXTURE))


def _retied(shape: ModelArchitecture, *, tied: bool) -> ModelArchitecture:
    return replace(shape, head=(shape.head[0], 0 if tied else shape.embeddings[1]))


def _language_model(plain: Values, kind: str) -> ModelArchitecture:
    values = replace(plain, defaults=DEFAULTS.get(kind, {}))
    if kind in KNOWN_FAMILIES:
        _check_heads(values, kind)
    if kind in _LLAMAS:
        return _llama(values, kind, _LLAMAS[kind])
    if kind in _OTHERS:
        return _OTHERS[kind](values, kind)
    if kind in MIXTURES:
        return _mixture(values, kind)
    return _guess(values, kind)


def _guess(values: Values, kind: str) -> ModelArchitecture:
    """Like Llama; a mixture whose experts nobody counts where there is a number of them."""
    try:
        shape = _llama(values, kind, _Family())
    except ArchitectureError as error:
        raise UncountedError(
            f"{values.path}.model_type is {shown(kind)}: must be a family that is known here or like Llama, and "
            f"{str(error).partition(';')[0]}; run it without a plan, or name another model"
        ) from error
    mixed = any(_is_several(values.document.get(key)) for key in _EXPERTS)
    doubts = (_LIKE_LLAMA.format(kind=kind), *([EXPERTS_LEFT_OUT] if mixed else []))
    return replace(shape, doubts=doubts, spread=GUESSED, mixed=mixed, understated=mixed)


def _is_several(number: object) -> bool:
    """Whether a number, or a list of one for each layer, says that there are several."""
    return (isinstance(number, list) and bool(number)) or (type(number) is int and number > 1)


def _sizes(values: Values, *, mlp_default: int = 0) -> Sizes:
    hidden = values.number("hidden_size", "n_embd", "n_embed", "d_model", high=_WIDEST)
    heads = values.number("num_attention_heads", "n_head", "n_heads", high=_MOST_HEADS)
    kv_heads = values.number("num_key_value_heads", high=heads, default=heads)
    default = hidden // heads
    if default < 1:
        raise ArchitectureError(
            f"{values.path}.num_attention_heads is {heads}: must be at most hidden_size ({hidden}); take the model's "
            "own config.json"
        )
    mlp = values.number("intermediate_size", "ffn_hidden_size", "n_inner", high=_WIDEST, default=mlp_default or None)
    head = values.number("head_dim", high=_WIDEST, default=default)
    return Sizes(hidden=hidden, heads=heads, kv_heads=kv_heads, head=head, mlp=mlp)


def _check_heads(values: Values, kind: str) -> None:
    """Refuse heads with which no model of a known kind computes; other kinds than those named take any width."""
    hidden, heads = values.first("hidden_size", "n_embd", "n_embed"), values.first("num_attention_heads", "n_head")
    if not all(type(number) is int and number > 0 for _, number in (hidden, heads)):
        return  # said where it is read
    rest = "take the model's own config.json"
    divided = kind in _DIVIDED and heads[1] <= hidden[1] and not values.is_set("head_dim")
    if divided and hidden[1] % heads[1]:
        raise ArchitectureError(
            f"{values.path}.{heads[0]} is {heads[1]}: must divide {hidden[0]} ({hidden[1]:,}) where head_dim is "
            f"absent; {rest}"
        )
    grouped = values.document.get("num_key_value_heads")
    if kind not in _UNGROUPED and type(grouped) is int and 0 < grouped < heads[1] and heads[1] % grouped:
        raise ArchitectureError(
            f"{values.path}.num_key_value_heads is {grouped}: must divide {heads[0]} ({heads[1]}), whose heads share "
            f"keys and values; {rest}"
        )


def _own_heads(sizes: Sizes) -> Sizes:
    """Of a kind without grouped heads, in whose configuration Transformers reads no numbers for them."""
    return replace(sizes, kv_heads=sizes.heads, head=sizes.hidden // sizes.heads)


def _layers(values: Values) -> int:
    return values.number("num_hidden_layers", "n_layer", "n_layers", high=LARGEST_LAYER_INDEX + 1)


def _whole(
    values: Values,
    layers: tuple[Layer, ...],
    kind: str,
    *,
    names: tuple[str, str] = ("model.embed_tokens", "lm_head"),
    prefix: str = "model.layers",
    norm: int,
    outside: int = 0,
    capped: bool = False,
    spread: float = EXACT,
) -> ModelArchitecture:
    vocabulary = values.number("vocab_size", high=_LARGEST_VOCABULARY)
    hidden = layers[0].hidden
    matrix = vocabulary * hidden
    tied = values.flag("tie_word_embeddings", default=False)
    return ModelArchitecture(
        family=kind,
        layers=layers,
        prefix=prefix,
        hidden=hidden,
        vocabulary=vocabulary,
        embeddings=(names[0], matrix),
        head=(names[1], 0 if tied else matrix),
        outside=norm + outside,
        capped=capped or values.is_set("final_logit_softcapping"),
        soft_cap=values.is_set("final_logit_softcapping"),
        spread=spread,
    )


def _llama(values: Values, kind: str, family: _Family) -> ModelArchitecture:
    sizes = _sizes(values)
    attention = values.flag("attention_bias", default=False)
    bias = values.flag("mlp_bias", default=False)
    one = layer(
        sizes,
        (
            *split_attention(sizes, bias=family.bias or attention, out_bias=attention),
            *gated_mlp(sizes.hidden, sizes.mlp, bias=bias),
        ),
        mlp_values=3 * sizes.mlp,
        norms=Norms(count=family.norms, heads=family.head_norms),
        # The softmax in fp32 and rounded, and what caps them.
        score_bytes=8 if values.is_set("attn_logit_softcapping") else 0,
    )
    layers = (one,) * _layers(values)
    return _whole(values, layers, kind, norm=sizes.hidden, capped=family.capped)


def _gpt2(values: Values, kind: str) -> ModelArchitecture:
    """Conv1D everywhere, and dropout by default."""
    hidden = values.number("n_embd", "hidden_size", high=_WIDEST)
    sizes = _own_heads(_sizes(values, mlp_default=4 * hidden))
    sizes = replace(sizes, mlp=values.number("n_inner", high=_WIDEST, default=4 * hidden))
    positions = values.number("n_positions", "max_position_embeddings", high=_LARGEST_VOCABULARY, default=1024)
    mlp_values, wide = plain_activation(values.text("activation_function", default="gelu_new"), sizes.mlp)
    residual, attention = (values.fraction(f"{name}_pdrop", default=0.1) for name in ("resid", "attn"))
    one = layer(
        sizes,
        (
            *fused_attention(sizes, name="attn.c_attn", output="attn.c_proj", bias=True),
            *plain_mlp(hidden, sizes.mlp, ("mlp.c_fc", "mlp.c_proj"), bias=True),
        ),
        mlp_values=mlp_values,
        wide_values=wide,
        norms=Norms(bias=True),
        dropped=2 * hidden if residual else 0,
        own_dropout=attention > 0,
    )
    return _whole(
        values,
        (one,) * _layers(values),
        kind,
        names=("transformer.wte", "lm_head"),
        prefix="transformer.h",
        norm=2 * hidden,
        outside=positions * hidden,
    )


def _gpt_neox(values: Values, kind: str) -> ModelArchitecture:
    sizes = _own_heads(_sizes(values))
    names = ("mlp.dense_h_to_4h", "mlp.dense_4h_to_h")
    one = layer(
        sizes,
        (
            *fused_attention(
                sizes, name="attention.query_key_value", output="attention.dense", bias=True, partial=True
            ),
            *plain_mlp(sizes.hidden, sizes.mlp, names, bias=True),
        ),
        mlp_values=sizes.mlp,
        norms=Norms(bias=True),
        fused=True,
        parallel=values.flag("use_parallel_residual", default=True),
    )
    layers = (one,) * _layers(values)
    names = ("gpt_neox.embed_in", "lm_head")
    return _whole(values, layers, kind, names=names, prefix="gpt_neox.layers", norm=2 * sizes.hidden)


def _phi(values: Values, kind: str) -> ModelArchitecture:
    """Attention and MLP side by side behind one norm; the output embedding has a bias."""
    sizes = _sizes(values)
    vocabulary = values.number("vocab_size", high=_LARGEST_VOCABULARY)
    mlp_values, wide = plain_activation(values.text("hidden_act", default="gelu_new"), sizes.mlp)
    one = layer(
        sizes,
        (
            *split_attention(sizes, bias=True, out_bias=True, output="dense", partial=True),
            *plain_mlp(sizes.hidden, sizes.mlp, ("mlp.fc1", "mlp.fc2"), bias=True, reads="attention"),
        ),
        mlp_values=mlp_values,
        wide_values=wide,
        norms=Norms(count=1, bias=True),
        parallel=True,
    )
    layers = (one,) * _layers(values)
    shape = _whole(values, layers, kind, norm=2 * sizes.hidden)
    name, matrix = shape.head
    if not matrix:
        return replace(shape, outside=shape.outside + vocabulary)
    return replace(shape, head=(name, matrix + vocabulary))


def _phi3(values: Values, kind: str) -> ModelArchitecture:
    sizes = _sizes(values)
    gate_up = plain_mlp(sizes.hidden, 2 * sizes.mlp, ("mlp.gate_up_proj", "mlp.down_proj"), bias=False)
    one = layer(
        sizes,
        (
            *fused_attention(sizes, name="self_attn.qkv_proj", output="self_attn.o_proj", bias=False, partial=True),
            gate_up[0],
            replace(gate_up[1], inputs=sizes.mlp),
        ),
        mlp_values=3 * sizes.mlp,
        fused=True,
    )
    return _whole(values, (one,) * _layers(values), kind, norm=sizes.hidden)


def _starcoder2(values: Values, kind: str) -> ModelArchitecture:
    sizes = _sizes(values)
    bias = values.flag("use_bias", default=True)
    one = layer(
        sizes,
        (
            *split_attention(sizes, bias=bias, out_bias=bias),
            *plain_mlp(sizes.hidden, sizes.mlp, ("mlp.c_fc", "mlp.c_proj"), bias=bias),
        ),
        mlp_values=sizes.mlp,
        norms=Norms(bias=True),
    )
    return _whole(values, (one,) * _layers(values), kind, norm=2 * sizes.hidden)


def _falcon(values: Values, kind: str) -> ModelArchitecture:
    hidden = values.number("hidden_size", "n_embed", high=_WIDEST)
    sizes = _sizes(values, mlp_default=4 * hidden)
    new = values.flag("new_decoder_architecture", default=False)
    multi_query = values.flag("multi_query", default=True)
    kv_heads = values.number("num_kv_heads", high=sizes.heads, default=sizes.heads) if new else sizes.heads
    sizes = replace(sizes, kv_heads=1 if multi_query and not new else kv_heads)
    parallel = values.flag("parallel_attn", default=True)
    bias = values.flag("bias", default=False)
    norms = values.number("num_ln_in_parallel_attn", high=2, default=2) if new else 1 if parallel else 2
    names = ("mlp.dense_h_to_4h", "mlp.dense_4h_to_h")
    one = layer(
        sizes,
        (
            *fused_attention(sizes, name="self_attention.query_key_value", output="self_attention.dense", bias=bias),
            *plain_mlp(hidden, sizes.mlp, names, bias=bias, reads="attention" if parallel and not new else "mlp"),
        ),
        mlp_values=sizes.mlp,
        norms=Norms(count=norms, bias=True),
        own_attention=True,
        parallel=new or parallel,
    )
    # Keys and values of the new architecture are repeated for each head, those of one head for all are not.
    one = replace(one, key_value=sizes.query) if new else one
    return _whole(
        values,
        (one,) * _layers(values),
        kind,
        names=("transformer.word_embeddings", "lm_head"),
        prefix="transformer.h",
        norm=2 * hidden,
    )


def _mixture(values: Values, kind: str) -> ModelArchitecture:
    sizes = _sizes(values)
    layers = MIXTURES[kind](values, sizes, _layers(values))
    shape = _whole(values, layers, kind, norm=sizes.hidden, spread=MIXTURE)
    return replace(shape, doubts=("what a GPU's kernel for a mixture's experts needs to work with is not known",))


_OTHERS: Mapping[str, Callable[[Values, str], ModelArchitecture]] = {
    "gpt2": _gpt2,
    "gpt_neox": _gpt_neox,
    "phi": _phi,
    "phi3": _phi3,
    "starcoder2": _starcoder2,
    "falcon": _falcon,
}
KNOWN_FAMILIES = tuple(sorted({*_LLAMAS, *_OTHERS, *MIXTURES}))


_MOST_DIFFERENCE = 0.001
"""Relative, between the parameters that are counted and those that files hold: buffers are stored, too, at times."""
_WIDTH_A_SHARE = 3
"""By how much an estimate may be off for a share of the parameters that nothing explains: they count with 2 bytes, and
where quantization reaches them they have 0.516, so that the weights are up to 2.9 times their share too large."""


def described(document: Mapping[str, Any], name: str) -> ModelArchitecture:
    """The shape by a `config.json`, whose file is called `name`. Raises `ArchitectureError`."""
    if document.get("quantization_config"):
        raise ArchitectureError(
            f"{name}.quantization_config is set: must be absent, since weights that are already quantized are not "
            "trained; name a copy whose weights are in 16 bits"
        )
    return architecture_of(document, name)


def counted(shape: ModelArchitecture, stored: int) -> ModelArchitecture:
    """With as many parameters as files of weights hold: they know towers and unknown families. 0 is no file. What the
    configuration does not explain widens the estimate; an output embedding that is stored though it is tied is none."""
    if stored and shape.understated:
        doubts = tuple(doubt for doubt in shape.doubts if doubt != EXPERTS_LEFT_OUT)
        shape = replace(shape, doubts=doubts, understated=False)
    difference = stored - shape.parameters
    twice = shape.embeddings[1] if shape.head[1] == 0 else 0
    if not stored or min(abs(difference), abs(difference - twice)) <= _MOST_DIFFERENCE * stored:
        return shape
    doubt = f"the files hold {stored:,} parameters, of which config.json explains {shape.parameters:,}"
    wider = shape.spread + _WIDTH_A_SHARE * abs(difference) / stored
    return replace(
        shape,
        outside=max(0, shape.outside + difference),
        unexplained=abs(difference),
        doubts=(*shape.doubts, doubt),
        spread=max(shape.spread, min(GUESSED, wider)),
    )


_POSITIONS, _EMBEDDINGS = ("n_positions", "max_position_embeddings"), ("max_position_embeddings",)
_PADDED = frozenset(
    {"camembert", "data2vec-text", "roberta", "roberta-prelayernorm", "xlm-roberta", "xlm-roberta-xl", "xmod"}
)
"""Kinds whose rows begin behind the position of the padding token, by default 1."""
TABLES: Mapping[str, tuple[tuple[str, ...], int]] = MappingProxyType(
    {
        "bert": (_EMBEDDINGS, 512),
        "bert-generation": (_EMBEDDINGS, 512),
        "big_bird": (_EMBEDDINGS, 4096),
        "biogpt": (_EMBEDDINGS, 1024),
        "codegen": (_POSITIONS, 2048),
        "ctrl": (_POSITIONS, 256),
        "electra": (_EMBEDDINGS, 512),
        "ernie": (_EMBEDDINGS, 512),
        "git": (_EMBEDDINGS, 1024),
        "gpt-sw3": (_POSITIONS, 1024),
        "gpt2": (_POSITIONS, 1024),
        "gpt_bigcode": (_POSITIONS, 1024),
        "gpt_neo": (_EMBEDDINGS, 2048),
        "gptj": (_POSITIONS, 2048),
        "megatron-bert": (_EMBEDDINGS, 512),
        "mpt": (("max_seq_len",), 2048),
        "openai-gpt": (_POSITIONS, 512),
        "opt": (_EMBEDDINGS, 2048),
        "rembert": (_EMBEDDINGS, 512),
        "roc_bert": (_EMBEDDINGS, 512),
        "roformer": (_EMBEDDINGS, 1536),
        "trocr": (_EMBEDDINGS, 512),
        "xlm": (_EMBEDDINGS, 512),
        **dict.fromkeys(_PADDED, (_EMBEDDINGS, 512)),
        "xlm-roberta-xl": (_EMBEDDINGS, 514),
    }
)
"""Kinds of Transformers 5.24 that end with an error beyond their table, learned or not, by what their configurations
call its size and take for it where it is absent. OPT's and BioGPT's have two rows more, which no token takes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Positions:
    """A model of this `kind` takes rows of at most `most` tokens."""

    kind: str
    most: int

    def objection(self, max_length: int, longest: int) -> str:
        """Why rows of which the `longest` has so many tokens, as they are cut at `max_length`, cannot be computed: a
        sentence, empty where they can."""
        if min(max_length, longest) <= self.most:
            return ""
        return (
            f"training.maxSequenceLength is {max_length}: {self.kind} has positions for {self.most} tokens, and the "
            f"longest row has {longest}; set it to {self.most} or less, at which longer rows are cut, or name a model "
            "with more positions"
        )

    def warning(self, max_length: int) -> str:
        """What may become of rows of which only that they are cut at `max_length` is known; empty for nothing."""
        if max_length <= self.most:
            return ""
        return (
            f"training.maxSequenceLength is {max_length}: {self.kind} has positions for {self.most} tokens, and a run "
            f"with a longer row is refused; set it to {self.most} or less, at which longer rows are cut"
        )


def positions_of(document: Mapping[str, Any]) -> Positions | None:
    """By a `config.json`; None for a kind without such a table, and for a number that no model has."""
    inner = document.get("text_config")
    values = inner if isinstance(inner, Mapping) else document
    kind = values.get("model_type") or document.get("model_type")
    if not isinstance(kind, str) or kind not in TABLES:
        return None
    keys, default = TABLES[kind]
    size = next((values[key] for key in keys if values.get(key) is not None), default)
    before = values.get("pad_token_id", 1) if kind in _PADDED else -1
    if type(size) is not int or type(before) is not int or size - before - 1 < 1:
        return None
    return Positions(kind=kind, most=size - before - 1)
