"""Whether the claim of a run's checkpoints has room for what the run surely writes there, before it has trained for
that. No run that would end well is refused: how many checkpoints it saves, beside the last step's, is not known. They
follow the clock, wait while the loss is suspicious, and end with an early stop."""

import shutil
from pathlib import Path

from lora_trainer.contract.config import Merge, TrainConfig
from lora_trainer.contract.fit.devices import gib
from lora_trainer.contract.fit.shape import GUESSED
from lora_trainer.contract.manifest import checkpoint_claim
from lora_trainer.contract.reasons import Reason
from lora_trainer.contract.run_plan import RunPlan
from lora_trainer.data.kept_rows import folders_in
from lora_trainer.errors import StorageError
from lora_trainer.places.volumes import Volumes
from lora_trainer.training.checkpoint import checkpoint_folders, partial_folders


def check_claim(config: TrainConfig, plan: RunPlan, volumes: Volumes) -> None:
    """Look whether there is room for a run that begins, where the claim is mounted for something else.

    Raises `StorageError`.
    """
    claim = checkpoint_claim(config)
    if claim is not None and (volumes.claims / claim).is_dir():
        _check(config, plan, shutil.disk_usage(volumes.claims / claim).free)


def check_room(config: TrainConfig, plan: RunPlan, folder: Path, *, step: int, total: int) -> None:
    """Look whether there is room for what a training of `total` steps still writes into the run's folder after `step`.
    What its next checkpoint removes for itself counts as free: encoded rows, and what a killed trainer left.

    Raises `StorageError`.
    """
    may_be_over = step >= total or (step > 0 and config.training.early_stopping_patience is not None)
    if checkpoint_claim(config) is not None and not may_be_over:
        going = (*folders_in(folder), *partial_folders(folder))
        size = sum(path.lstat().st_size for place in going for path in place.rglob("*"))
        free = shutil.disk_usage(folder).free + size
        _check(config, plan, free, resumed=bool(checkpoint_folders(folder)))


def _check(config: TrainConfig, plan: RunPlan, free: int, *, resumed: bool = False) -> None:
    """Of a run with checkpoints the next one alone counts: the oldest goes before the result comes."""
    result = 0 if resumed else _result_bytes(config, plan)
    needed = plan.checkpoint_bytes + result
    if free >= needed or plan.spread >= GUESSED:
        return
    what = "the next checkpoint takes" if resumed else "a checkpoint and the result take"
    change = ""
    if resumed and config.checkpoint.keep > 1:
        change = ", or create a new LoRAFineTune with a lower checkpoint.keep"
    elif config.output.merge is Merge.MERGED and result > plan.checkpoint_bytes:
        change = ", or create a new LoRAFineTune with output.merge: Adapter"
    raise StorageError(
        f"{what} {gib(needed)} of PersistentVolumeClaim {checkpoint_claim(config)}, which has "
        f"{gib(free)} free, and the run takes up to {gib(plan.claim_bytes)} in all: free space or enlarge the claim"
        f"{change}",
        Reason.STORAGE_FULL,
    )


def _result_bytes(config: TrainConfig, plan: RunPlan) -> int:
    """At least: a run with `output.merge: Both` succeeds without the merged model where that has no room."""
    if config.output.merge is Merge.BOTH:
        return plan.adapter_file_bytes
    return plan.claim_bytes - (config.checkpoint.keep + 1) * plan.checkpoint_bytes
