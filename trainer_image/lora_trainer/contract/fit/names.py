"""Names of modules: which of them a preset or an ending means."""

from collections.abc import Mapping

from lora_trainer.contract.config import Layers

_ATTENTION_PARENTS = ("attn", "attention")
_MLP_PARENTS = ("mlp", "feed_forward", "ffn", "feedforward", "moe")
_QUERY_VALUE_NAMES = ("q_proj", "v_proj", "query", "value", "query_key_value", "c_attn", "qkv_proj", "Wqkv")


def matches(full: str, ending: str) -> bool:
    """Whether a dotted name is `ending`, or ends with it as whole parts."""
    return full == ending or full.endswith("." + ending)


def by_ending(pattern: Mapping[str, int], name: str, default: int) -> int:
    """The value that `lora.rankPattern` or `lora.alphaPattern` gives a module: of the longest ending that fits."""
    fitting = [ending for ending in pattern if matches(name, ending)]
    return pattern[max(fitting, key=len)] if fitting else default


def in_preset(name: str, layers: Layers) -> bool:
    """Whether a linear module, by its full name, belongs to a preset of `lora.layers`."""
    *parents, last = name.lower().split(".")
    attention = any(word in parent for parent in parents for word in _ATTENTION_PARENTS)
    mlp = not attention and any(word in parent for parent in parents for word in _MLP_PARENTS)
    if layers is Layers.ALL_LINEAR:
        return True
    if layers is Layers.ATTENTION:
        return attention
    if layers is Layers.MLP:
        return mlp
    return last in {kind.lower() for kind in _QUERY_VALUE_NAMES}
