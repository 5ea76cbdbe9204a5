"""Fast paths that prove themselves: each is compared with plain PyTorch on the device at hand before it is trusted.

The comparison takes the first module of each kind that the model has, with the input that a real pack gives it. Errors
are norms, relative to the same computation in the next wider type: fp32 for 16 bits, fp64 for fp32.
"""

import contextlib
import time
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from peft.helpers import disable_input_dtype_casting
from torch import nn

from lora_trainer.errors import one_sentence
from lora_trainer.model import lora_kernel
from lora_trainer.model.device import Device
from lora_trainer.model.loading import set_training

MOST_ERROR = 1.5
"""Times plain PyTorch's own error that a fast path may err, in its result and in each gradient."""
FLOOR = {torch.float32: 2.0**-20, torch.bfloat16: 2.0**-8, torch.float16: 2.0**-11}
"""Relative errors that are never held against a fast path: for 16 bits the rounding of one number, for fp32 eight such
roundings, since libraries add up in different orders."""
_MOST_TIME, _ROUNDS = 1.1, 7
"""A fast path is slower that takes so many times plain PyTorch's time in each of so many rounds, and not in one of them
less: timings of a busy machine differ by that much, and two runs are to choose alike."""
_LEAST_WORK = 2**30
"""Products of a weight and a value, over all modules, below which nothing is timed: calls then take longer than what
they compute, and a clock would choose by chance."""
MOST_TOKENS = {"cpu": 256, "cuda": 1024}
"""Of the pack, by the kind of device: more would take longer and show nothing else."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FastPath:
    """A faster way to compute some modules of a model; `find` gives those that it suits, the same on every process.

    Modules of one `kind` compute alike. `written_out` computes a module from its input and its trained `parameters`, in
    the type of these. `stirred` gives all of them values that count, within it.
    """

    name: str
    find: Callable[[nn.Module], list[nn.Module]]
    install: Callable[[nn.Module], None]
    remove: Callable[[nn.Module], None]
    kind: Callable[[nn.Module], Hashable]
    parameters: Callable[[nn.Module], tuple[nn.Parameter, ...]]
    written_out: Callable[[nn.Module, torch.Tensor, Sequence[torch.Tensor]], torch.Tensor]
    stirred: Callable[[nn.Module, torch.Tensor], contextlib.AbstractContextManager[None]]


FUSED_ADAPTER = FastPath(
    name="fused-adapter",
    find=lora_kernel.plain_modules,
    install=lora_kernel.install,
    remove=lora_kernel.remove,
    kind=lora_kernel.kind,
    parameters=lora_kernel.factors,
    written_out=lora_kernel.written_out,
    stirred=lora_kernel.stirred,
)
ALL = (FUSED_ADAPTER,)


@dataclass(frozen=True, slots=True, kw_only=True)
class Chosen:
    """The names of the fast paths that a run takes, and a sentence for each that is left out; after `changed_step` one
    was left out that had been taken before."""

    taken: tuple[str, ...] = ()
    left_out: tuple[str, ...] = ()
    changed_step: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What a process found of a fast path: the modules that it may compute, and why it is left out, None where nothing
    is against it."""

    path: FastPath
    modules: tuple[nn.Module, ...]
    refusal: str | None = None


def prove(
    path: FastPath, model: Any, head: nn.Module, arguments: Mapping[str, Any], device: Device, *, timed: bool
) -> Verdict:
    """Compare a fast path with plain PyTorch on the pack that `arguments` are, with `timed` in time, too.

    Nothing is installed afterwards, and the model is in evaluation mode. Where layers are divided over processes, all
    of these call it.
    """
    kinds: dict[Hashable, list[nn.Module]] = {}
    for module in path.find(model):
        kinds.setdefault(path.kind(module), []).append(module)
    if not kinds:
        return Verdict(path=path, modules=())
    given = _inputs(model, head, [same[0] for same in kinds.values()], arguments, device)
    # What the pack does not reach, such as an expert without tokens, is not proven.
    proven = [same for same in kinds.values() if same[0] in given]
    if not proven:
        return Verdict(path=path, modules=(), refusal="no row at hand reaches a module that it suits")
    trials = {_Trial(path=path, module=same[0], given=given[same[0]], device=device): len(same) for same in proven}
    with _whole(model, [same[0] for same in proven]):
        refusal = next((found for trial in trials if (found := trial.refusal()) is not None), None)
        if refusal is None and timed:
            refusal = _slower(trials)
    return Verdict(path=path, modules=tuple(module for same in proven for module in same), refusal=refusal)


def _slower(trials: Mapping["_Trial", int]) -> str | None:
    """Why a fast path counts as slower, over modules of each kind by their numbers; None where it does not."""
    if sum(count * trial.work for trial, count in trials.items()) < _LEAST_WORK:
        return None
    fast = plain = 0.0
    for _ in range(_ROUNDS):
        try:
            times = [(count, *trial.seconds()) for trial, count in trials.items()]
        except Exception as error:  # as above
            return f"it fails: {one_sentence(error)[:200]}"
        fast, plain = (sum(one[0] * one[way] for one in times) for way in (1, 2))
        if fast <= _MOST_TIME * plain:
            return None
    return f"it takes {1000 * fast:.1f} ms forward and backward, plain PyTorch {1000 * plain:.1f} ms"


class _EnoughError(Exception):
    """All inputs are known."""


def _inputs(
    model: Any, head: nn.Module, modules: Sequence[nn.Module], arguments: Mapping[str, Any], device: Device
) -> dict[nn.Module, torch.Tensor]:
    """What each of these modules is given in a forward pass, those that it reaches."""
    found: dict[nn.Module, torch.Tensor] = {}
    divided = any(hasattr(module, "unshard") for module in model.modules())

    def keep(module: nn.Module, given: tuple[torch.Tensor, ...]) -> None:
        if given and given[0].numel():
            found.setdefault(module, given[0].detach())
        # Divided layers are gathered and let go of by hooks, which must all run.
        if len(found) == len(modules) and not divided:
            raise _EnoughError

    handles = [module.register_forward_pre_hook(keep) for module in modules]
    # Logits of all positions are the largest tensor there is, and nobody asks for them.
    handles.append(head.register_forward_pre_hook(lambda _module, given: (given[0][:, :1],)))
    set_training(model, on=False)
    try:
        with torch.no_grad(), device.autocast(), contextlib.suppress(_EnoughError):
            model(**arguments, use_cache=False)
    finally:
        for handle in handles:
            handle.remove()
    return found


@contextlib.contextmanager
def _whole(model: nn.Module, modules: Sequence[nn.Module]) -> Iterator[None]:
    """Within it, the layers of these modules are whole on each process, where they are divided over several."""
    layers: list[Any] = [
        layer for layer in model.modules() if hasattr(layer, "unshard") and set(modules) & set(layer.modules())
    ]
    for layer in layers:
        layer.unshard()
    try:
        yield
    finally:
        for layer in layers:
            layer.reshard()


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Trial:
    """A module and its input, computed in three ways."""

    path: FastPath
    module: nn.Module
    given: torch.Tensor
    device: Device

    @property
    def work(self) -> int:
        """Products of a weight and a value in a pass."""
        weights = sum(parameter.numel() for parameter in self.module.parameters())
        return self.given.numel() // self.given.shape[-1] * weights

    def refusal(self) -> str | None:
        """Why the fast path is left out for its numbers, None where nothing is against them."""
        try:
            with self._stirred():
                plain, wanted = self._plain(), self._written_out()
                try:
                    fast = self._fast()
                except Exception as error:  # a kernel may raise anything, and the run does without it
                    return f"it fails: {one_sentence(error)[:200]}"
                return self._compared(fast, plain, wanted)
        except Exception as error:  # such as too little memory for the wider type
            return f"it cannot be compared: {one_sentence(error)[:200]}"

    def seconds(self) -> tuple[float, float]:
        """Of a pass forward and backward: on the fast path, and of plain PyTorch."""
        with self._stirred():
            return self._seconds(self._fast), self._seconds(self._plain)

    @contextlib.contextmanager
    def _stirred(self) -> Iterator[None]:
        casts = disable_input_dtype_casting(self.module, active=self.device.dtype != torch.float32)
        with casts, self.path.stirred(self.module, self.given):
            yield

    def _plain(self) -> list[torch.Tensor]:
        with self.device.autocast():
            x = self.given.detach().requires_grad_()
            result = self.module(x)
        return self._with_gradients(result, (x, *self.path.parameters(self.module)))

    def _fast(self) -> list[torch.Tensor]:
        self.path.install(self.module)
        try:
            return self._plain()
        finally:
            self.path.remove(self.module)

    def _written_out(self) -> list[torch.Tensor]:
        wide = torch.float64 if self.device.dtype == torch.float32 else torch.float32
        x, *parameters = (
            tensor.detach().to(wide).requires_grad_() for tensor in (self.given, *self.path.parameters(self.module))
        )
        return self._with_gradients(self.path.written_out(self.module, x, parameters), (x, *parameters))

    def _with_gradients(self, result: torch.Tensor, of: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """The result, and the gradients of its product with random numbers, the same each time."""
        random = torch.Generator(result.device).manual_seed(0)
        weights = torch.randn(result.shape, generator=random, device=result.device, dtype=torch.float32)
        # Small, for sums over many rows must not leave fp16; and rounded alike for each type of results.
        weights = (weights / 64).to(self.device.dtype).to(result.dtype)
        return [result.detach(), *torch.autograd.grad(result, of, weights)]

    def _compared(
        self, fast: Sequence[torch.Tensor], plain: Sequence[torch.Tensor], wanted: Sequence[torch.Tensor]
    ) -> str | None:
        names = ("its result", "the gradient of its input", *["a gradient of its weights"] * (len(wanted) - 2))
        for name, ours, theirs, right in zip(names, fast, plain, wanted, strict=True):
            if (ours.dtype, ours.shape) != (theirs.dtype, theirs.shape):
                return f"{name} has another type or shape than plain PyTorch's"
            error, usual = _error(ours, right), _error(theirs, right)
            # Also for what is no number.
            if not error <= max(MOST_ERROR * usual, FLOOR[self.device.dtype]):
                return f"{name} errs by {error:.1e}, plain PyTorch's by {usual:.1e}"
        return None

    def _seconds(self, run: Callable[[], object]) -> float:
        self._wait()
        began = time.perf_counter()
        run()
        self._wait()
        return time.perf_counter() - began

    def _wait(self) -> None:
        if self.device.torch_device.type == "cuda":
            torch.cuda.synchronize(self.device.torch_device)


def _error(found: torch.Tensor, wanted: torch.Tensor) -> float:
    """Relative to the norm of what is wanted."""
    size = wanted.norm()
    return float((found.to(wanted.dtype) - wanted).norm() / (size if size > 0 else 1))
