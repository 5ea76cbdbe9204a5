"""The arithmetic of one optimizer step: gradients of the mean loss per learned token, micro-batch by micro-batch.

Nothing in it waits for the device, which computes while the next micro-batch is prepared.
"""

import math
from collections.abc import Sequence

import torch

from lora_trainer.data.tokens import Example
from lora_trainer.model.device import Device
from lora_trainer.model.loading import Adapted
from lora_trainer.ranks.collectives import Ranks
from lora_trainer.training.batches import IDLE, Budget, collate
from lora_trainer.training.loss import token_losses
from lora_trainer.training.packs import cut


def run_step(
    adapted: Adapted,
    examples: Sequence[Example],
    *,
    targets: int,
    budget: Budget,
    device: Device,
    scaler: torch.amp.GradScaler,
    ranks: Ranks,
) -> torch.Tensor:
    """Add the gradients of the summed loss of this process's `examples`, divided by `targets`; that share of the loss,
    fp64, on the device.

    `targets` are the learned tokens of the whole step, over all processes. Averaging the means of micro-batches would
    weigh tokens of short answers more. In 16 bits the caller has `set_input_casts` off. Raises `torch.OutOfMemoryError`
    with gradients half done.
    """
    share = torch.zeros((), dtype=torch.float64, device=device.torch_device)
    # A scaler that has scaled nothing refuses to undo it, and a process may have no rows in its first step.
    scaler.scale(share)
    lengths = [example.length for example in examples]
    parts = cut(lengths, budget)
    rounds = ranks.rounds(len(parts))
    if ranks.lockstep:
        parts = cut(lengths, budget, at_least=rounds)
    for part in range(rounds):
        idle = part >= len(parts)
        batch = collate(
            [IDLE] if idle else [examples[row] for row in parts[part]], device.torch_device, packed=budget.packed
        )
        loss = token_losses(adapted.model, adapted.head, batch, device).sum() / (math.inf if idle else targets)
        torch.autograd.backward(scaler.scale(loss))
        share += loss.detach()
    return share
