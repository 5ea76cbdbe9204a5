"""The code of a decoder layer compiled by `torch.compile`, once for all layers that are alike and for all lengths.

Attention stays what it is between two compiled parts: where the rows of a pack lie is then no constant of the code.
Passes that train are compiled alone: evaluations compute as without, and nobody waits for their code.
"""

import contextlib
import copy
import functools
import inspect
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.utils._pytree import tree_map

from lora_trainer.model.attention import NAME, attend
from lora_trainer.model.fast_path import Handle, Keep
from lora_trainer.model.gates import device_type
from lora_trainer.model.quantize import full_weight
from lora_trainer.model.recompute import decoder_layers

DEVICES = {"cuda"}
"""Kinds of devices that code is compiled for: PyTorch's compiler writes Triton kernels, too."""
_MOST_KINDS = 3
"""Of layers in a model, each of which is compiled for itself."""
_NO_KIND = {"layer_idx", "training"}
_ADAPTER = "default"


@dataclass(frozen=True, slots=True, eq=False)
class Call:
    """What a layer is called with after its hidden states."""

    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]


def layers(model: nn.Module) -> list[nn.Module]:
    """The decoder layers that can be compiled, of few kinds; none where they are divided over processes."""
    if any(hasattr(module, "unshard") for module in model.modules()):
        return []
    found = [layer for layer in decoder_layers(model) if _suits(layer)]
    return found if len({kind(layer) for layer in found}) <= _MOST_KINDS else []


def kind(layer: nn.Module) -> Hashable:
    """What layers share that the same code computes: modules, their settings, and the shapes and types of weights."""
    settings = [
        (
            type(module).__name__,
            *((key, str(value)) for key, value in vars(module).items() if _is_setting(value) and key not in _NO_KIND),
        )
        for module in layer.modules()
    ]
    return tuple(settings), tuple((name, one.shape, one.dtype) for name, one in layer.named_parameters())


def install(layer: nn.Module) -> None:
    """Let a layer compute by the compiled code of its class where it trains."""
    from transformers import AttentionInterface  # noqa: PLC0415 - Transformers takes seconds to import

    _prepare()
    AttentionInterface.register(NAME, _apart())
    vars(layer)["forward"] = functools.partial(_forward, layer)


def remove(layer: nn.Module) -> None:
    """Let it compute as its class does again."""
    vars(layer).pop("forward", None)


def watch(layer: nn.Module, keep: Keep) -> Handle:
    """Give `keep` what the layer is called with in its next passes."""

    def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        keep(module, (args[0], Call(args[1:], kwargs)) if args else ())

    return layer.register_forward_pre_hook(hook, with_kwargs=True)


def inputs(layer: nn.Module, seen: Sequence[Any]) -> tuple[Any, ...]:
    """The same. Raises `ValueError` where results depend on chance, and so cannot be compared."""
    before = _random_state(seen[0].device)
    computed(layer, seen)
    if not torch.equal(_random_state(seen[0].device), before):
        raise ValueError(f"{type(layer).__name__} draws random numbers, as dropout does")
    return tuple(seen)


def computed(layer: nn.Module, given: Sequence[Any]) -> torch.Tensor:
    """The hidden states after the layer."""
    hidden, call = given
    return _first(layer(hidden, *call.args, **call.kwargs))


def by_plain_pytorch(layer: nn.Module, given: Sequence[Any]) -> torch.Tensor:
    """The same without the fast paths that modules of the layer take."""
    forwards = {module: vars(module).pop("forward") for module in layer.modules() if "forward" in vars(module)}
    hidden, call = given
    try:
        # Not recomputed, which would be when these are back in their places.
        return _first(inspect.unwrap(type(layer).forward)(layer, hidden, *call.args, **call.kwargs))
    finally:
        for module, forward in forwards.items():
            vars(module)["forward"] = forward


def written_out(layer: nn.Module, given: Sequence[Any], parameters: Sequence[torch.Tensor]) -> torch.Tensor:
    """The same by a copy of the layer in the type of its hidden states, without any fast path, with these trained
    parameters."""
    hidden, call = given
    wide = copy.deepcopy(layer)
    for module in wide.modules():
        vars(module).pop("forward", None)
    wide.to(hidden.dtype)
    trained = dict(zip((name for name, _ in _trained(layer)), parameters, strict=True))
    args, kwargs = tree_map(lambda one: _widened(one, hidden.dtype), (call.args, dict(call.kwargs)))
    return _first(torch.func.functional_call(wide, trained, (hidden, *args), kwargs))


def parameters(layer: nn.Module) -> tuple[nn.Parameter, ...]:
    """Those that are trained."""
    return tuple(parameter for _, parameter in _trained(layer))


@contextlib.contextmanager
def stirred(layer: nn.Module, _hidden: torch.Tensor) -> Iterator[None]:
    """Within it, the layer trains, each B is random and counts as much as the weight that it is added to, and what
    cannot be compiled is an error."""
    import torch._dynamo  # noqa: PLC0415 - takes a second to import

    _prepare()
    ups = [(module, module.lora_B[_ADAPTER].weight) for module in _adapted(layer)]
    before = [up.data for _, up in ups]
    layer.train()
    try:
        for module, up in ups:
            up.data = _wild(module, up)
        with torch._dynamo.config.patch(suppress_errors=False):
            yield
    finally:
        for (_, up), data in zip(ups, before, strict=True):
            up.data = data
        layer.eval()


def work(layer: nn.Module, given: Sequence[Any]) -> int:
    """Products of a weight and a value in a pass."""
    weights = sum(parameter.numel() for parameter in layer.parameters())
    return int(given[0].numel() // given[0].shape[-1] * weights)


def compile_code(code: Callable[..., Any]) -> Callable[..., Any]:
    """Code whose lengths are open from its first call on."""
    found: Callable[..., Any] = torch.compile(code, dynamic=True)
    return found


def compilations() -> int:
    """How many pieces of code were compiled so far, each forward and backward."""
    from torch._dynamo.utils import counters  # noqa: PLC0415 - as above

    return int(counters["stats"]["unique_graphs"])


@functools.cache
def _compiled(layer: Any) -> Callable[..., Any]:
    # Without what Transformers puts around it, which recomputes and renames arguments.
    return compile_code(inspect.unwrap(layer.forward))


def _forward(layer: Any, *args: Any, **kwargs: Any) -> Any:
    # The first layer's input needs no gradient unless activations are recomputed: that would be code of its own.
    if not (args and layer.training and args[0].requires_grad and torch.is_grad_enabled()):
        return type(layer).forward(layer, *args, **kwargs)
    own: Any = type(layer)
    compute = functools.partial(_compiled(own), layer, **kwargs)
    if layer.gradient_checkpointing:
        return layer._gradient_checkpointing_func(compute, *args)
    return compute(*args)


@functools.cache
def _apart() -> Callable[..., Any]:
    """Attention over packs that is never compiled into what calls it."""
    disable: Any = torch.compiler.disable
    found: Callable[..., Any] = disable(attend)
    return found


@functools.cache
def _prepare() -> None:
    """Settings of PyTorch's compiler, which nothing else here calls."""
    import torch._dynamo  # noqa: PLC0415 - as above
    import torch._functorch.config  # noqa: PLC0415
    import torch._inductor.config  # noqa: PLC0415
    from torch.fx.experimental import _config as shapes  # noqa: PLC0415

    # What cannot be compiled later on, in a shape that no trial had, is computed without, and logged. That is found in
    # the forward pass, for the backward pass, too: autograd would raise it.
    torch._dynamo.config.suppress_errors = True
    torch._functorch.config.force_non_lazy_backward_lowering = True
    # As many tokens as the model is wide are no reason for both to be one number ever after.
    shapes.use_duck_shape = False
    # No processes that would have to end with this one, on a pod's few CPUs.
    torch._inductor.config.compile_threads = 1
    # By measuring, two processes would choose kernels that round differently.
    torch._inductor.config.deterministic = True


def _suits(layer: nn.Module) -> bool:
    """Whether a layer's code is known to be compiled whole: without packed weights, stacked experts, convolutions and
    dropout."""
    return (
        device_type(layer) in DEVICES
        and all(parameter.is_floating_point() and parameter.dim() <= 2 for parameter in layer.parameters())
        and not any(isinstance(module, nn.Dropout) and module.p > 0 for module in layer.modules())
    )


def _is_setting(value: object) -> bool:
    """Also PEFT's, which are by adapter."""
    values = value.values() if isinstance(value, dict) else (value,)
    return all(isinstance(one, (bool, int, float, str)) for one in values)


def _first(found: Any) -> torch.Tensor:
    result: torch.Tensor = found if isinstance(found, torch.Tensor) else found[0]
    return result


def _widened(value: Any, dtype: torch.dtype) -> Any:
    return value.to(dtype) if isinstance(value, torch.Tensor) and value.is_floating_point() else value


def _trained(layer: nn.Module) -> list[tuple[str, nn.Parameter]]:
    return [(name, parameter) for name, parameter in layer.named_parameters() if parameter.requires_grad]


def _adapted(layer: nn.Module) -> list[Any]:
    found: list[Any] = [module for module in layer.modules() if hasattr(module, "lora_B")]
    return [module for module in found if _ADAPTER in module.lora_B]


def _wild(module: Any, up: nn.Parameter) -> torch.Tensor:
    random = torch.Generator(up.device).manual_seed(1)
    wild = torch.randn(up.shape, generator=random, device=up.device)
    added = module.scaling[_ADAPTER] * (wild @ module.lora_A[_ADAPTER].weight.detach())
    factor = full_weight(module.get_base_layer()).norm() / added.norm()
    return (wild * (factor if factor.isfinite() and factor > 0 else 1.0)).to(up.dtype)


def _random_state(device: torch.device) -> torch.Tensor:
    return torch.cuda.get_rng_state(device) if device.type == "cuda" else torch.get_rng_state()
