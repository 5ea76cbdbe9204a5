"""What a fast path is: a faster way to compute some modules of a model."""

import contextlib
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import nn

Tensors = tuple[Any, ...]
"""Tensors, and what a module is given besides: that is passed on as it is."""
Result = torch.Tensor | tuple[torch.Tensor, ...]
Compute = Callable[[nn.Module, Sequence[Any]], Result]
Keep = Callable[[nn.Module, Tensors], None]


class Handle(Protocol):
    """Of a hook."""

    def remove(self) -> None:
        """Take it off."""


def first_input(module: nn.Module, keep: Keep) -> Handle:
    """Give `keep` what the module is called with, in its next passes."""
    return module.register_forward_pre_hook(lambda _module, given: keep(module, given[:1]))


def nothing_stirred(_module: nn.Module, _x: torch.Tensor) -> contextlib.AbstractContextManager[None]:
    """For modules whose parameters are what they are."""
    return contextlib.nullcontext()


@dataclass(frozen=True, slots=True, kw_only=True)
class FastPath:
    """A faster way to compute some modules of a model; `find` gives those that it suits, the same on every process.

    Modules of one `kind` compute alike. What is compared is the whole module, or where `plain` and `fast` are given the
    part of it that they compute from the `inputs`, which follow from what `watch` saw. The first `trained` of these
    have gradients, and so have the module's `parameters`. `written_out` computes the same in the type that it is given
    both in. `stirred` gives the parameters values that count, within it. `work` is in products of two numbers. What is
    `compiled` takes time before it saves any. Its numbers are compared with those of the `reference`, where `plain` is
    what other fast paths have a part in.
    """

    name: str
    find: Callable[[nn.Module], list[nn.Module]]
    install: Callable[[nn.Module], None]
    remove: Callable[[nn.Module], None]
    kind: Callable[[nn.Module], Hashable]
    written_out: Callable[[nn.Module, Sequence[Any], Sequence[Any]], Result]
    work: Callable[[nn.Module, Sequence[Any]], int]
    parameters: Callable[[nn.Module], tuple[nn.Parameter, ...]] = lambda _module: ()
    stirred: Callable[[nn.Module, torch.Tensor], contextlib.AbstractContextManager[None]] = nothing_stirred
    watch: Callable[[nn.Module, Keep], Handle] = first_input
    inputs: Callable[[nn.Module, Tensors], Tensors] = lambda _module, seen: seen
    plain: Callable[[nn.Module, Sequence[Any]], Result] = lambda module, inputs: module(*inputs)
    reference: Callable[[nn.Module, Sequence[Any]], Result] | None = None
    fast: Callable[[nn.Module, Sequence[Any]], Result] | None = None
    trained: int = 1
    compiled: bool = False
