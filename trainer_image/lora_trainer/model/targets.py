"""Which linear modules get an adapter: the presets over module kinds, and names given by the user. Without PyTorch."""

import math
from collections.abc import Iterable, Mapping, Sequence

from lora_trainer.errors import ConfigError
from lora_trainer.plan.adapter import by_ending, in_preset, kinds, matches
from lora_trainer.spec.config import Layers, LoraConfig, Scaling


def inside(name: str, module: str) -> bool:
    """Whether a dotted name is `module` or something in it; everything is in the empty name."""
    return not module or name == module or name.startswith(module + ".")


def choose_targets(
    config: LoraConfig, linear: Mapping[str, tuple[int, int]], skipped: Iterable[str] = ()
) -> tuple[str, ...]:
    """Full names of the modules to adapt; those `skipped` anyway may be excluded, too. Raises `ConfigError`, listing
    the model's linear modules."""
    if config.target_modules:
        chosen = _named("lora.targetModules", config.target_modules, linear)
    else:
        chosen = {name for name in linear if in_preset(name, config.layers or Layers.ALL_LINEAR)}
    excluded = _named("lora.excludeModules", config.exclude_modules, linear, tuple(skipped))
    left = [name for name in linear if name in chosen and name not in excluded]
    if not left:
        raise ConfigError(
            f"lora.{_field(config)} leaves no module to adapt: the model's linear modules are "
            f"{', '.join(kinds(linear))}"
        )
    return tuple(left)


def rank_and_scale(config: LoraConfig, name: str) -> tuple[int, float]:
    """Rank r of a module's adapter and the factor on its product: alpha / r, or alpha / sqrt(r) (arXiv 2312.03732)."""
    rank = by_ending(config.rank_pattern, name, config.rank)
    alpha = by_ending(config.alpha_pattern, name, config.alpha)
    return rank, alpha / (math.sqrt(rank) if config.scaling is Scaling.RANK_STABILIZED else rank)


def _field(config: LoraConfig) -> str:
    return (
        "targetModules" if config.target_modules else f"layers {config.layers.value if config.layers else ''}".strip()
    )


def _named(
    path: str, endings: Sequence[str], linear: Mapping[str, tuple[int, int]], others: Sequence[str] = ()
) -> set[str]:
    chosen: set[str] = set()
    for ending in endings:
        matched = {name for name in linear if matches(name, ending)}
        if not matched and not any(matches(name, ending) for name in others):
            raise ConfigError(
                f'{path} is "{ending}": the model has no such linear module; it has {", ".join(kinds(linear))} '
                "(the output embeddings are never adapted)"
            )
        chosen |= matched
    return chosen
