"""From `config.json` to a shape: the families whose modules are known, and a guess that says so for the others."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from lora_trainer.contract.config import LARGEST_LAYER_INDEX
from lora_trainer.contract.fit.defaults import DEFAULTS
from lora_trainer.contract.fit.layers import (
    Norms,
    Sizes,
    fused_attention,
    gated_mlp,
    layer,
    plain_activation,
    plain_mlp,
    split_attention,
)
from lora_trainer.contract.fit.mixtures import MIXTURES
from lora_trainer.contract.fit.reading import ShapeError, UncountedError, Values, shown
from lora_trainer.contract.fit.shape import EXACT, EXPERTS_LEFT_OUT, GUESSED, MIXTURE, Layer, Shape
from lora_trainer.contract.fit.vision import tower

TEXT_ALONE = frozenset({"llama4"})
"""Kinds whose seeing class Transformers 5.24 cannot compute with: Llama 4's asks its language model for an output that
this has not. They are loaded without what sees, as people have to."""
_UNGROUPED = frozenset({"gpt2", "gpt_neox", "falcon"})
"""Kinds in whose configuration nobody reads num_key_value_heads."""
_DIVIDED = frozenset({"llama", *_UNGROUPED})
"""Kinds that Transformers 5.24 refuses where heads do not divide the hidden size: others round their width down."""
_WIDEST, _MOST_HEADS, _LARGEST_VOCABULARY = 2**20, 2**14, 2**25


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


def shape_of(document: Mapping[str, Any], path: str = "config.json") -> Shape:
    """The shape of the model that a `config.json` describes. Raises `ShapeError`; an unknown family is a guess."""
    values = Values(document, path)
    kind = values.text("model_type", default="")
    if not kind:
        raise ShapeError(
            f"{path}.model_type is missing: must name the family, as in llama; take the model's own config.json"
        )
    if values.flag("is_encoder_decoder", default=False):
        raise ShapeError(
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


def _with_tower(shape: Shape, values: Values, kind: str) -> Shape:
    found = tower(values, shape.hidden)
    if found is not None:
        return replace(shape, outside=shape.outside + found)
    if values.child("vision_config") is None and values.child("audio_config") is None:
        return shape
    doubt = f"what the kind {kind!r} sees or hears with is not counted: the weights take more than stated"
    return replace(shape, doubts=(*shape.doubts, doubt), spread=max(shape.spread, MIXTURE))


def _retied(shape: Shape, *, tied: bool) -> Shape:
    return replace(shape, head=(shape.head[0], 0 if tied else shape.embeddings[1]))


def _language_model(plain: Values, kind: str) -> Shape:
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


def _guess(values: Values, kind: str) -> Shape:
    """Like Llama; a mixture whose experts nobody counts where there is a number of them."""
    try:
        shape = _llama(values, kind, _Family())
    except ShapeError as error:
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
        raise ShapeError(
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
        raise ShapeError(
            f"{values.path}.{heads[0]} is {heads[1]}: must divide {hidden[0]} ({hidden[1]:,}) where head_dim is "
            f"absent; {rest}"
        )
    grouped = values.document.get("num_key_value_heads")
    if kind not in _UNGROUPED and type(grouped) is int and 0 < grouped < heads[1] and heads[1] % grouped:
        raise ShapeError(
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
) -> Shape:
    vocabulary = values.number("vocab_size", high=_LARGEST_VOCABULARY)
    hidden = layers[0].hidden
    matrix = vocabulary * hidden
    tied = values.flag("tie_word_embeddings", default=False)
    return Shape(
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


def _llama(values: Values, kind: str, family: _Family) -> Shape:
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


def _gpt2(values: Values, kind: str) -> Shape:
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


def _gpt_neox(values: Values, kind: str) -> Shape:
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


def _phi(values: Values, kind: str) -> Shape:
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


def _phi3(values: Values, kind: str) -> Shape:
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


def _starcoder2(values: Values, kind: str) -> Shape:
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


def _falcon(values: Values, kind: str) -> Shape:
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


def _mixture(values: Values, kind: str) -> Shape:
    mixture = MIXTURES[kind]
    sizes = _sizes(values)
    layers = mixture.layers(values, sizes, _layers(values))
    shape = _whole(values, layers, kind, norm=sizes.hidden, spread=MIXTURE)
    return replace(shape, doubts=("what a GPU's kernel for a mixture's experts needs to work with is not known",))


_OTHERS: Mapping[str, Callable[[Values, str], Shape]] = {
    "gpt2": _gpt2,
    "gpt_neox": _gpt_neox,
    "phi": _phi,
    "phi3": _phi3,
    "starcoder2": _starcoder2,
    "falcon": _falcon,
}
KNOWN_FAMILIES = tuple(sorted({*_LLAMAS, *_OTHERS, *MIXTURES}))
