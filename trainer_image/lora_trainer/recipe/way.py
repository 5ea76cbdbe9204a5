"""How a run computes, in the fastest way that fits model and device: attention, fast paths, size of micro-batches."""

import dataclasses
import logging
from dataclasses import dataclass

from lora_trainer.contract.config import Packing
from lora_trainer.data.dataset import Data
from lora_trainer.model.attention import choose_attention
from lora_trainer.model.device import Device
from lora_trainer.model.fast_paths import Chosen
from lora_trainer.model.loading import Adapted
from lora_trainer.ranks.collectives import Ranks
from lora_trainer.recipe.kernels import choose_kernels
from lora_trainer.recipe.settling import Settled
from lora_trainer.training.batches import Budget, token_budget
from lora_trainer.training.resume import Saved

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Way:
    """The kernel of attention, for people; the fast paths; and what a micro-batch may hold."""

    attention: str
    kernels: Chosen
    budget: Budget


def way_of(settled: Settled, adapted: Adapted, data: Data, device: Device, ranks: Ranks, *, saved: Saved | None) -> Way:
    """Let the model compute so; all processes call it. `saved` is the checkpoint that the run goes on from."""
    config, plan, longest = settled.config, settled.plan, data.stats.longest_tokens
    attention = choose_attention(adapted.model, device)
    log.info("attention: %s", attention.kernel)
    packed = config.training.packing is Packing.ENABLED
    if packed and not attention.packs:
        log.log(logging.WARNING if attention.broken else logging.INFO, "rows are padded: %s", attention.unpacked)
    budget = Budget.of(
        config.training.micro_batch_size,
        longest,
        packed=packed and attention.packs,
        tokens=token_budget(device.torch_device),
    )
    if plan is not None and plan.fits and plan.micro_batch_tokens < budget.tokens:
        budget = dataclasses.replace(budget, tokens=max(plan.micro_batch_tokens, longest))
    kernels = choose_kernels(
        config.training.kernels,
        adapted,
        data.training,
        device,
        ranks,
        packed=budget.packed,
        kept=saved.kernels if saved else None,
        step=saved.checkpoint.step if saved else 0,
    )
    return Way(attention=attention.kernel, kernels=kernels, budget=budget)
