"""Activations that are computed once more in the backward pass instead of being kept: of whole layers, or of MLPs."""

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from lora_trainer.errors import ConfigError
from lora_trainer.plan.architecture import MLPS
from lora_trainer.spec.config import ActivationCheckpointing


def is_recomputed(module: nn.Module) -> bool:
    """Whether a module keeps its input alone."""
    found: Any = vars(module).get("forward")
    return isinstance(found, functools.partial) and found.func is _recompute


def put_forward(module: nn.Module, forward: Callable[..., Any]) -> None:
    """Let one module compute so, recomputed where it was."""
    vars(module)["forward"] = functools.partial(_recompute, module, forward) if is_recomputed(module) else forward


def take_forward(module: nn.Module) -> None:
    """Let it compute as its class does again."""
    if is_recomputed(module):
        vars(module)["forward"] = functools.partial(_recompute, module, None)
    else:
        vars(module).pop("forward", None)


def _recompute(module: nn.Module, forward: Callable[..., Any] | None, *args: Any, **kwargs: Any) -> Any:
    compute = functools.partial(type(module).forward, module) if forward is None else forward
    if not torch.is_grad_enabled():
        return compute(*args, **kwargs)
    return checkpoint(compute, *args, use_reentrant=False, **kwargs)


def _keep(module: Any) -> None:
    """Recompute no longer."""
    forward = module.forward.args[1]
    vars(module).pop("forward")
    if forward is not None:
        vars(module)["forward"] = forward


def recompute_activations(model: Any) -> None:
    """Recompute all that a layer would keep."""
    for mlp in _mlps(model):
        if is_recomputed(mlp):
            _keep(mlp)
    model.activation_checkpointing_enable({"use_reentrant": False})
    model.enable_input_require_grads()


def recompute_mlps(model: nn.Module) -> None:
    """Recompute what is within each layer's MLP, and keep what attention has computed."""
    for mlp in _mlps(model):
        vars(mlp)["forward"] = functools.partial(_recompute, mlp, None)


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
    layers = decoder_layers(model)
    return {
        ActivationCheckpointing.NONE: True,
        ActivationCheckpointing.SELECTIVE: bool(layers) and len(_mlps(model)) == len(layers),
        ActivationCheckpointing.FULL: bool(model.supports_gradient_checkpointing),
    }


def decoder_layers(model: nn.Module) -> list[nn.Module]:
    """Layers whose activations Transformers can recompute."""
    from transformers.modeling_layers import GradientCheckpointingLayer  # noqa: PLC0415 - takes seconds to import

    return [module for module in model.modules() if isinstance(module, GradientCheckpointingLayer)]


def _mlps(model: nn.Module) -> list[nn.Module]:
    return [child for layer in decoder_layers(model) for name, child in layer.named_children() if name in MLPS]
