"""Activations that are computed once more in the backward pass instead of being kept: of whole layers, or of MLPs."""

import types
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from lora_trainer.contract.config import ActivationCheckpointing
from lora_trainer.contract.fit.names import MLPS
from lora_trainer.errors import ConfigError


class Recomputed:
    """A module's forward pass that keeps its input alone. `forward` is the pass that it computes, in which a fast path
    may be; it is not recomputed while `on` is False."""

    def __init__(self, forward: Callable[..., Any]) -> None:
        self.forward = forward
        self.on = True

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """As `forward`."""
        if not self.on or not torch.is_grad_enabled():
            return self.forward(*args, **kwargs)
        return checkpoint(self.forward, *args, use_reentrant=False, **kwargs)


def put_forward(module: nn.Module, forward: Callable[..., Any]) -> None:
    """Let one module compute so, recomputed where it was."""
    found = vars(module).get("forward")
    if isinstance(found, Recomputed):
        found.forward = forward
    else:
        vars(module)["forward"] = forward


def take_forward(module: nn.Module) -> None:
    """Let it compute as its class does again."""
    found = vars(module).get("forward")
    if isinstance(found, Recomputed):
        found.forward = types.MethodType(type(module).forward, module)
    else:
        vars(module).pop("forward", None)


def recompute_activations(model: Any) -> None:
    """Recompute all that a layer would keep."""
    for mlp in _mlps(model):
        found = vars(mlp).get("forward")
        if isinstance(found, Recomputed):
            found.on = False
    model.activation_checkpointing_enable({"use_reentrant": False})
    model.enable_input_require_grads()


def recompute_mlps(model: nn.Module) -> None:
    """Recompute what is within each layer's MLP, and keep what attention has computed."""
    for mlp in _mlps(model):
        vars(mlp)["forward"] = Recomputed(mlp.forward)


def check_recomputation(wanted: ActivationCheckpointing, model: Any) -> None:
    """Raise `ConfigError` for what this kind of model cannot recompute; its weights need not be there."""
    if wanted is ActivationCheckpointing.AUTO or recomputable(model)[wanted]:
        return
    what = "activations" if wanted is ActivationCheckpointing.FULL else "MLPs alone"
    raise ConfigError(
        f"training.activationCheckpointing is {wanted.value}: this kind of model cannot recompute {what}; "
        "use Auto or None"
    )


def recomputable(model: Any) -> dict[ActivationCheckpointing, bool]:
    """Whether a model can be trained so. MLPs alone need one in each decoder layer that can be told from the rest."""
    layers = _layers(model)
    return {
        ActivationCheckpointing.NONE: True,
        ActivationCheckpointing.SELECTIVE: bool(layers) and len(_mlps(model)) == len(layers),
        ActivationCheckpointing.FULL: bool(model.supports_gradient_checkpointing),
    }


def _layers(model: nn.Module) -> list[nn.Module]:
    from transformers.modeling_layers import GradientCheckpointingLayer  # noqa: PLC0415 - takes seconds to import

    return [module for module in model.modules() if isinstance(module, GradientCheckpointingLayer)]


def _mlps(model: nn.Module) -> list[nn.Module]:
    return [child for layer in _layers(model) for name, child in layer.named_children() if name in MLPS]
