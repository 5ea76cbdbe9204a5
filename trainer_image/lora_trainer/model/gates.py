"""Gated MLPs, down(SiLU(gate) x up): which modules are one, and how a CPU computes the gate with less kept.

Autograd keeps the gate, its SiLU, and what that is multiplied by, each as wide as the MLP. The SiLU follows from the
gate, and is cheaper to compute again than to keep: by the same operations, so that no number changes.
"""

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.nn.functional import silu

from lora_trainer.model.recompute import put_forward

_CHILDREN = {"gate_proj", "up_proj", "down_proj", "act_fn"}
_SILU = {"SiLU", "SiLUActivation"}
Between = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


def gated_mlps(model: nn.Module) -> list[nn.Module]:
    """MLPs with a gate through SiLU, by the names of what they have: which families compute no more is in `fast`."""
    return [module for module in model.modules() if _is_gated(module)]


def on_cpu(model: nn.Module) -> list[nn.Module]:
    """Those that a CPU computes."""
    return [module for module in gated_mlps(model) if device_type(module) == "cpu"]


def device_type(module: nn.Module) -> str | None:
    """Where a module's weights lie; None without any."""
    return next((one.device.type for one in module.parameters()), None)


def install(module: nn.Module, between: Between) -> None:
    """Let an MLP compute its gate so."""
    put_forward(module, functools.partial(_computed, module, between))


def recomputed(gates: torch.Tensor, ups: torch.Tensor) -> torch.Tensor:
    """SiLU of `gates` times `ups`, of which autograd keeps no more than these two."""
    found: torch.Tensor = _Recomputed.apply(gates, ups)
    return found


class _Recomputed(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, gates: torch.Tensor, ups: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(gates, ups)
        return silu(gates).mul_(ups)

    @staticmethod
    def backward(ctx: Any, *given: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        (gradient,), (gates, ups) = given, ctx.saved_tensors
        of_gates: torch.Tensor = torch.ops.aten.silu_backward(gradient * ups, gates)
        return of_gates, silu(gates).mul_(gradient)


def _computed(module: Any, between: Between, x: torch.Tensor) -> torch.Tensor:
    found: torch.Tensor = module.down_proj(between(module.gate_proj(x), module.up_proj(x)))
    return found


def _is_gated(module: nn.Module) -> bool:
    children = dict(module.named_children())
    return set(children) == _CHILDREN and type(children["act_fn"]).__name__ in _SILU
