"""What commands on finished folders check before the seconds that their libraries take: the folders, the base model."""

import json
from pathlib import Path
from typing import Any

from lora_trainer.errors import CheckpointError, ConfigError
from lora_trainer.storage.manifest import Manifest, read_manifest
from lora_trainer.storage.model_folder import check_on_claim
from lora_trainer.storage.sealed import MANIFEST
from lora_trainer.storage.volumes import Volumes
from lora_trainer.train.checkpoint import RUN_FILE

_ADAPTER = "adapter_config.json"


def check_result(folder: Path) -> Manifest:
    """The manifest of a result that a run published. Raises `ConfigError`, `VerificationError` for a damaged one."""
    _check_folder(folder)
    if (folder / RUN_FILE).is_file():
        raise ConfigError(f"{folder} is a checkpoint and no result: make an adapter of it with lora-trainer export")
    if not (folder / MANIFEST).is_file():
        raise ConfigError(f"{folder} holds no {MANIFEST}: name a folder that a run published")
    return read_manifest(folder)


def check_checkpoint(folder: Path, volumes: Volumes) -> None:
    """A checkpoint of a run whose base model is there. Raises `ConfigError`, `CheckpointError`, `NotFoundError`."""
    _check_folder(folder)
    if (folder / _ADAPTER).is_file():
        raise ConfigError(f"{folder} is an adapter already: export takes a checkpoint, a folder step-...")
    if not (folder / RUN_FILE).is_file():
        raise ConfigError(f"{folder} holds no {RUN_FILE}, so it is not a checkpoint: name a folder step-...")
    try:
        record: Any = json.loads((folder / RUN_FILE).read_text(encoding="utf-8"))
        uri = str(record["config"]["model"]["uri"])
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise CheckpointError(f"the checkpoint {folder.name} is damaged: its {RUN_FILE} names no model") from error
    check_on_claim(uri, volumes)


def check_question(adapter: Path, base: str | None, volumes: Volumes) -> None:
    """An adapter and its base model, as far as files show. Raises `ConfigError`, `NotFoundError`."""
    if not (adapter / _ADAPTER).is_file():
        raise ConfigError(f"--adapter is {adapter}: there is no {_ADAPTER}")
    if base is None and not (adapter / MANIFEST).is_file():
        raise ConfigError(
            f"--adapter is {adapter}: there is no {MANIFEST} that names its base model; name it by --base"
        )
    uri = read_manifest(adapter).config.model.uri if base is None else base
    if "://" in uri:
        check_on_claim(uri, volumes)
    elif not Path(uri).is_dir():
        raise ConfigError(f"--base is {uri}: there is no such folder")


def _check_folder(folder: Path) -> None:
    if not folder.is_dir():
        raise ConfigError(f"{folder} is {'a file' if folder.exists() else 'missing'}: must be a folder that exists")
