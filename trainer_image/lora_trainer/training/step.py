"""The arithmetic of one optimizer step: gradients of the mean loss per learned token, micro-batch by micro-batch."""

import math
from collections.abc import Sequence

import torch
from peft.helpers import disable_input_dtype_casting

from lora_trainer.data.tokens import Example
from lora_trainer.model.device import Device
from lora_trainer.model.loading import Adapted
from lora_trainer.ranks.collectives import Ranks
from lora_trainer.training.batches import IDLE, Budget, collate, micro_batches
from lora_trainer.training.loss import token_losses


def run_step(
    adapted: Adapted,
    examples: Sequence[Example],
    *,
    targets: int,
    budget: Budget,
    device: Device,
    scaler: torch.amp.GradScaler,
    ranks: Ranks,
) -> float:
    """Add the gradients of the summed loss of this process's `examples`, divided by `targets`; that share of the loss.

    `targets` are the learned tokens of the whole step, over all processes. Averaging the means of micro-batches would
    weigh tokens of short answers more. Raises `torch.OutOfMemoryError` with gradients half done.
    """
    share = 0.0
    parts = micro_batches([example.length for example in examples], budget)
    for part in range(ranks.rounds(len(parts))):
        idle = part >= len(parts)
        batch = collate(
            [IDLE] if idle else [examples[row] for row in parts[part]], device.torch_device, packed=budget.packed
        )
        # PEFT keeps adapters in fp32 and would cast their inputs to fp32 and keep the copies; autocast does without.
        # The backward pass too: with checkpointing it runs the forward pass again, which must do the same.
        with disable_input_dtype_casting(adapted.model, active=device.dtype != torch.float32):
            loss = token_losses(adapted.model, adapted.head, batch, device).sum() / (math.inf if idle else targets)
            torch.autograd.backward(scaler.scale(loss))
        share += float(loss.detach())
    return share
