"""Base weights in 4 or 8 bits: settings, which devices have kernels for them, and the weights back in full."""

import logging
from collections.abc import Callable
from functools import partial
from typing import Any, TypeGuard, cast

import torch
from torch import nn

from lora_trainer.errors import ConfigError, InternalError
from lora_trainer.model.device import Device
from lora_trainer.plan.families import READS_WEIGHTS
from lora_trainer.spec.config import Quantization, Variant

OUTLIER_THRESHOLD = 6.0
"""Inputs of INT8 beyond this magnitude are multiplied in 16 bits (LLM.int8(), arXiv 2208.07339, section 3.2)."""
_LEAST_OF_CUDA = {"12": (6, 0)}
_LEAST = (7, 5)
"""Compute capability of the oldest GPUs that bitsandbytes has kernels for (its installation guide): in a library for
CUDA 12 also of older ones, for 4 bits."""


def quantization_settings(quantization: Quantization, device: Device) -> Any:
    """The settings for Transformers; None for full weights.

    4-bit always with double quantization and an explicit compute type: the library defaults to FP4, fp32, single.
    """
    if quantization is Quantization.NONE:
        return None
    if quantization is Quantization.AUTO:
        raise InternalError("quantization is Auto: it has to be settled before weights are read")
    from transformers import BitsAndBytesConfig  # noqa: PLC0415 - Transformers takes seconds to import

    settings: Any = BitsAndBytesConfig
    if quantization is Quantization.INT8:
        # Each multiplication would log that it casts to fp16, its only type.
        logging.getLogger("bitsandbytes.autograd._functions").setLevel(logging.ERROR)
        return settings(load_in_8bit=True, llm_int8_threshold=OUTLIER_THRESHOLD, llm_int8_has_fp16_weight=False)
    return settings(
        load_in_4bit=True,
        bnb_4bit_quant_type=quantization.value.lower(),
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=device.dtype,
        bnb_4bit_quant_storage=torch.uint8,
    )


def leave_packing(model: Any, settings: Any) -> None:
    """Make a model that was read in full one whose linear modules have 4 bits, as Transformers does while it reads, but
    with weights that are yet in full: `packed` makes them small, where they are to be. Those of the files' type stay
    pages of the files until then, and it is the GPU that packs."""
    from transformers.integrations.bitsandbytes import replace_with_bnb_linear  # noqa: PLC0415 - takes seconds
    from transformers.quantizers.base import HfQuantizer  # noqa: PLC0415 - as above

    replace: Any = replace_with_bnb_linear
    skipped = HfQuantizer.get_modules_to_not_convert(model, None, model._keep_in_fp32_modules)
    before = dict(model.named_modules())
    replace(model, modules_to_not_convert=skipped, quantization_config=settings)
    for name, module in model.named_modules():
        if is_4bit(module):
            old, empty = before[name], cast("Any", module.weight)
            full = old.weight if isinstance(old, nn.Linear) else old.weight.T.contiguous()
            module.weight = type(empty)(full.data, requires_grad=False, **vars(empty))
            module.bias = old.bias
    # By which PEFT knows 4-bit modules.
    model.is_loaded_in_4bit = True


def packed(module: nn.Linear, device: torch.device) -> nn.Parameter:
    """The weight of a 4-bit module that `leave_packing` left in full, in 4 bits on the device.

    It is a plain parameter, which FSDP2 divides as any other; bitsandbytes takes its `quant_state` from it.
    """
    full: Any = module.weight
    # It is packed by being moved, which a copy is, since it forgets what it was.
    made = type(full)(full.data, requires_grad=False, **vars(full)).to(device)
    parameter = nn.Parameter(made.data.as_subclass(torch.Tensor), requires_grad=False)
    keep_state(parameter, made.quant_state)
    return parameter


def keep_state(parameter: torch.Tensor, state: Any) -> None:
    """Let a packed weight have its scales beside it."""
    vars(parameter)["quant_state"] = state


def check_kernels(quantization: Quantization, variant: Variant, device: Device) -> None:
    """Raise `ConfigError` for what the device cannot compute."""
    if quantization is Quantization.NONE:
        return
    least = _LEAST
    if quantization is not Quantization.INT8:
        least = _LEAST_OF_CUDA.get((torch.version.cuda or "").partition(".")[0], _LEAST)
    if device.capability is not None and device.capability < least:
        found = ".".join(map(str, device.capability))
        raise ConfigError(
            f"quantization is {quantization.value}: bitsandbytes has kernels for it from compute capability "
            f"{least[0]}.{least[1]} on, this GPU ({device.name}) has {found}; use a newer GPU or quantization: None"
        )
    if quantization is Quantization.INT8 and variant is Variant.DORA and device.torch_device.type == "cpu":
        raise ConfigError(
            "lora.variant is DoRA with quantization INT8: PEFT loses the scales of 8-bit weights on a CPU at the first "
            "step; use quantization: NF4, or a GPU"
        )
    if not _has_library():
        raise ConfigError(
            f"quantization is {quantization.value}: bitsandbytes has no compiled library for the device {device.name}; "
            "use the trainer image of the release, or quantization: None"
        )


def check_kind(quantization: Quantization, kind: str) -> None:
    """Raise `ConfigError` for kinds of models that read weights of linear modules themselves: they would read bytes."""
    if quantization is not Quantization.NONE and kind in READS_WEIGHTS:
        raise ConfigError(
            f"quantization is {quantization.value}: models of the kind {kind!r} compute with weights that bitsandbytes "
            "would have packed; set quantization: None"
        )


def take_any_shape(model: nn.Module) -> None:
    """Let 8-bit modules take inputs of more than three dimensions, as DeepSeek's attention gives: bitsandbytes flattens
    no others on a CPU."""
    for module in model.modules():
        if is_8bit(module):
            vars(module)["forward"] = partial(_flattened, module.forward)


def _flattened(forward: Callable[[torch.Tensor], torch.Tensor], x: torch.Tensor) -> torch.Tensor:
    return forward(x) if x.dim() <= 3 else forward(x.flatten(0, -2)).reshape(*x.shape[:-1], -1)


def _has_library() -> bool:
    from bitsandbytes import cextension  # noqa: PLC0415 - takes seconds to import

    # The stand-in for a library that could not be loaded raises at the first use of a kernel.
    return type(cextension.lib).__name__ != "ErrorHandlerMockBNBNativeLibrary"


def is_4bit(module: object) -> TypeGuard[nn.Linear]:
    """By name: PEFT's own wrapper has the same, but is no `nn.Linear`; importing bitsandbytes takes seconds."""
    return isinstance(module, nn.Linear) and type(module).__name__ == "Linear4bit"


def is_8bit(module: object) -> TypeGuard[nn.Linear]:
    """As `is_4bit`."""
    return isinstance(module, nn.Linear) and type(module).__name__ == "Linear8bitLt"


@torch.no_grad()
def full_weight(module: nn.Module) -> torch.Tensor:
    """The weight of a linear module, fp32, shape (outputs, inputs), whatever it is stored in."""
    weight: Any = module.weight
    if is_4bit(module):
        from bitsandbytes.functional import dequantize_4bit  # noqa: PLC0415 - takes seconds to import

        return torch.as_tensor(dequantize_4bit(weight.data, weight.quant_state)).float()
    if is_8bit(module):
        state: Any = module.state
        # The module hands the scales of its rows over to its state in the first forward pass.
        scales = weight.SCB if weight.SCB is not None else state.SCB
        rows: torch.Tensor = weight.data.float() * scales.float()[:, None] / 127
        return rows
    full = torch.as_tensor(weight.detach()).float()
    # Conv1D keeps its weight transposed.
    return full if isinstance(module, nn.Linear) else full.T
