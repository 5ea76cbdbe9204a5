"""The linear modules of a model in memory, by name: what gets an adapter, and what only looks like it."""

from typing import Any

import torch
from torch import nn

from lora_trainer.model.classes import is_seeing
from lora_trainer.model.quantize import is_4bit, is_8bit
from lora_trainer.model.targets import inside


def language_model(model: Any) -> str:
    """Name of the part that reads and writes text; empty where that is the whole model."""
    if not is_seeing(model.config):
        return ""
    decoder = model.get_decoder()
    found: str = next(name for name, module in model.named_modules() if module is decoder)
    return found


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
