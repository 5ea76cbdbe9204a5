"""What a run keeps that is on its way, on another device and while branches move: how the base is quantized, the
commits that it reads, and the day that its chat template is given.

Without PyTorch: rows are prepared before it is imported.
"""

import dataclasses
import json
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Any, TypeVar

from lora_trainer.data.dataset_files import at_commits
from lora_trainer.spec.config import Quantization, TrainConfig
from lora_trainer.spec.manifest import checkpoint_claim
from lora_trainer.spec.uri import at_commit
from lora_trainer.storage.hub import Hub
from lora_trainer.storage.run_folders import folders_of_name
from lora_trainer.storage.volumes import Volumes
from lora_trainer.train.checkpoint import RUN_FILE, checkpoint_folders, newest_in
from lora_trainer.train.identity import day_of

T = TypeVar("T")


def with_kept_commits(config: TrainConfig, workspace: Path | None, hub: Hub) -> TrainConfig:
    """The configuration to read model and data by: addresses of the Hub at the commits of the run's checkpoints in its
    folder, where there are any. Raises as `at_commits`."""

    def commits(record: Any) -> tuple[str | None, ...]:
        model, data = record["config"]["model"], record["config"]["dataset"]
        # Without a cluster a run can go on with another address of the same content.
        base = record["base_revision"] if model["uri"] == config.model.uri else None
        rows = record["dataset_revision"] if data["uri"] == config.dataset.uri else None
        same = data.get("validation_uri") == config.dataset.validation_uri
        return base, rows, record["validation_revision"] if same else None

    found = _kept(workspace, commits)
    if found is None:
        return config
    base, rows, held_out = found
    pinned = dataclasses.replace(config.model, uri=at_commit(config.model.uri, base))
    return at_commits(dataclasses.replace(config, model=pinned), rows, held_out, hub)


def kept_quantization(workspace: Path | None) -> Quantization | None:
    """How the base's weights were held in the run's checkpoints in its folder; None where there are none."""
    return _kept(workspace, lambda record: Quantization(record["config"]["quantization"]))


def kept_day(config: TrainConfig, workspace: Path | None, volumes: Volumes) -> date | None:
    """The day of what the run goes on from: its own checkpoints, or that of the run that `resumeFrom` names. Raises
    `CheckpointError`."""
    folder, claim = workspace, checkpoint_claim(config)
    if folder is not None and not checkpoint_folders(folder) and config.resume_from is not None and claim is not None:
        others = newest_in(path for path in folders_of_name(config.resume_from, claim, volumes) if path != folder)
        folder = None if others is None else others.folder.parent
    return _kept(folder, lambda record: day_of(record["identity"]))


def _kept(workspace: Path | None, of: Callable[[Any], T]) -> T | None:
    """What the newest checkpoint says that can be read: of what is damaged, whoever goes on from it says so."""
    for folder in checkpoint_folders(workspace) if workspace is not None else ():
        try:
            return of(json.loads((folder / RUN_FILE).read_text(encoding="utf-8")))
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            continue
    return None
