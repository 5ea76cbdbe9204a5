"""How a run computes, in the fastest way that fits model and device: attention, fast paths, size of micro-batches."""

import dataclasses
import logging
from dataclasses import dataclass

import numpy as np

from lora_trainer.contract.config import Kernels, Packing, TrainingConfig
from lora_trainer.contract.run_plan import RunPlan
from lora_trainer.data.dataset import Data
from lora_trainer.data.store import Examples
from lora_trainer.model.attention import Attention, choose_attention
from lora_trainer.model.device import Device
from lora_trainer.model.fast_paths import TIMED_TOKENS, Chosen
from lora_trainer.model.flexible import KERNEL, choose_flex
from lora_trainer.model.loading import Adapted
from lora_trainer.model.rope import frequencies_of
from lora_trainer.ranks.collectives import Ranks
from lora_trainer.recipe.kernels import choose_kernels
from lora_trainer.recipe.settling import Settled
from lora_trainer.training.batches import Budget, token_budget
from lora_trainer.training.packs import accumulation
from lora_trainer.training.resume import Saved
from lora_trainer.training.schedule import total_steps

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Way:
    """The kernel of attention, for people; the fast paths; and what a micro-batch may hold."""

    attention: str
    kernels: Chosen
    budget: Budget


def way_of(
    settled: Settled,
    adapted: Adapted,
    data: Data,
    device: Device,
    ranks: Ranks,
    *,
    saved: Saved | None,
    goes_on: bool,
) -> Way:
    """Let the model compute so; all processes call it. `saved` is the checkpoint that the run begins with; it `goes_on`
    where it takes more of that than the weights, and then its packs stay as they were cut."""
    config = settled.config
    longest = max(rows.longest for rows in (data.training, data.evaluation))
    attention = _agreed(choose_attention(adapted.model, device, ranks, longest), ranks)
    kept = saved.budget_tokens if saved and goes_on else None
    budget = _micro_batches(settled, adapted, attention, data.stats.longest_tokens, device, kept=kept)
    kernel, left_out = attention.kernel, None
    # A later attempt does not begin to use FlexAttention.
    if budget.packed and config.training.kernels is Kernels.AUTO and (saved is None or KERNEL in saved.attention):
        kernel, left_out = _flexible(attention, adapted, data, device, ranks, saved=saved, tokens=budget.tokens)
    log.info("attention: %s", kernel)
    kernels = choose_kernels(
        config.training.kernels,
        adapted,
        data.training,
        device,
        ranks,
        packed=budget.packed,
        kept=saved.kernels if saved else None,
        tokens=budget.tokens,
        # FlexAttention within a compiled layer would be compiled for each pack anew.
        passes=0 if KERNEL in kernel else passes_of(config.training, data.training, budget, ranks),
        step=saved.checkpoint.step if saved else 0,
    )
    if left_out is not None:
        changed = kernels.changed_step if saved is None else saved.checkpoint.step
        kernels = dataclasses.replace(kernels, left_out=(*kernels.left_out, left_out), changed_step=changed)
    return Way(attention=kernel, kernels=kernels, budget=budget)


def _micro_batches(
    settled: Settled, adapted: Adapted, attention: Attention, longest: int, device: Device, *, kept: int | None
) -> Budget:
    """What they hold, and what of it is not as one might expect. `kept` is as in `budget_of`."""
    training = settled.config.training
    packed = training.packing is Packing.ENABLED
    if packed and not attention.packs:
        log.log(logging.WARNING if attention.broken else logging.INFO, "rows are padded: %s", attention.unpacked)
    packed = packed and attention.packs
    budget = budget_of(training.micro_batch_size, longest, packed=packed, device=device, plan=settled.plan, kept=kept)
    budget = dataclasses.replace(budget, frequencies=frequencies_of(adapted.model))
    log.info("micro-batches: at most %d tokens", budget.tokens)
    if budget.frequencies.at(longest) != budget.frequencies.at(1):
        log.info("rows for whose lengths this model has different rotary frequencies share no micro-batch")
    return budget


def _flexible(
    attention: Attention,
    adapted: Adapted,
    data: Data,
    device: Device,
    ranks: Ranks,
    *,
    saved: Saved | None,
    tokens: int,
) -> tuple[str, str | None]:
    """What computes attention where FlexAttention may, and why it is left out. A run that goes on does not time it."""

    def lengths() -> list[int]:
        ends = np.cumsum(data.training.lengths)
        fitting = int(np.searchsorted(ends, min(tokens, TIMED_TOKENS[device.torch_device.type]), "right"))
        return [int(length) for length in data.training.lengths[: max(1, fitting)]]

    found = choose_flex(adapted.model, attention, device, ranks, lengths if saved is None else None)
    if found.kernel is not None:
        return found.kernel, None
    reason = found.left_out
    if saved is not None:
        reason = f"{reason or 'there is none for this model here'}; it was taken up to step {saved.checkpoint.step}"
    if reason is None:
        return attention.kernel, None
    log.warning("kernel left out: %s-attention: %s", KERNEL, reason)
    return attention.kernel, f"{KERNEL}-attention: {reason}"


def passes_of(training: TrainingConfig, rows: Examples, budget: Budget, ranks: Ranks) -> int:
    """Micro-batches of a run that begins now, on the busiest process."""
    room = rows.room(packed=budget.packed)
    each = accumulation(room, budget, training.effective_batch_size, training.seed, ranks.world)
    return each * total_steps(training, len(rows))


def _agreed(attention: Attention, ranks: Ranks) -> Attention:
    """Where one process cannot pack rows, none does: they cut the same micro-batches."""
    return next((one for one in ranks.gather(attention, Attention) if not one.packs), attention)


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
