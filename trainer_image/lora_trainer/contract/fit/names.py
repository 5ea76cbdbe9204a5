"""Names of modules: which of them a preset or an ending means."""

from collections.abc import Iterable, Mapping, Sequence

from lora_trainer.contract.config import Layers

MLPS = ("mlp", "feed_forward")
"""What a decoder layer calls its MLP in every family that is known, a mixture's experts included."""

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


def no_matrix(ending: str, having: Iterable[str]) -> str:
    """What is wrong with a name in `lora.targetParameters` that a model lacks, whose loose matrices end so."""
    return (
        f'lora.targetParameters names "{ending}": the model has no such matrix; outside of linear modules it has '
        f"{', '.join(sorted(having)) or 'none'}"
    )


def not_loose(ending: str, name: str) -> str:
    """What is wrong with one that means a matrix which is adapted otherwise, or none that PEFT adapts."""
    return (
        f'lora.targetParameters names "{ending}": {name} belongs to a linear module or to the embeddings; adapt it '
        "with lora.targetModules, or train embeddings with lora.modulesToSave"
    )


def of_no_adapter(field: str, ending: str, adapted: Iterable[str]) -> str:
    """What is wrong with a name in `lora.rankPattern` or `lora.alphaPattern` that fits none of the adapted modules."""
    having = ", ".join(kinds(adapted))
    return f'lora.{field} names "{ending[:60]}": no adapted module ends so; adapted are {having}'


def kinds(linear: Iterable[str]) -> tuple[str, ...]:
    """The distinct last parts of module names, in the order of the model."""
    return tuple(dict.fromkeys(name.rsplit(".", 1)[-1] for name in linear))


def short_names(chosen: Sequence[str], every: Iterable[str]) -> tuple[str, ...]:
    """The shortest endings of module names that select exactly `chosen` of `every` module, as servers and people expect
    (`q_proj`).

    Where the same ending also belongs to a module that was not chosen, the parent's name goes along (`attn.c_proj`),
    and in the end the full name.
    """
    taken = {ending for other in set(every).difference(chosen) for ending in _endings(other)}
    return tuple(dict.fromkeys(next((e for e in _endings(full) if e not in taken), full) for full in chosen))


def _endings(full: str) -> list[str]:
    """What `matches` a name, the shortest first."""
    parts = full.split(".")
    return [".".join(parts[-size:]) for size in range(1, len(parts) + 1)]
