"""How a run computes, in the fastest way that fits model and device: attention, fast paths, size of micro-batches."""

import dataclasses
import logging
from dataclasses import dataclass

from lora_trainer.contract.config import Kernels, Packing
from lora_trainer.contract.run_plan import RunPlan
from lora_trainer.data.dataset import Data
from lora_trainer.model.attention import ROWS
from lora_trainer.model.device import Device
from lora_trainer.model.fast import VARLEN, isolate
from lora_trainer.model.loading import Adapted
from lora_trainer.model.rope import frequencies_of
from lora_trainer.ranks.collectives import Ranks
from lora_trainer.recipe.settling import Settled, settled_plainly
from lora_trainer.training.batches import Budget, token_budget
from lora_trainer.training.resume import Saved
from lora_trainer.training.self_check import Taken, take_fast

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Way:
    """The kernel of attention, for people; what is fast; and what a micro-batch may hold."""

    attention: str
    kernels: Taken
    budget: Budget


def way_of(
    settled: Settled,
    adapted: Adapted,
    data: Data,
    device: Device,
    ranks: Ranks,
    *,
    start: Saved | None = None,
) -> Way:
    """Let the model compute so; all processes call it. `start` is the checkpoint that the run begins with, whose packs
    stay as they were cut."""
    longest = max(rows.longest for rows in (data.training, data.evaluation))
    packs = isolate(adapted.model, longest)
    kept = start.budget_tokens if start else None
    budget = _micro_batches(settled, adapted, data, device, packs=packs, kept=kept)
    wanted, kernels = settled.config.training.kernels is Kernels.AUTO, Taken()
    if wanted:
        kernels = take_fast(adapted, data.training, budget, device, ranks)
    attention = {ROWS: "sdpa"}.get(own := adapted.model.config._attn_implementation, own)
    if VARLEN in kernels.entries:
        attention = VARLEN.name
    elif kernels.left_out:
        plain = settled_plainly(settled, data, adapted.checkpointing)
        again = _micro_batches(plain, adapted, data, device, packs=packs, kept=kept)
        budget = dataclasses.replace(budget, tokens=min(budget.tokens, again.tokens))
    log.info("micro-batches: at most %d tokens", budget.tokens)
    log.info("attention: %s", attention)
    plainly = "plain PyTorch alone" if wanted else "plain PyTorch alone, as training.kernels asks for"
    log.info("kernels: %s", ", ".join(kernels.names) or plainly)
    return Way(attention=attention, kernels=kernels, budget=budget)


def _micro_batches(
    settled: Settled, adapted: Adapted, data: Data, device: Device, *, packs: bool, kept: int | None
) -> Budget:
    """What they hold, and what of it is not as one might expect. `kept` is as in `budget_of`."""
    training, longest = settled.config.training, data.stats.longest_tokens
    packed = training.packing is Packing.ENABLED
    if packed and not packs:
        log.info("rows are padded: this kind of model is not known to keep the rows of a pack apart")
    packed = packed and packs
    budget = budget_of(training.micro_batch_size, longest, packed=packed, device=device, plan=settled.plan, kept=kept)
    budget = dataclasses.replace(budget, frequencies=frequencies_of(adapted.model))
    if budget.frequencies.at(longest) != budget.frequencies.at(1):
        log.info("rows for whose lengths this model has different rotary frequencies share no micro-batch")
    return budget


def budget_of(
    micro_batch_size: int | None, longest: int, *, packed: bool, device: Device, plan: RunPlan | None, kept: int | None
) -> Budget:
    """What a micro-batch may hold: as many rows as are asked for, else what fits by the plan, and no more of either
    than fits. Without a plan that fits a GPU it is a number for all devices. `kept` is what the checkpoint had that
    the run goes on from: it is not exceeded, since packs are cut by it; that it is not reached is logged."""
    budget = Budget.of(micro_batch_size, longest, packed=packed, tokens=token_budget(device.torch_device))
    tokens = budget.tokens
    if plan is not None and plan.fits:
        fitting = plan.micro_batch_tokens
        tokens = fitting if micro_batch_size is None else min(tokens, fitting)
    kept = kept if micro_batch_size is None else None
    if kept is not None:
        tokens = min(tokens, kept)
    if tokens != budget.tokens:
        budget = dataclasses.replace(budget, tokens=max(tokens, longest))
    if kept is not None and budget.tokens < kept:
        log.warning(
            "micro-batches hold fewer tokens than the checkpoint's did: other rows are computed together, and the last "
            "digits of the result change"
        )
    return budget
