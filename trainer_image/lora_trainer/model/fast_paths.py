"""Fast paths that prove themselves: each is compared with plain PyTorch on the device at hand before it is trusted.

The comparison takes the first module of each kind that the model has, with the input that a real pack gives it.
"""

import contextlib
import time
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from peft.helpers import disable_input_dtype_casting
from torch import nn

from lora_trainer.errors import out_of_memory
from lora_trainer.model import compiled, gates, liger, lora_kernel, repaying
from lora_trainer.model.device import Device
from lora_trainer.model.fast_path import Compute, FastPath, Result, Tensors
from lora_trainer.model.loading import set_training
from lora_trainer.model.refusal import refusal_of
from lora_trainer.model.rounding import Found, drawn_like, objection, wider

FLOOR = {torch.float32: 2.0**-20, torch.bfloat16: 2.0**-8, torch.float16: 2.0**-11}
"""Relative errors that are never held against a fast path: for 16 bits the rounding of one number, for fp32 sixteen
such roundings, since libraries add up in different orders."""
_MOST_TIME, _ROUNDS = 1.1, 7
"""A fast path is slower that takes so many times plain PyTorch's time in each of so many rounds, and not in one of them
less: timings of a busy machine differ by that much, and two runs are to choose alike."""
_LEAST_WORK = 2**30
"""Products of a weight and a value, over all modules, below which nothing is timed: calls then take longer than what
they compute, and a clock would choose by chance."""
MOST_TOKENS = {"cpu": 256, "cuda": 1024}
"""Of the pack that numbers are compared on, by the kind of device: more would take longer and show nothing else."""
TIMED_TOKENS = {"cpu": 256, "cuda": 8192}
"""The most that times are compared on, where the run's micro-batches have as many: with few tokens a GPU is faster than
its kernels are launched, and what moves fewer bytes would count as slower. On a CPU times grow with the tokens."""


FUSED_ADAPTER = FastPath(
    name="fused-adapter",
    find=lora_kernel.plain_modules,
    install=lora_kernel.install,
    remove=lora_kernel.remove,
    kind=lora_kernel.kind,
    written_out=lora_kernel.written_out,
    work=lora_kernel.work,
    parameters=lora_kernel.factors,
    stirred=lora_kernel.stirred,
)
LIGER_RMS_NORM = FastPath(
    name="liger-rms-norm",
    find=liger.norms,
    install=liger.install_norm,
    remove=liger.remove,
    kind=liger.norm_kind,
    written_out=liger.wide_norm,
    work=liger.work,
)
LIGER_ROPE = FastPath(
    name="liger-rope",
    find=liger.rotating,
    install=liger.install_rotation,
    remove=liger.remove,
    kind=liger.rotation_kind,
    written_out=lambda module, inputs, _: liger.plain_rotation(module, inputs),
    work=liger.work,
    watch=liger.watch_rotation,
    plain=liger.plain_rotation,
    fast=lambda _module, inputs: liger.rotate(*inputs),
    trained=2,
)
LIGER_SWIGLU = FastPath(
    name="liger-swiglu",
    find=liger.gated_mlps,
    install=liger.install_gate,
    remove=liger.remove,
    kind=gates.kind,
    written_out=lambda module, inputs, _: gates.plain(module, inputs),
    work=liger.work,
    inputs=gates.inputs,
    plain=gates.plain,
    fast=lambda _module, inputs: liger.gate(*inputs),
    trained=2,
)
RECOMPUTED_SWIGLU = replace(
    LIGER_SWIGLU,
    name="recomputed-swiglu",
    find=gates.on_cpu,
    install=lambda module: gates.install(module, gates.recomputed),
    fast=lambda _module, inputs: gates.recomputed(*inputs),
)
COMPILED_LAYER = FastPath(
    name="compiled-layer",
    find=compiled.layers,
    install=compiled.install,
    remove=compiled.remove,
    kind=compiled.kind,
    written_out=compiled.written_out,
    work=compiled.work,
    parameters=compiled.parameters,
    stirred=compiled.stirred,
    watch=compiled.watch,
    inputs=compiled.inputs,
    plain=compiled.computed,
    reference=compiled.by_plain_pytorch,
    compiled=True,
)
ALL = (FUSED_ADAPTER, LIGER_RMS_NORM, LIGER_ROPE, LIGER_SWIGLU, RECOMPUTED_SWIGLU, COMPILED_LAYER)
"""In the order in which they are tried, each in a model that computes with those before it."""


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


Trials = Mapping["Trial", int]
"""Each with the number of modules that it stands for."""


def prove(
    path: FastPath,
    model: Any,
    head: nn.Module,
    arguments: Mapping[str, Any],
    device: Device,
    *,
    timed: bool,
    at_size: Mapping[str, Any] | None = None,
    passes: repaying.Passes = repaying.Passes(),  # noqa: B008 - frozen
) -> Verdict:
    """Compare a fast path with plain PyTorch on the pack that `arguments` are, with `timed` in time, too: on the pack
    of the run's size that `at_size` are, where there is one, memory suffices, and layers are whole. What is compiled
    must repay that in `passes` micro-batches.

    Nothing is installed afterwards, and the model is in evaluation mode. Where layers are divided over processes, all
    of these call it: one that lacks memory for a larger pack would leave the others in a layer's collective.
    """
    kinds: dict[Hashable, list[nn.Module]] = {}
    for module in path.find(model):
        kinds.setdefault(path.kind(module), []).append(module)
    if not kinds:
        return Verdict(path=path, modules=())
    modules = [same[0] for same in kinds.values()]
    given = _seen(path, modules, model, head, arguments, device=device)
    larger = at_size if timed and not _is_divided(model) else None
    large = _seen_at_size(path, modules, model, head, larger, device=device)
    # What the pack does not reach, such as an expert without tokens, is not proven.
    proven = [same for same in kinds.values() if same[0] in given]
    if not proven:
        return Verdict(path=path, modules=(), refusal="no row at hand reaches a module that it suits")
    trials = {Trial(path=path, module=same[0], seen=given[same[0]], device=device): len(same) for same in proven}
    with _whole(model, [same[0] for same in proven]):
        sized = {replace(one, seen=large.get(one.module, one.seen)): count for one, count in trials.items()}
        judged = _repaid if path.compiled else _at_its_speed
        refusal = judged(trials, sized, passes) if timed else _wrong(trials)
    return Verdict(path=path, modules=tuple(module for same in proven for module in same), refusal=refusal)


def _wrong(trials: Trials) -> str | None:
    return next((found for trial in trials if (found := trial.refusal()) is not None), None)


def _at_its_speed(trials: Trials, sized: Trials, _passes: repaying.Passes) -> str | None:
    """What is against the numbers of a fast path, and then against its time."""
    wrong = _wrong(trials)
    return repaying.measured(_slower, sized, trials, _name(trials)) if wrong is None else wrong


def _repaid(trials: Trials, sized: Trials, passes: repaying.Passes) -> str | None:
    """The same of what is compiled, which is left where it cannot pay, whatever it saves. The first comparison of
    numbers compiles it, and takes hardly longer."""
    short = repaying.measured(lambda given: repaying.too_short(given, passes.count), sized, trials, _name(trials))
    short = passes.agreed(short)
    if short is not None:
        return short
    began = time.perf_counter()
    wrong = _wrong(trials)
    took = time.perf_counter() - began
    if wrong is not None:
        return wrong
    return repaying.measured(lambda given: repaying.unpaid(given, took, passes.count), sized, trials, _name(trials))


def _name(trials: Trials) -> str:
    return next(iter(trials)).path.name


def _slower(trials: Trials) -> str | None:
    """Why a fast path counts as slower, over modules of each kind by their numbers; None where it does not."""
    if sum(count * trial.work for trial, count in trials.items()) < _LEAST_WORK:
        return None
    fast = plain = 0.0
    with contextlib.ExitStack() as stack:
        given = {trial: stack.enter_context(trial.stirred()) for trial in trials}
        for _ in range(_ROUNDS):
            times = [(count, *trial.seconds(given[trial])) for trial, count in trials.items()]
            fast, plain = (sum(one[0] * one[way] for one in times) for way in (1, 2))
            if fast <= _MOST_TIME * plain:
                return None
    return f"it takes {1000 * fast:.1f} ms forward and backward, plain PyTorch {1000 * plain:.1f} ms"


def _is_divided(model: nn.Module) -> bool:
    return any(hasattr(module, "unshard") for module in model.modules())


def _own(value: Any) -> Any:
    return value.detach().clone() if isinstance(value, torch.Tensor) else value


class _EnoughError(Exception):
    """All inputs are known."""


def _seen(
    path: FastPath,
    modules: Sequence[nn.Module],
    model: Any,
    head: nn.Module,
    arguments: Mapping[str, Any],
    *,
    device: Device,
) -> dict[nn.Module, Tensors]:
    """What each of these modules is given in a forward pass, those that it reaches."""
    found: dict[nn.Module, Tensors] = {}
    divided = _is_divided(model)

    def keep(module: nn.Module, given: Tensors) -> None:
        if given and given[0].numel():
            found.setdefault(module, tuple(_own(one) for one in given))
        # Divided layers are gathered and let go of by hooks, which must all run.
        if len(found) == len(modules) and not divided:
            raise _EnoughError

    handles = [path.watch(module, keep) for module in modules]
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


def _seen_at_size(
    path: FastPath,
    modules: Sequence[nn.Module],
    model: Any,
    head: nn.Module,
    arguments: Mapping[str, Any] | None,
    *,
    device: Device,
) -> dict[nn.Module, Tensors]:
    """The same for a pack of the run's size; nothing where there is none, or memory does not suffice for it."""
    if arguments is None:
        return {}
    try:
        return _seen(path, modules, model, head, arguments, device=device)
    except RuntimeError as error:
        if not out_of_memory(error):
            raise
        return {}


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
class Trial:
    """A module and what it was given, computed in three ways."""

    path: FastPath
    module: nn.Module
    seen: Tensors
    device: Device

    @property
    def work(self) -> int:
        """Products of two numbers in a pass."""
        return self.path.work(self.module, self.seen)

    def refusal(self) -> str | None:
        """Why the fast path is left out for its numbers, None where nothing is against them."""
        trouble = "cannot be compared"  # as where memory does not suffice for the wider type
        try:
            with self.stirred() as inputs:
                plain = self._computed(self.path.reference or self.path.plain, inputs)
                wanted = self._written_out(inputs)
                trouble = "fails"
                fast = self._fast(inputs)
                trouble = "cannot be compared"
                return objection(fast, plain, wanted, FLOOR[self.device.dtype])
        except Exception as error:
            return refusal_of(error, self.path.name, trouble)

    def seconds(self, inputs: Tensors) -> tuple[float, float]:
        """Of a pass forward and backward, within `stirred`: on the fast path, and of plain PyTorch."""
        return self._seconds(lambda: self._fast(inputs)), self._seconds(lambda: self._plain(inputs))

    def plain_seconds(self, inputs: Tensors) -> float:
        """Of the same of plain PyTorch alone."""
        return self._seconds(lambda: self._plain(inputs))

    @contextlib.contextmanager
    def stirred(self) -> Iterator[Tensors]:
        """The inputs of what is compared, and within it the module as it is compared."""
        casts = disable_input_dtype_casting(self.module, active=self.device.dtype != torch.float32)
        with casts, self.path.stirred(self.module, self.seen[0]):
            with torch.no_grad(), self.device.autocast():
                inputs = self.path.inputs(self.module, self.seen)
            yield inputs

    def _plain(self, inputs: Tensors) -> Found:
        return self._computed(self.path.plain, inputs)

    def _fast(self, inputs: Tensors) -> Found:
        if self.path.fast is not None:
            return self._computed(self.path.fast, inputs)
        self.path.install(self.module)
        try:
            return self._computed(self.path.plain, inputs)
        finally:
            self.path.remove(self.module)

    def _computed(self, compute: Compute, inputs: Tensors) -> Found:
        given = self._leaves(inputs)
        with self.device.autocast():
            # Copies: a kernel may write over what it is given.
            result = compute(self.module, [one.clone() if isinstance(one, torch.Tensor) else one for one in given])
        return self._with_gradients(result, given, self.path.parameters(self.module))

    def _written_out(self, inputs: Tensors) -> Found:
        wide = wider(self.device.dtype)
        given = self._leaves(one.to(wide) if isinstance(one, torch.Tensor) else one for one in inputs)
        parameters = [one.detach().to(wide).requires_grad_() for one in self.path.parameters(self.module)]
        return self._with_gradients(self.path.written_out(self.module, given, parameters), given, parameters)

    def _leaves(self, inputs: Iterable[Any]) -> list[Any]:
        return [
            one.detach().requires_grad_(number < self.path.trained) if isinstance(one, torch.Tensor) else one
            for number, one in enumerate(inputs)
        ]

    def _with_gradients(
        self, result: Result, given: Sequence[torch.Tensor], parameters: Sequence[torch.Tensor]
    ) -> Found:
        """The results, and the gradients of their product with random numbers, the same each time."""
        results = (result,) if isinstance(result, torch.Tensor) else result
        random = torch.Generator(results[0].device).manual_seed(0)
        weights = [drawn_like(one, self.device.dtype, random) for one in results]
        of = (*given[: self.path.trained], *parameters)
        gradients = torch.autograd.grad(results, of, weights)
        return [
            *(("its result", one.detach()) for one in results),
            *(("the gradient of its input", one.detach()) for one in gradients[: self.path.trained]),
            *(("a gradient of its weights", one.detach()) for one in gradients[self.path.trained :]),
        ]

    def _seconds(self, run: Callable[[], object]) -> float:
        self._wait()
        began = time.perf_counter()
        run()
        self._wait()
        return time.perf_counter() - began

    def _wait(self) -> None:
        if self.device.torch_device.type == "cuda":
            torch.cuda.synchronize(self.device.torch_device)
