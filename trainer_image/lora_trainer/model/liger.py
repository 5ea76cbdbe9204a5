"""Liger's kernels for what stands between the matrices of a layer: norms, the rotation of queries and keys, and gates.

Functions of the library (liger-kernel) are taken, whose Triton kernels are compiled on the device, and put into modules
one by one: no class is changed. Names only suggest which modules compute what a kernel does: which families' do is in
`fast`.
"""

import functools
import importlib.util
import inspect
import types
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from lora_trainer.model import gates
from lora_trainer.model.recompute import put_forward

DEVICES = {"cuda"}
"""Kinds of devices that Triton compiles for."""
_ROTATE = "apply_rotary_pos_emb"


def norms(model: nn.Module) -> list[nn.Module]:
    """Norms by the root of a mean square, with a frozen weight."""
    return [module for module in model.modules() if _is_norm(module)] if _present() else []


def install_norm(module: nn.Module) -> None:
    """Let a norm compute with Liger's kernel."""
    put_forward(module, functools.partial(norm, module))


def norm(module: Any, x: torch.Tensor) -> torch.Tensor:
    """Gemma's weights are what they add to 1, and it multiplies by them in fp32; the gradient is not written over the
    one that the norm is given, which a residual stream beside it may share."""
    from liger_kernel.ops.rms_norm import LigerRMSNormFunction  # noqa: PLC0415 - takes a second to import

    offset, casts = (1.0, "gemma") if "Gemma" in type(module).__name__ else (0.0, "llama")
    # By rows: else another kernel would take many short ones, which the few that are compared do not reach.
    found: torch.Tensor = LigerRMSNormFunction.apply(x, module.weight, _epsilon(module), offset, casts, False, True)
    return found


def rotating(model: nn.Module) -> list[nn.Module]:
    """Attention that rotates queries and keys by the function that its file calls as Llama's."""
    return [module for module in model.modules() if _rotates(module) and _is_here(module)] if _present() else []


def install_rotation(module: nn.Module) -> None:
    """Let attention rotate with Liger's kernel."""
    kind: Any = type(module)
    put_forward(module, functools.partial(_rotated(kind), module))


def rotate(
    queries: torch.Tensor, keys: torch.Tensor, cosines: torch.Tensor, sines: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Shapes: (rows, heads, tokens, size of a head), and (rows or 1, tokens, size). The kernel writes over what it is
    given, which may be needed elsewhere: it is given copies."""
    from liger_kernel.ops.rope import LigerRopeFunction  # noqa: PLC0415 - takes a second to import

    found = LigerRopeFunction.apply(queries.clone(), keys.clone(), cosines, sines)
    return found[0], found[1]


def gated_mlps(model: nn.Module) -> list[nn.Module]:
    """MLPs with a gate through SiLU."""
    return [module for module in gates.gated_mlps(model) if _is_here(module)] if _present() else []


def install_gate(module: nn.Module) -> None:
    """Let an MLP compute its gate with Liger's kernel."""
    gates.install(module, gate)


def gate(gated: torch.Tensor, ups: torch.Tensor) -> torch.Tensor:
    """SiLU of `gated` times `ups`. The backward pass writes over both."""
    from liger_kernel.ops.swiglu import LigerSiLUMulFunction  # noqa: PLC0415 - takes a second to import

    found: torch.Tensor = LigerSiLUMulFunction.apply(gated, ups)
    return found


def _present() -> bool:
    return importlib.util.find_spec("liger_kernel") is not None


def _is_here(module: nn.Module) -> bool:
    return gates.device_type(module) in DEVICES


def _is_norm(module: Any) -> bool:
    weight = getattr(module, "weight", None)
    return (
        type(module).__name__.endswith("RMSNorm")
        and isinstance(weight, nn.Parameter)
        and list(module.parameters()) == [weight]
        and not weight.requires_grad
        and weight.dim() == 1
        and _epsilon(module) is not None
        and _is_here(module)
    )


def _epsilon(module: Any) -> float | None:
    found = getattr(module, "variance_epsilon", getattr(module, "eps", None))
    return found if isinstance(found, float) else None


def _rotates(module: nn.Module) -> bool:
    code = getattr(inspect.unwrap(type(module).forward), "__code__", None)
    return code is not None and _ROTATE in code.co_names


@functools.cache
def _rotated(kind: Any) -> Callable[..., Any]:
    """The forward pass of a class, in which the name of the rotation means Liger's."""
    own: Any = inspect.unwrap(kind.forward)
    plain = own.__globals__[_ROTATE]

    def rotated(*args: Any, **kwargs: Any) -> tuple[torch.Tensor, torch.Tensor]:
        found: tuple[torch.Tensor, torch.Tensor] = plain(*args, **kwargs) if kwargs or len(args) != 4 else rotate(*args)
        return found

    other = types.FunctionType(
        own.__code__, {**own.__globals__, _ROTATE: rotated}, own.__name__, own.__defaults__, own.__closure__
    )
    other.__kwdefaults__ = own.__kwdefaults__
    return other
