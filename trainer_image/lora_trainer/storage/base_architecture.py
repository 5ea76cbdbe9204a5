"""The shape of the base model in a folder: from its configuration, and from the headers of its files of weights."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lora_trainer.errors import ConfigError, one_sentence
from lora_trainer.plan.architecture import MOST_CHARACTERS, ArchitectureError, ModelArchitecture, read_json
from lora_trainer.plan.families import Positions, counted, described, positions_of
from lora_trainer.storage.model_folder import read_tensors, weights_in

CONFIG = "config.json"


def architecture_in(folder: Path, address: str) -> ModelArchitecture:
    """The shape of the model in a folder. Raises `ConfigError` for files that cannot be read, and
    `ArchitectureError`."""
    return counted(described(read_config(folder / CONFIG), CONFIG), parameters_in(folder, address))


def positions_in(folder: Path) -> Positions | None:
    """How long a row of the model in a folder may be; None where nothing limits it, or its configuration cannot be
    read, which others say."""
    try:
        return positions_of(read_config(folder / CONFIG))
    except (ConfigError, ArchitectureError):
        return None


def parameters_in(folder: Path, address: str) -> int:
    """How many numbers the files of weights in a folder hold. Raises `ConfigError` for those that cannot be read."""
    return sum(entry.values for path in weights_in(folder) for entry in read_tensors(path, address))


def read_config(path: Path) -> Mapping[str, Any]:
    """A model's configuration. Raises `ConfigError` and `ArchitectureError`."""
    try:
        with path.open(encoding="utf-8") as stream:
            text = stream.read(MOST_CHARACTERS + 1)
    except (OSError, UnicodeDecodeError) as error:
        why = getattr(error, "strerror", None) or one_sentence(error)
        raise ConfigError(
            f"{path} cannot be read ({why[:300]}): name the config.json of a Transformers model"
        ) from error
    return read_json(text, str(path))
