"""How a run computes, in the fastest way that fits model and device: attention, fast paths, size of micro-batches."""

import dataclasses
import logging
from dataclasses import dataclass

from lora_trainer.data.dataset import Data
from lora_trainer.distributed.collectives import Ranks
from lora_trainer.model.attention import ROWS
from lora_trainer.model.device import Device
from lora_trainer.model.fast import VARLEN, isolate
from lora_trainer.model.loading import Adapted
from lora_trainer.model.rope import frequencies_of
from lora_trainer.spec.config import Kernels, Packing
from lora_trainer.spec.run_plan import RunPlan
from lora_trainer.train.batches import MicroBatchLimit, token_limit
from lora_trainer.train.resolve_auto import RunSetup, plain_setup
from lora_trainer.train.resume import Saved
from lora_trainer.train.self_check import Taken, take_fast

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class ExecutionConfig:
    """The kernel of attention, for people; what is fast; and what a micro-batch may hold."""

    attention: str
    kernels: Taken
    limit: MicroBatchLimit


def choose_execution(
    setup: RunSetup,
    adapted: Adapted,
    data: Data,
    device: Device,
    ranks: Ranks,
    *,
    start: Saved | None = None,
) -> ExecutionConfig:
    """Let the model compute so; all processes call it. `start` is the checkpoint that the run begins with, whose packs
    stay as they were cut."""
    longest = max(rows.longest for rows in (data.training, data.evaluation))
    packs = isolate(adapted.model, longest)
    kept = start.limit_tokens if start else None
    limit = _micro_batches(setup, adapted, data, device, packs=packs, kept=kept)
    wanted, kernels = setup.config.training.kernels is Kernels.AUTO, Taken()
    if wanted:
        kernels = take_fast(adapted, data.training, limit, device, ranks)
    attention = {ROWS: "sdpa"}.get(own := adapted.model.config._attn_implementation, own)
    if VARLEN in kernels.entries:
        attention = VARLEN.name
    elif kernels.left_out:
        plain = plain_setup(setup, data, adapted.checkpointing)
        again = _micro_batches(plain, adapted, data, device, packs=packs, kept=kept)
        limit = dataclasses.replace(limit, tokens=min(limit.tokens, again.tokens))
    log.info("micro-batches: at most %d tokens", limit.tokens)
    log.info("attention: %s", attention)
    plainly = "plain PyTorch alone" if wanted else "plain PyTorch alone, as training.kernels asks for"
    log.info("kernels: %s", ", ".join(kernels.names) or plainly)
    return ExecutionConfig(attention=attention, kernels=kernels, limit=limit)


def _micro_batches(
    setup: RunSetup, adapted: Adapted, data: Data, device: Device, *, packs: bool, kept: int | None
) -> MicroBatchLimit:
    """What they hold, and what of it is not as one might expect. `kept` is as in `limit_of`."""
    training, longest = setup.config.training, data.stats.longest_tokens
    packed = training.packing is Packing.ENABLED
    if packed and not packs:
        log.info("rows are padded: this kind of model is not known to keep the rows of a pack apart")
    packed = packed and packs
    limit = limit_of(training.micro_batch_size, longest, packed=packed, device=device, plan=setup.plan, kept=kept)
    limit = dataclasses.replace(limit, frequencies=frequencies_of(adapted.model))
    if limit.frequencies.at(longest) != limit.frequencies.at(1):
        log.info("rows for whose lengths this model has different rotary frequencies share no micro-batch")
    return limit


def limit_of(
    micro_batch_size: int | None, longest: int, *, packed: bool, device: Device, plan: RunPlan | None, kept: int | None
) -> MicroBatchLimit:
    """What a micro-batch may hold: as many rows as are asked for, else what fits by the plan, and no more of either
    than fits. Without a plan that fits a GPU it is a number for all devices. `kept` is what the checkpoint had that
    the run goes on from: it is not exceeded, since packs are cut by it; that it is not reached is logged."""
    limit = MicroBatchLimit.of(micro_batch_size, longest, packed=packed, tokens=token_limit(device.torch_device))
    tokens = limit.tokens
    if plan is not None and plan.fits:
        fitting = plan.micro_batch_tokens
        tokens = fitting if micro_batch_size is None else min(tokens, fitting)
    kept = kept if micro_batch_size is None else None
    if kept is not None:
        tokens = min(tokens, kept)
    if tokens != limit.tokens:
        limit = dataclasses.replace(limit, tokens=max(tokens, longest))
    if kept is not None and limit.tokens < kept:
        log.warning(
            "micro-batches hold fewer tokens than the checkpoint's did: other rows are computed together, and the last "
            "digits of the result change"
        )
    return limit
