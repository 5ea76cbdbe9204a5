"""The arithmetic of one optimizer step: gradients of the mean loss per target token, micro-batch by micro-batch.

Nothing in it waits for the device, which computes while the next micro-batch is prepared.
"""

import math
from collections.abc import Mapping, Sequence

import torch

from lora_trainer.data.tokens import Example
from lora_trainer.distributed.collectives import Ranks
from lora_trainer.model.device import Device
from lora_trainer.model.loading import Adapted
from lora_trainer.train.batches import MicroBatchLimit, collate, idle
from lora_trainer.train.loss import token_losses
from lora_trainer.train.objective import Objective
from lora_trainer.train.packs import cut


def run_step(
    adapted: Adapted,
    examples: Sequence[Example],
    *,
    objective: Objective,
    weights: Mapping[str, float],
    limit: MicroBatchLimit,
    device: Device,
    scaler: torch.amp.GradScaler,
    ranks: Ranks,
) -> torch.Tensor:
    """Add the gradients of the objective's terms over this process's `examples`, divided by their weights; that share
    of the loss, fp64, on the device.

    `weights` are those of the whole step, over all processes. Averaging the means of micro-batches would weigh tokens
    of short answers more. In 16 bits the caller has `set_input_casts` off. Raises `torch.OutOfMemoryError`
    with gradients half done.
    """
    share = torch.zeros((), dtype=torch.float64, device=device.torch_device)
    # A scaler that has scaled nothing refuses to undo it, and a process may have no rows in its first step.
    scaler.scale(share)
    lengths = [example.room(packed=limit.packed) for example in examples]
    parts = cut(lengths, limit)
    rounds = ranks.rounds(len(parts))
    if ranks.fsdp:
        parts = cut(lengths, limit, at_least=rounds)
    for part in range(rounds):
        mine = [examples[row] for row in parts[part]] if part < len(parts) else []
        batch = collate(mine or [idle(objective.sequences)], device.torch_device, packed=limit.packed)
        terms = objective.terms(token_losses(adapted.model, adapted.head, batch, device), batch)
        loss = _sum([term.sum() / (weights[name] if mine else math.inf) for name, term in terms.items()])
        torch.autograd.backward(scaler.scale(loss))
        share += loss.detach()
    return share


def _sum(terms: Sequence[torch.Tensor]) -> torch.Tensor:
    first, *others = terms
    for other in others:
        first = first + other
    return first
