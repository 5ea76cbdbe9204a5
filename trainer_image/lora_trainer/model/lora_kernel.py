"""The forward and backward pass of an adapted linear module in as few passes over memory as there are matrix products.

PEFT adds the adapter's product to the module's own in separate passes, forward and backward. Here each product is added
by the matrix multiplication that computes it. The numbers are the same but for rounding.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import nn

from lora_trainer.model.products import product

ADAPTER = "default"


def fuse(model: nn.Module) -> int:
    """Let the adapted modules of `model` that are plain compute with `_LoraLinear`; how many these are.

    Plain is a frozen fp32 `nn.Linear` with an fp32 LoRA pair of its own and nothing else: no dropout, no bias of the
    adapter, no DoRA, no quantized weights. All others keep PEFT's forward pass.
    """
    from peft.tuners.lora.layer import Linear  # noqa: PLC0415 - PEFT takes seconds to import

    fused = 0
    for module in model.modules():
        if type(module) is Linear and _is_plain(module):
            vars(module)["forward"] = partial(_forward, module, module.forward)
            fused += 1
    return fused


def _is_plain(module: Any) -> bool:
    base = module.get_base_layer()
    return (
        type(base) is nn.Linear
        and not any(parameter.requires_grad for parameter in base.parameters())
        and list(module.lora_A) == list(module.lora_B) == [ADAPTER]
        and isinstance(module.lora_dropout[ADAPTER], nn.Identity)
        and not module.fan_in_fan_out
        and not module.lora_variant
        and not any(module.lora_bias.values())
        and {base.weight.dtype, module.lora_A[ADAPTER].weight.dtype} == {torch.float32}
    )


def _forward(module: Any, original: Callable[..., torch.Tensor], x: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
    if module.disable_adapters or module.merged or args or kwargs or x.dtype != torch.float32:
        return original(x, *args, **kwargs)
    base = module.get_base_layer()
    down, up = module.lora_A[ADAPTER].weight, module.lora_B[ADAPTER].weight
    rows = x.reshape(-1, x.shape[-1])
    result: torch.Tensor = _LoraLinear.apply(rows, base.weight, base.bias, down, up, module.scaling[ADAPTER])
    # Not within the function: autograd lets nobody change a view in place that a function of its own has made.
    return result.view(*x.shape[:-1], -1)


class _LoraLinear(torch.autograd.Function):
    """x W^T + bias + s (x A^T) B^T for the rows x, with W and the bias frozen."""

    @staticmethod
    def forward(  # noqa: PLR0917 - autograd passes them by position
        ctx: Any,
        rows: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        down: torch.Tensor,
        up: torch.Tensor,
        scale: float,
    ) -> torch.Tensor:
        """Shapes: `rows` (rows, inputs), `weight` (outputs, inputs), `down` (rank, inputs), `up` (outputs, rank)."""
        low = rows @ down.T
        result = product(rows, weight, bias)
        result.addmm_(low, up.T, alpha=scale)
        ctx.save_for_backward(rows, low, weight, down, up)
        ctx.scale = scale
        return result

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        """The gradients of the rows, A and B."""
        rows, low, weight, down, up = ctx.saved_tensors
        low_gradient = (gradient @ up).mul_(ctx.scale)
        of_up = (gradient.T @ low).mul_(ctx.scale)
        of_down = low_gradient.T @ rows
        of_rows = None
        if ctx.needs_input_grad[0]:
            of_rows = product(gradient, weight.T).addmm_(low_gradient, down)
        return of_rows, None, None, of_down, of_up, None
