"""Where a run begins, which one process looks up for all: at the beginning, or at a checkpoint; and what has to be the
same on all of them for that."""

from pathlib import Path

from lora_trainer.distributed.collectives import Ranks
from lora_trainer.errors import TransientError
from lora_trainer.spec.config import TrainConfig
from lora_trainer.storage.volumes import Volumes
from lora_trainer.train.checkpoint import Checkpoints
from lora_trainer.train.claim_room import check_room
from lora_trainer.train.identity import Identity, difference
from lora_trainer.train.resolve_auto import RunSetup
from lora_trainer.train.resume import Saved, find_saved
from lora_trainer.train.schedule import total_steps


def beginning(config: TrainConfig, checkpoints: Checkpoints | None, volumes: Volumes, ranks: Ranks) -> Saved | None:
    """The checkpoint that the first process finds, on all; it alone needs to see the `checkpoints`. Raises
    `CheckpointError`."""
    found = find_saved(config, checkpoints, volumes) if ranks.is_main and checkpoints else None
    return ranks.broadcast_value(found, Saved | None)


def agreed(ours: Identity, ranks: Ranks) -> Identity:
    """The identity that all processes have.

    Raises `TransientError` where a branch or a data set was moved on while the processes looked it up.
    """
    found = next((found for theirs in ranks.gather(ours, Identity) if (found := difference(theirs, ours))), None)
    if found is not None:
        raise TransientError(f"the processes of the run found different inputs, {found}: they are looked up again")
    return ours


def check_claim(setup: RunSetup, folder: Path, rows: int, start: Saved | None) -> None:
    """Look whether the run's folder has room for what the run still writes: a full volume would end it hours later.
    Raises `StorageError`."""
    if setup.plan is not None:
        step, seen = (start.checkpoint.step, start.rows) if start and start.goes_on else (0, 0)
        total = total_steps(setup.config.training, rows, step, seen)
        check_room(setup.config, setup.plan, folder, step=step, total=total)
