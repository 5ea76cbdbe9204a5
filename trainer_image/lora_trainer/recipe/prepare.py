"""The inputs of a run into the cache, before a GPU is asked for: no PyTorch, no weights in memory."""

import json
import logging
from pathlib import Path

from lora_trainer.contract.config import TrainConfig
from lora_trainer.data.chosen_template import chosen_template
from lora_trainer.data.dataset_files import locate, locate_validation
from lora_trainer.data.survey import load_samples
from lora_trainer.errors import ConfigError
from lora_trainer.places.base import Base, find_base
from lora_trainer.places.hub import Hub
from lora_trainer.places.volumes import Volumes

log = logging.getLogger(__name__)
_TOKENIZERS = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "spiece.model")


def fetch(config: TrainConfig, volumes: Volumes, hub: Hub) -> None:
    """Model and data into the cache. Raises `TrainerError`."""
    files = locate(config.dataset, volumes, hub) + locate_validation(config.dataset, volumes, hub)
    base = find_base(config.model.uri, volumes, hub)
    log.info("%s at %s and %d files of data are at hand", base.name, base.revision, len(files))


def prepare(config: TrainConfig, volumes: Volumes, hub: Hub) -> str:
    """Fetch model and data and read every row; a sentence on what is there now. Raises `TrainerError`.

    What is wrong with a row, an address or a token shows here, where no GPU waits.
    """
    chosen_template(config.dataset, volumes)
    samples = load_samples(config, volumes, hub)
    base = find_base(config.model.uri, volumes, hub)
    check_tokenizer(base, config.model.uri)
    rows = sum(int(part.training.sum()) + int(part.held_out.sum()) for part in samples.parts)
    size_mb = sum(path.stat().st_size for path in base.folder.iterdir() if path.is_file()) / 1e6
    return (
        f"{base.name} at {base.revision} ({size_mb:.0f} MB) and {rows} rows of {config.dataset.uri} "
        f"({samples.kind.value}, {samples.skipped} skipped) are at hand"
    )


def check_tokenizer(base: Base, address: str) -> None:
    """The files of a tokenizer, as far as they can be checked without its library. Raises `ConfigError`."""
    if not any((base.folder / name).is_file() for name in _TOKENIZERS):
        raise ConfigError(f"model.uri is {address}: it has no tokenizer ({', '.join(_TOKENIZERS[:2])}); add its files")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        _check_json(base.folder / name, address)


def _check_json(path: Path, address: str) -> None:
    try:
        if path.is_file():
            json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        message = f"model.uri is {address}: its {path.name} is no JSON; copy or upload it again"
        raise ConfigError(message) from error
