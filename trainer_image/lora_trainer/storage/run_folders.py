"""Where runs keep what outlives their pods: folders `.lora-checkpoints/<name>-<suffix>/` on a claim.

The suffix follows from the run's uid, so that every attempt of a run finds its folder and no other run does.
"""

import re
from pathlib import Path

from lora_trainer.spec.config import TrainConfig
from lora_trainer.spec.names import SUFFIX_LENGTH, run_suffix
from lora_trainer.spec.uri import ClaimUri
from lora_trainer.storage.volumes import Volumes

FOLDER = ".lora-checkpoints"


def folder_of_run(config: TrainConfig, claim: str) -> ClaimUri:
    """The address of a run's folder on its checkpoint claim."""
    return ClaimUri(claim=claim, path=f"{FOLDER}/{config.run.name}-{run_suffix(config.run.uid)}")


def folders_of_name(name: str, claim: str, volumes: Volumes) -> tuple[Path, ...]:
    """The folders that runs of a name left on a claim. Raises `ConfigError` for a symbolic link on the way."""
    pattern = re.compile(rf"{re.escape(name)}-[a-z2-7]{{{SUFFIX_LENGTH}}}")
    parent = volumes.claim_path(ClaimUri(claim=claim, path=FOLDER))
    if not parent.is_dir():
        return ()
    return tuple(
        path
        for path in sorted(parent.iterdir())
        if pattern.fullmatch(path.name) and path.is_dir() and not path.is_symlink()
    )
