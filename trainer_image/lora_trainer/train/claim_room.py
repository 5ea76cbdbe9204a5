"""Whether the claim of a run's checkpoints has room for what the run surely writes there, before it has trained for
that. How many checkpoints it saves is not known: they follow the clock, wait while the loss is suspicious, and end with
an early stop. A run much longer than it takes to save all that are there at a time counts with these, a shorter one
with its last alone."""

import shutil
from pathlib import Path

from lora_trainer.data.kept_rows import row_folders
from lora_trainer.errors import StorageError
from lora_trainer.plan.architecture import GUESSED
from lora_trainer.spec.config import Merge, TrainConfig
from lora_trainer.spec.gpus import gib
from lora_trainer.spec.manifest import checkpoint_claim
from lora_trainer.spec.reasons import Reason
from lora_trainer.spec.run_plan import RunPlan
from lora_trainer.storage.volumes import Volumes
from lora_trainer.train.checkpoint import checkpoint_folders, partial_folders

_AMPLE = 1.5
"""How many times as long as that: the plan's time assumes 40 % of a GPU's peak, and few runs reach 60 %."""


def check_claim(config: TrainConfig, plan: RunPlan, volumes: Volumes) -> None:
    """Look whether there is room for a run that begins, where the claim is mounted for something else.

    Raises `StorageError`.
    """
    claim = checkpoint_claim(config)
    if claim is not None and (volumes.claims / claim).is_dir():
        _check(config, plan, shutil.disk_usage(volumes.claims / claim).free, most=_at_a_time(config, plan, 0, None))


def check_room(config: TrainConfig, plan: RunPlan, folder: Path, *, step: int, total: int) -> None:
    """Look whether there is room for what a training of `total` steps still writes into the run's folder after `step`.
    What its next checkpoint removes for itself counts as free: encoded rows, and what a killed trainer left.

    Raises `StorageError`.
    """
    may_be_over = step >= total or (step > 0 and config.training.early_stopping_patience is not None)
    if checkpoint_claim(config) is not None and not may_be_over:
        going = (*row_folders(folder), *partial_folders(folder))
        size = sum(path.lstat().st_size for place in going for path in place.rglob("*"))
        saved, most = len(checkpoint_folders(folder)), _at_a_time(config, plan, step, total)
        _check(config, plan, shutil.disk_usage(folder).free + size, most=most, saved=saved)


def _at_a_time(config: TrainConfig, plan: RunPlan, step: int, total: int | None) -> int:
    """How many checkpoints are surely there at a time, in a training that begins after `step`."""
    often, patience = config.checkpoint, config.training.early_stopping_patience
    by_steps = (total - step) / often.interval_steps if total and often.interval_steps else 0.0
    by_time = (plan.seconds or 0) * ((total - step) / total if total else 1.0) / often.interval_s
    most = often.keep + 1
    return most if patience is None and max(by_steps, by_time) >= _AMPLE * most else 1


def _check(config: TrainConfig, plan: RunPlan, free: int, *, most: int, saved: int = 0) -> None:
    """Of a run with `saved` checkpoints the result needs no room: the oldest goes before it comes."""
    one, keep = plan.checkpoint_bytes, config.checkpoint.keep
    new, result = max(most - saved, 1), 0 if saved else _result_bytes(config, plan)
    needed = max(new * one, min(new, keep) * one + result)
    if free >= needed or plan.spread >= GUESSED:
        return
    change = ""
    if keep > 1 and (saved or new > 1):
        change = ", or create a new LoRAFineTune with a lower checkpoint.keep"
    elif config.output.merge is Merge.MERGED and result > one:
        change = ", or create a new LoRAFineTune with output.merge: Adapter"
    raise StorageError(
        f"the run takes at least {gib(needed)}{' more' * bool(saved)} of PersistentVolumeClaim "
        f"{checkpoint_claim(config)}, which has {gib(free)} free, and up to {gib(plan.claim_bytes)} in all: {keep + 1} "
        f"checkpoints of {gib(one)} at a time (checkpoint.keep is {keep}) and the result; free space or enlarge the "
        f"claim{change}",
        Reason.STORAGE_FULL,
    )


def _result_bytes(config: TrainConfig, plan: RunPlan) -> int:
    """At least: a run with `output.merge: Both` succeeds without the merged model where that has no room."""
    if config.output.merge is Merge.BOTH:
        return plan.adapter_file_bytes
    return plan.claim_bytes - (config.checkpoint.keep + 1) * plan.checkpoint_bytes
