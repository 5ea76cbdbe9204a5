"""Whether the claim of a run's checkpoints has room for what the run writes there, before it has trained for that."""

import shutil
from collections.abc import Callable
from pathlib import Path

from lora_trainer.contract.config import TrainConfig
from lora_trainer.contract.fit.devices import gib
from lora_trainer.contract.manifest import checkpoint_claim
from lora_trainer.contract.reasons import Reason
from lora_trainer.contract.run_plan import RunPlan
from lora_trainer.errors import StorageError
from lora_trainer.places.volumes import Volumes
from lora_trainer.training.checkpoint import checkpoint_folders, discard_partial


def check_claim(config: TrainConfig, plan: RunPlan, volumes: Volumes) -> None:
    """Look whether there is room for the run's most, where the claim is mounted for something else.

    Raises `StorageError`.
    """
    claim = checkpoint_claim(config)
    if claim is not None and (volumes.claims / claim).is_dir():
        _check(volumes.claims / claim, config, plan, count=config.checkpoint.keep + 1, needed=plan.claim_bytes)


def check_room(
    config: TrainConfig, plan: RunPlan, folder: Path, *, step: int, total: int, make_room: Callable[[int], None]
) -> None:
    """Look whether there is room for what a training of `total` steps still writes into the run's folder after `step`,
    beside the checkpoints that are there. `make_room` removes what the run can do without, and so does this of what a
    killed trainer left.

    Raises `StorageError`.
    """
    if checkpoint_claim(config) is None or not plan.checkpoint_bytes or step >= total:
        return
    saved, saves = len(checkpoint_folders(folder)), least_saves(config, plan, total - step, total)
    needed, count = still_needed(config, plan, saved=saved, saves=saves)
    make_room(needed)
    discard_partial(folder)
    _check(folder, config, plan, count=count, needed=needed, more="more " if saved else "")


def least_saves(config: TrainConfig, plan: RunPlan, steps: int, total: int) -> int:
    """How many checkpoints `steps` of `total` steps save at least: by the interval in steps, or by that in time where
    the plan knows how long they take. The last step's state is always saved."""
    interval, seconds = config.checkpoint.interval_steps, (plan.seconds or 0) * steps / total
    by_steps = (steps - 1) // interval if interval else 0
    return min(steps, 1 + max(by_steps, int(seconds / config.checkpoint.interval_s)))


def still_needed(config: TrainConfig, plan: RunPlan, *, saved: int, saves: int) -> tuple[int, int]:
    """Bytes that a run takes beside its `saved` checkpoints, and how many it writes beside them until it may remove the
    oldest; the result comes when that is done."""
    keep, one = config.checkpoint.keep, plan.checkpoint_bytes
    result = plan.claim_bytes - (keep + 1) * one
    count = min(max(keep + 1 - saved, 1), saves)
    return max(count * one, min(max(keep - saved, 0), saves) * one + result), count


def _check(folder: Path, config: TrainConfig, plan: RunPlan, *, count: int, needed: int, more: str = "") -> None:
    free = shutil.disk_usage(folder).free
    if free < needed:
        keep = config.checkpoint.keep
        raise StorageError(
            f"the run takes {gib(needed)} {more}of PersistentVolumeClaim {checkpoint_claim(config)}, which has "
            f"{gib(free)} free: {count} {more}checkpoint{'s' * (count > 1)} of {gib(plan.checkpoint_bytes)} at a time "
            f"(checkpoint.keep is {keep}) and the result; free space or enlarge the claim, or create a new "
            "LoRAFineTune with a lower checkpoint.keep",
            Reason.STORAGE_FULL,
        )
