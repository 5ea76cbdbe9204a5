"""Which linear modules get an adapter: the presets over module kinds, and names given by the user."""

import math
from collections.abc import Iterable, Mapping, Sequence

from torch import nn

from lora_trainer.contract.config import Layers, LoraConfig, Scaling
from lora_trainer.errors import ConfigError

_ATTENTION_PARENTS = ("attn", "attention")
_MLP_PARENTS = ("mlp", "feed_forward", "ffn", "feedforward", "moe")
_QUERY_VALUE_NAMES = ("q_proj", "v_proj", "query", "value", "query_key_value", "c_attn", "qkv_proj", "Wqkv")


def linear_modules(model: nn.Module, head: nn.Module | None) -> dict[str, tuple[int, int]]:
    """Full name to (inputs, outputs) of every linear module but the output embeddings.

    4-bit modules are subclasses of `nn.Linear`; GPT-2 and its kin use `Conv1D`, whose weight is transposed.
    """
    from transformers.pytorch_utils import Conv1D  # noqa: PLC0415 - Transformers takes seconds to import

    found: dict[str, tuple[int, int]] = {}
    for name, module in model.named_modules():
        if module is head:
            continue
        if isinstance(module, nn.Linear):
            found[name] = (module.in_features, module.out_features)
        elif isinstance(module, Conv1D):
            found[name] = (int(module.weight.shape[0]), int(module.weight.shape[1]))
    return found


def choose_targets(config: LoraConfig, linear: Mapping[str, tuple[int, int]]) -> tuple[str, ...]:
    """Full names of the modules to adapt. Raises `ConfigError`, listing the model's linear modules."""
    if config.target_modules:
        chosen = _named("lora.targetModules", config.target_modules, linear)
    else:
        chosen = {name for name in linear if _in_preset(name, config.layers or Layers.ALL_LINEAR)}
    excluded = _named("lora.excludeModules", config.exclude_modules, linear) if config.exclude_modules else set()
    left = [name for name in linear if name in chosen and name not in excluded]
    if not left:
        raise ConfigError(
            f"lora.{_field(config)} leaves no module to adapt: the model's linear modules are "
            f"{', '.join(kinds(linear))}"
        )
    return tuple(left)


def short_names(chosen: Sequence[str], linear: Iterable[str]) -> tuple[str, ...]:
    """The shortest endings of module names that select exactly `chosen`, as servers and people expect (`q_proj`).

    Where the same ending also belongs to a module that was not chosen, the parent's name goes along (`attn.c_proj`),
    and in the end the full name.
    """
    others = [name for name in linear if name not in set(chosen)]
    names: list[str] = []
    for full in chosen:
        parts = full.split(".")
        for size in range(1, len(parts) + 1):
            ending = ".".join(parts[-size:])
            if size == len(parts) or not any(matches(other, ending) for other in others):
                names.append(ending)
                break
    return tuple(dict.fromkeys(names))


def matches(full: str, ending: str) -> bool:
    """Whether a dotted name is `ending`, or ends with it as whole parts."""
    return full == ending or full.endswith("." + ending)


def by_ending(pattern: Mapping[str, int], name: str, default: int) -> int:
    """The value that `lora.rankPattern` or `lora.alphaPattern` gives a module: of the longest ending that fits."""
    fitting = [ending for ending in pattern if matches(name, ending)]
    return pattern[max(fitting, key=len)] if fitting else default


def rank_and_scale(config: LoraConfig, name: str) -> tuple[int, float]:
    """Rank r of a module's adapter and the factor on its product: alpha / r, or alpha / sqrt(r) (arXiv 2312.03732)."""
    rank = by_ending(config.rank_pattern, name, config.rank)
    alpha = by_ending(config.alpha_pattern, name, config.alpha)
    return rank, alpha / (math.sqrt(rank) if config.scaling is Scaling.RANK_STABILIZED else rank)


def kinds(linear: Iterable[str]) -> tuple[str, ...]:
    """The distinct last parts of module names, in the order of the model."""
    return tuple(dict.fromkeys(name.rsplit(".", 1)[-1] for name in linear))


def _field(config: LoraConfig) -> str:
    return (
        "targetModules" if config.target_modules else f"layers {config.layers.value if config.layers else ''}".strip()
    )


def _named(path: str, endings: Sequence[str], linear: Mapping[str, tuple[int, int]]) -> set[str]:
    chosen: set[str] = set()
    for ending in endings:
        matched = {name for name in linear if matches(name, ending)}
        if not matched:
            raise ConfigError(
                f'{path} is "{ending}": the model has no such linear module; it has {", ".join(kinds(linear))} '
                "(the output embeddings are never adapted)"
            )
        chosen |= matched
    return chosen


def _in_preset(name: str, layers: Layers) -> bool:
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
