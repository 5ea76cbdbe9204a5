"""The forward and backward pass of an adapted linear module in as few passes over memory as there are matrix products.

PEFT adds the adapter's product to the module's own in separate passes, forward and backward. Here each product is added
by the matrix multiplication that computes it. The numbers are the same but for rounding. 4-bit weights are made whole
once in each pass, and kept by none.
"""

from functools import partial
from typing import Any

import torch
from torch import nn

from lora_trainer.model.adapter import ADAPTER
from lora_trainer.model.products import product
from lora_trainer.model.quantize import is_4bit


def fuse(model: nn.Module) -> int:
    """Let all adapted modules of `model` that are plain compute in one piece; how many these are."""
    found = plain_modules(model)
    for module in found:
        install(module)
    return len(found)


def plain_modules(model: nn.Module) -> list[nn.Module]:
    """The adapted modules of `model` that can be computed in one piece.

    Plain is a frozen `nn.Linear`, in full or in 4 bits, with an fp32 LoRA pair of its own and nothing else: no dropout,
    no bias of the adapter, no DoRA. All others keep PEFT's forward pass.
    """
    return [module for module in model.modules() if _is_plain(module)]


def install(module: nn.Module) -> None:
    """Let one plain module compute with `_LoraLinear`."""
    vars(module)["forward"] = partial(_forward, module)


def compute_type(device: torch.device, dtype: torch.dtype) -> torch.dtype:
    """The type in which products of a tensor of this type are computed: autocast's, where that is on."""
    return torch.get_autocast_dtype(device.type) if torch.is_autocast_enabled(device.type) else dtype


def _is_plain(module: Any) -> bool:
    if not hasattr(module, "lora_A") or not hasattr(module, "get_base_layer"):
        return False
    base = module.get_base_layer()
    # By name, as is_4bit: importing PEFT's takes seconds.
    kinds = {"Linear": type(base) is nn.Linear, "Linear4bit": is_4bit(base)}
    return (
        kinds.get(type(module).__name__, False)
        and not any(parameter.requires_grad for parameter in base.parameters())
        and list(module.lora_A) == list(module.lora_B) == [ADAPTER]
        and isinstance(module.lora_dropout[ADAPTER], nn.Identity)
        and not module.fan_in_fan_out
        and not module.lora_variant
        and not any(module.lora_bias.values())
        and {module.lora_A[ADAPTER].weight.dtype, module.lora_B[ADAPTER].weight.dtype} == {torch.float32}
    )


def _forward(module: Any, x: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
    base = module.get_base_layer()
    state = getattr(base.weight, "quant_state", None)
    dtype = compute_type(x.device, x.dtype)
    lora_a, lora_b = module.lora_A[ADAPTER].weight, module.lora_B[ADAPTER].weight
    # Without autocast, PEFT computes the adapter beside 16-bit weights in fp32.
    alike = x.dtype == lora_a.dtype or torch.is_autocast_enabled(x.device.type)
    given = base.compute_dtype if state is not None else base.weight.dtype
    if module.disable_adapters or module.merged or args or kwargs or dtype != given or not alike:
        return type(module).forward(module, x, *args, **kwargs)
    rows = x.reshape(-1, x.shape[-1]).to(dtype)
    result: torch.Tensor = _LoraLinear.apply(
        rows, base.weight, state, base.bias, lora_a, lora_b, module.scaling[ADAPTER]
    )
    # Not within the function: autograd lets nobody change a view in place that a function of its own has made.
    result = result.view(*x.shape[:-1], -1)
    # As bitsandbytes gives back the type that it is given.
    return result if state is None else result.to(x.dtype)


def _whole(weight: torch.Tensor, state: Any, dtype: torch.dtype) -> torch.Tensor:
    """The weight (outputs, inputs) in the type that is computed in."""
    if state is None:
        return weight
    from bitsandbytes.functional import dequantize_4bit  # noqa: PLC0415 - takes seconds to import

    return torch.as_tensor(dequantize_4bit(weight, state)).to(dtype)


class _LoraLinear(torch.autograd.Function):
    """x W^T + bias + s (x A^T) B^T for the rows x, with W and the bias frozen."""

    @staticmethod
    def forward(  # noqa: PLR0917 - autograd passes them by position
        ctx: Any,
        rows: torch.Tensor,
        weight: torch.Tensor,
        state: Any,
        bias: torch.Tensor | None,
        lora_a: torch.Tensor,
        lora_b: torch.Tensor,
        scale: float,
    ) -> torch.Tensor:
        """Shapes: `rows` (rows, inputs), `weight` (outputs, inputs), or packed with its `state`, `lora_a` (rank,
        inputs), `lora_b` (outputs, rank)."""
        low = rows @ lora_a.to(rows.dtype).T
        result = product(rows, _whole(weight, state, rows.dtype), None if bias is None else bias.to(rows.dtype))
        result.addmm_(low, lora_b.to(rows.dtype).T, alpha=scale)
        ctx.save_for_backward(rows, low, weight if state is None else None, lora_a, lora_b)
        ctx.scale, ctx.packed = scale, (None if state is None else weight.detach(), state)
        return result

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        """The gradients of the rows, A and B. What the forward pass made of the weights is made again, not kept."""
        rows, low, weight, lora_a, lora_b = ctx.saved_tensors
        low_gradient = (gradient @ lora_b.to(rows.dtype)).mul_(ctx.scale)
        of_b = (gradient.T @ low).mul_(ctx.scale).to(lora_b.dtype)
        of_a = (low_gradient.T @ rows).to(lora_a.dtype)
        of_rows = None
        if ctx.needs_input_grad[0]:
            packed, state = ctx.packed
            whole = _whole(weight if state is None else packed, state, rows.dtype)
            of_rows = product(gradient, whole.T).addmm_(low_gradient, lora_a.to(rows.dtype))
        return of_rows, None, None, None, of_a, of_b, None
