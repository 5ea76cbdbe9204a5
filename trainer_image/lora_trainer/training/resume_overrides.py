"""What a run keeps that is on its way, on another device and while branches move: how the base is quantized, and the
commits that it reads.

Without PyTorch: rows are chosen before it is imported.
"""

import dataclasses
import json
from pathlib import Path

from lora_trainer.contract.config import Quantization, TrainConfig
from lora_trainer.contract.uri import at_commit
from lora_trainer.data.dataset_files import at_commits
from lora_trainer.places.hub import Hub
from lora_trainer.training.checkpoint import RUN_FILE, checkpoint_folders


def with_kept_commits(config: TrainConfig, workspace: Path | None, hub: Hub) -> TrainConfig:
    """The configuration to read model and data by: addresses of the Hub at the commits of the run's checkpoints in its
    folder, where there are any. Raises as `at_commits`."""
    for folder in checkpoint_folders(workspace) if workspace is not None else ():
        try:
            record = json.loads((folder / RUN_FILE).read_text(encoding="utf-8"))
            model, data = record["config"]["model"], record["config"]["dataset"]
            # Without a cluster a run can go on with another address of the same content.
            base = record["base_revision"] if model["uri"] == config.model.uri else None
            rows = record["dataset_revision"] if data["uri"] == config.dataset.uri else None
            same = data.get("validation_uri") == config.dataset.validation_uri
            held_out = record["validation_revision"] if same else None
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            continue  # damaged: whoever goes on from it says so
        pinned = dataclasses.replace(config.model, uri=at_commit(config.model.uri, base))
        return at_commits(dataclasses.replace(config, model=pinned), rows, held_out, hub)
    return config


def kept_quantization(workspace: Path | None) -> Quantization | None:
    """How the base's weights were held in the run's checkpoints in its folder; None where there are none."""
    for folder in checkpoint_folders(workspace) if workspace is not None else ():
        try:
            return Quantization(json.loads((folder / RUN_FILE).read_text(encoding="utf-8"))["config"]["quantization"])
        except (OSError, ValueError, KeyError, TypeError):
            continue
    return None
