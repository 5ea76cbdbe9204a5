"""Which linear modules get an adapter: the presets over module kinds, and names given by the user."""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from lora_trainer.contract.config import Layers, LoraConfig, Scaling
from lora_trainer.contract.fit.names import by_ending, in_preset, matches
from lora_trainer.errors import ConfigError
from lora_trainer.model.classes import is_seeing
from lora_trainer.model.quantize import is_4bit, is_8bit


def language_model(model: Any) -> str:
    """Name of the part that reads and writes text; empty where that is the whole model."""
    if not is_seeing(model.config):
        return ""
    decoder = model.get_decoder()
    found: str = next(name for name, module in model.named_modules() if module is decoder)
    return found


def inside(name: str, module: str) -> bool:
    """Whether a dotted name is `module` or something in it; everything is in the empty name."""
    return not module or name == module or name.startswith(module + ".")


def linear_modules(model: Any, head: nn.Module | None) -> dict[str, tuple[int, int]]:
    """Full name to (inputs, outputs) of every linear module of the language model but the output embeddings.

    A model's own subclass of `nn.Linear` that gives more than a product, such as the router of Llama 4, is none.
    """
    part = language_model(model)
    return {
        name: size
        for name, (module, size) in _products(model).items()
        if module is not head and inside(name, part) and _gives_product(module, size[0])
    }


def other_products(model: nn.Module, linear: Iterable[str]) -> tuple[str, ...]:
    """Names of what PEFT would take for linear modules, too: of a vision tower, routers, the output embeddings."""
    return tuple(sorted(set(_products(model)) - set(linear)))


def _products(model: nn.Module) -> dict[str, tuple[nn.Module, tuple[int, int]]]:
    """4-bit modules are subclasses of `nn.Linear`; GPT-2 and its kin use `Conv1D`, whose weight is transposed."""
    from transformers.pytorch_utils import Conv1D  # noqa: PLC0415 - Transformers takes seconds to import

    found: dict[str, tuple[nn.Module, tuple[int, int]]] = {}
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear):
            found[name] = (module, (module.in_features, module.out_features))
        elif isinstance(module, Conv1D):
            found[name] = (module, (int(module.weight.shape[0]), int(module.weight.shape[1])))
    return found


def _gives_product(module: nn.Module, inputs: int) -> bool:
    """Tried, where the class has a forward pass of its own."""
    plain = not isinstance(module, nn.Linear) or type(module).forward is nn.Linear.forward
    if plain or is_4bit(module) or is_8bit(module):
        return True
    with torch.no_grad():
        weight = module.get_parameter("weight")
        return isinstance(module(torch.zeros(1, inputs, dtype=weight.dtype, device=weight.device)), torch.Tensor)


def choose_targets(config: LoraConfig, linear: Mapping[str, tuple[int, int]]) -> tuple[str, ...]:
    """Full names of the modules to adapt. Raises `ConfigError`, listing the model's linear modules."""
    if config.target_modules:
        chosen = _named("lora.targetModules", config.target_modules, linear)
    else:
        chosen = {name for name in linear if in_preset(name, config.layers or Layers.ALL_LINEAR)}
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
