"""Negative log-likelihoods of the learned tokens, and nothing computed for the others."""

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from lora_trainer.batches import Batch
from lora_trainer.device import Device


def token_losses(model: Any, head: nn.Module, batch: Batch, device: Device) -> torch.Tensor:
    """Loss of each learned token, in nats, fp32, shape (learned tokens,).

    The output embedding is the largest matrix of a small model and its logits the largest activation of any: hidden
    states of positions whose next token is not learned are dropped before it.
    """
    with device.autocast(), _only(head, batch.learned):
        logits = model(input_ids=batch.input_ids, use_cache=False).logits
    return nn.functional.cross_entropy(logits.float(), batch.targets, reduction="none")


@contextlib.contextmanager
def _only(head: nn.Module, learned: torch.Tensor) -> Iterator[None]:
    def select(_module: nn.Module, inputs: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor]:
        return (inputs[0][:, :-1][learned],)

    handle = head.register_forward_pre_hook(select)
    try:
        yield
    finally:
        handle.remove()
