"""What a GPU computes otherwise than a CPU, for a training step on a CPU's fake tensors.

Fake tensors cannot be CUDA's: without a driver autograd has no thread for such a device. They are a CPU's, and this
mode changes the calls in which that makes a difference of memory:

* autocast's list of operations in fp32: a GPU's has norms, powers and softmaxes, a CPU's has not;
* dropout keeps a mask of one byte a value, and attention with dropout writes no scores out;
* what is copied deeply is a parameter, which fake tensors do not know of themselves;
* numbers that a step reads from tensors do not exist: they are read as 0.
"""

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any
from unittest import mock

import bitsandbytes
import torch
from bitsandbytes.autograd._functions import MatMul8bitLt
from peft.tuners.lora import dora
from torch import nn
from torch.overrides import TorchFunctionMode
from transformers import masking_utils

from lora_trainer.plan.limits import MOST_LOGITS

IN_FP32 = frozenset(
    {"layer_norm", "group_norm", "native_layer_norm", "pow", "__pow__", "__rpow__", "exp", "log", "rsqrt", "reciprocal"}
    | {"softplus", "norm", "logsumexp", "nll_loss", "frobenius_norm"}
)
"""Of `AT_FORALL_FP32` in PyTorch's `autocast_mode.h`, what models compute with."""
IN_FP32_UNLESS_TYPED = frozenset({"softmax", "log_softmax", "cumsum", "cumprod", "prod", "sum", "linalg_norm"})
"""Of `AT_FORALL_FP32_SET_OPT_DTYPE`: where the caller names no type. `linalg_norm` calls those of vectors, matrices."""
_16_BITS = frozenset({torch.bfloat16, torch.float16})


class AsGpu(TorchFunctionMode):
    """Within it, a CPU computes as a GPU."""

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """PyTorch's protocol: `func` with other arguments, or in place of it what a GPU does."""
        given, named = tuple(args), dict(kwargs or {})
        name = getattr(func, "__name__", "")
        if name in {"__float__", "item"}:
            return 0.0
        if name == "__deepcopy__":
            return _copied(given[0])
        if name == "dropout" and not _is_off(given, named):
            return torch.native_dropout(given[0], given[1] if len(given) > 1 else named["p"], True)[0]
        if name == "scaled_dot_product_attention":
            named["dropout_p"] = 0.0
            if named.pop("enable_gqa", False):
                given = _repeated(*given)
        elif torch.is_autocast_enabled("cpu") and _widens(name, named):
            given = tuple(_wide(value) for value in given)
        return func(*given, **named)


def _repeated(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Keys and values once for each head, as a GPU's kernels take them; only a CPU's shares them by itself."""
    repeats = query.shape[1] // key.shape[1]
    return query, key.repeat_interleave(repeats, 1), value.repeat_interleave(repeats, 1)


def _is_off(given: Sequence[Any], named: Mapping[str, Any]) -> bool:
    training = given[2] if len(given) > 2 else named.get("training", named.get("train", True))
    probability = given[1] if len(given) > 1 else named.get("p", 0.5)
    return not training or probability == 0


def _widens(name: str, named: Mapping[str, Any]) -> bool:
    return name in IN_FP32 or (name in IN_FP32_UNLESS_TYPED and named.get("dtype") is None)


def _wide(value: Any) -> Any:
    return value.float() if isinstance(value, torch.Tensor) and value.dtype in _16_BITS else value


@contextlib.contextmanager
def settings_of_gpu() -> Iterator[None]:
    """Within it, what asks for the kind of device, or whether a GPU's autocast is on, is given a GPU's answer."""
    asked, product = torch.is_autocast_enabled, MatMul8bitLt

    def autocast_is_on(device_type: str = "cpu") -> bool:
        return asked(device_type)

    def product_of_8_bits(rows: torch.Tensor, weight: torch.Tensor, *, bias: Any = None, state: Any = None) -> Any:
        return product.apply(rows, weight, None, bias, state)

    with (
        mock.patch.object(torch, "is_autocast_enabled", autocast_is_on),
        # A call of a mode's is made without the mode, and recomputation is part of the backward pass.
        mock.patch.object(torch.autograd, "has_torch_function", return_value=False),
        mock.patch.dict(MOST_LOGITS, cpu=MOST_LOGITS["cuda"]),
        mock.patch.object(bitsandbytes, "matmul", product_of_8_bits),
        # It reads positions, which in padded rows begin at 0 alone.
        mock.patch.object(masking_utils, "find_packed_sequence_indices", return_value=None),
        # It knows quantized weights by their classes, of which no fake parameter can be.
        mock.patch.object(dora, "dequantize_module_weight", _in_full),
        # Its numbers are read one by one.
        mock.patch.object(bitsandbytes.functional, "create_dynamic_map", side_effect=_code_of_8_bits),
        # It keeps them for each later quantization of the process, which would be given these.
        mock.patch.dict(bitsandbytes.functional.name2qmap, clear=True),
    ):
        yield


def _code_of_8_bits(**_settings: object) -> torch.Tensor:
    return torch.zeros(256)


def _copied(parameter: Any) -> nn.Parameter:
    found = nn.Parameter(parameter.detach().clone(), requires_grad=parameter.requires_grad)
    if hasattr(parameter, "quant_state"):
        vars(found)["quant_state"] = parameter.quant_state
    return found


def _in_full(module: Any) -> torch.Tensor:
    weight = module.weight
    state = getattr(weight, "quant_state", None)
    found: torch.Tensor = weight if state is None else bitsandbytes.functional.dequantize_4bit(weight.data, state)
    return found
