"""Negative log-likelihoods of the target tokens, and nothing computed for the others."""

import contextlib
from collections.abc import Iterator
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import nn
from torch.nn.functional import cross_entropy

from lora_trainer.model.device import Device
from lora_trainer.model.products import product
from lora_trainer.plan.limits import MOST_LOGITS
from lora_trainer.train.batches import Batch

_LAST: WeakKeyDictionary[nn.Module, bool] = WeakKeyDictionary()


def token_losses(model: Any, head: nn.Module, batch: Batch, device: Device) -> torch.Tensor:
    """Loss of each target token, in nats, fp32, shape (target tokens,).

    The output embedding is the largest matrix of a small model and its logits the largest activation of any: hidden
    states of positions whose next token is not learned are dropped before it. Where nothing follows the output
    embedding, its logits are computed a few at a time, in the forward pass alone.
    """
    if _is_plain(head, device) and _is_last(model, head, batch, device):
        with device.autocast(), _selecting(head, batch.target_positions), _passing(head):
            hidden = model(**batch.arguments, use_cache=False).logits
        found: torch.Tensor = _HeadLoss.apply(hidden.to(head.weight.dtype), head.weight, head.bias, batch.targets)
        return found
    with device.autocast(), _selecting(head, batch.target_positions):
        logits = model(**batch.arguments, use_cache=False).logits
    return cross_entropy(logits.float(), batch.targets, reduction="none")


def _is_plain(head: nn.Module, device: Device) -> bool:
    """Frozen and in the type that is computed in: one that was trained whole is fp32, and its logits are rounded in the
    verification as they were in the training."""
    frozen = not any(parameter.requires_grad for parameter in head.parameters())
    return type(head) is nn.Linear and frozen and head.weight.dtype == device.dtype


def _is_last(model: Any, head: nn.Module, batch: Batch, device: Device) -> bool:
    """Whether the model's logits are what the output embedding gives: Gemma 2 caps them, Granite divides them.

    Tried once, on two tokens, since models name such things in many ways.
    """
    if head not in _LAST:
        outputs: list[torch.Tensor] = []
        handle = head.register_forward_hook(lambda _module, _inputs, output: outputs.append(output))
        try:
            # Dropout draws here, too: the step at hand must not draw otherwise because it is the first of its process.
            gpus = [device.torch_device] if device.torch_device.type == "cuda" else []
            with torch.no_grad(), device.autocast(), torch.random.fork_rng(devices=gpus):
                logits = model(input_ids=batch.input_ids[:1, :2], use_cache=False).logits
        finally:
            handle.remove()
        _LAST[head] = len(outputs) == 1 and torch.equal(logits.float(), outputs[0].float())
    return _LAST[head]


@contextlib.contextmanager
def _selecting(head: nn.Module, target_positions: torch.Tensor) -> Iterator[None]:
    """Within it, `head` is given the hidden states of learned positions only, shape (target tokens, size). By their
    numbers: how many a mask selects, only the device would know."""

    def select(_module: nn.Module, inputs: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor]:
        return (inputs[0].flatten(0, 1)[target_positions],)

    handle = head.register_forward_pre_hook(select)
    try:
        yield
    finally:
        handle.remove()


@contextlib.contextmanager
def _passing(head: nn.Module) -> Iterator[None]:
    """Within it, `head` passes its input on."""
    vars(head)["forward"] = lambda hidden: hidden
    try:
        yield
    finally:
        del vars(head)["forward"]


class _HeadLoss(torch.autograd.Function):
    """Cross-entropy of a frozen linear map. The gradient of each token's loss is taken while its logits exist."""

    @staticmethod
    def forward(
        ctx: Any, hidden: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, targets: torch.Tensor
    ) -> torch.Tensor:
        """Shapes: `hidden` (tokens, size), `weight` (vocabulary, size), `targets` (tokens,), result (tokens,)."""
        losses = torch.empty(len(hidden), dtype=torch.float32, device=hidden.device)
        gradients = torch.empty_like(hidden) if ctx.needs_input_grad[0] else None
        step = max(1, MOST_LOGITS[hidden.device.type] // len(weight))
        for start in range(0, len(hidden), step):
            part = slice(start, start + step)
            # By a function of its own: what one part computed with is gone before the next one begins.
            into = losses[part], None if gradients is None else gradients[part]
            _compute(hidden[part], weight, bias, targets[part], into=into)
        ctx.save_for_backward(gradients)
        return losses

    @staticmethod
    def backward(ctx: Any, losses: torch.Tensor) -> tuple[torch.Tensor, None, None, None]:
        """Each token's gradient by the weight of its loss."""
        (gradients,) = ctx.saved_tensors
        return (gradients * losses[:, None]).to(gradients.dtype), None, None, None


def _compute(
    hidden: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    targets: torch.Tensor,
    *,
    into: tuple[torch.Tensor, torch.Tensor | None],
) -> None:
    """Write losses of a few tokens, and the gradients of their hidden states where they are asked for."""
    losses, gradients = into
    logits = product(hidden, weight, bias).float()
    largest = logits.amax(dim=1, keepdim=True)
    chosen = logits.gather(1, targets[:, None])
    weights = logits.sub_(largest).exp_()
    total = weights.sum(dim=1, keepdim=True)
    losses.copy_((total.log() + largest - chosen)[:, 0])
    if gradients is not None:
        # softmax - one-hot, taken in fp32: in 16 bits little would be left of it where the softmax is near 1.
        shares = weights.div_(total)
        shares[torch.arange(len(shares), device=shares.device), targets] -= 1
        gradients.copy_(product(shares.to(weight.dtype), weight.T))
