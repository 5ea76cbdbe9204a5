"""The inputs of a run into the cache, before a GPU is asked for: no weights in memory."""

import json
import logging
import os
import time
from pathlib import Path

from lora_trainer.contract.config import TrainConfig
from lora_trainer.data import dataset as datasets
from lora_trainer.data.chosen_template import Chosen, chosen_template
from lora_trainer.data.dataset_files import locate, locate_validation
from lora_trainer.data.kept_rows import UNUSED_S, KeptRows, folder_name
from lora_trainer.data.row_key import row_key
from lora_trainer.data.survey import Samples, load_samples
from lora_trainer.errors import ConfigError, KernelOutOfMemoryError, StorageError, TransientError, one_sentence
from lora_trainer.places.base import Base, find_base
from lora_trainer.places.cache_folders import cached_rows
from lora_trainer.places.cache_lock import alone_in_cache
from lora_trainer.places.hub import Hub
from lora_trainer.places.temporary import temporary_folder
from lora_trainer.places.volumes import Volumes

log = logging.getLogger(__name__)
ENCODED_FROM_BYTES = 4 * 2**20
"""Size of the files from which on rows are encoded here: fewer take seconds, as the libraries for it do."""

_PROCESSES = 2
"""Each takes memory, of which the pod has little."""

MOST_CHARACTERS = 2 * 2**20
"""Of a row that is encoded here: a fast tokenizer takes about 160 bytes a character while it works on it, and the pod
has 2 GiB, of which the libraries take a third."""

_TOKENIZERS = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "spiece.model")


def fetch(config: TrainConfig, volumes: Volumes, hub: Hub) -> None:
    """Model and data into the cache. Raises `TrainerError`."""
    files = locate(config.dataset, volumes, hub) + locate_validation(config.dataset, volumes, hub)
    base = find_base(config.model.uri, volumes, hub)
    log.info("%s at %s and %d files of data are at hand", base.name, base.revision, len(files))


def prepare(config: TrainConfig, volumes: Volumes, hub: Hub) -> str:
    """Fetch model and data and read every row; a sentence on what is there now. Raises `TrainerError`.

    What is wrong with a row, an address or a token shows here, where no GPU waits. Many rows are encoded here, too.
    """
    chosen = chosen_template(config.dataset, volumes)
    samples = load_samples(config, volumes, hub)
    base = find_base(config.model.uri, volumes, hub)
    check_tokenizer(base, config.model.uri)
    encoded = _keep_encoded(config, samples, base, chosen) if _take_long(samples) else False
    rows = sum(int(part.training.sum()) + int(part.held_out.sum()) for part in samples.parts)
    size_mb = sum(path.stat().st_size for path in base.folder.iterdir() if path.is_file()) / 1e6
    return (
        f"{base.name} at {base.revision} ({size_mb:.0f} MB) and {rows} rows of {config.dataset.uri} "
        f"({samples.kind.value}, {samples.skipped} skipped) are at hand{', and encoded' if encoded else ''}"
    )


def _take_long(samples: Samples) -> bool:
    """Whether to encode the rows takes longer than to import the libraries for it."""
    return sum(path.stat().st_size for part in samples.parts for _, path in part.files) >= ENCODED_FROM_BYTES


def _keep_encoded(config: TrainConfig, samples: Samples, base: Base, chosen: Chosen) -> bool:
    """Have the encoded rows in the cache, if it has room for them. Raises what encoding finds wrong with the rows."""
    from lora_trainer.model.loading import load_encoder  # noqa: PLC0415 - PyTorch takes seconds to import

    training = config.training
    encoder = load_encoder(base, training.loss_on, training.max_sequence_length, chosen)
    place = cached_rows(os.environ)
    name = folder_name(row_key(samples, encoder, base.revision))
    beat = place / f".{name}.beat"
    pace = datasets.Pace(processes=_PROCESSES, longest=MOST_CHARACTERS, alive=beat.touch)
    what = f"dataset.uri is {config.dataset.uri}: its encoded rows"
    try:
        place.mkdir(parents=True, exist_ok=True)
        with (
            alone_in_cache(place / f".{name}.lock", lambda: _changed_ns(beat), what=what),
            temporary_folder("lora-tokens-") as folder,
        ):
            if _was_killed(beat) and not (place / name).is_dir():
                log.warning(
                    "the rows are not encoded in advance: a process that did so was killed, most likely for memory; "
                    "remove %s from the cache to have it tried again",
                    beat.name,
                )
                return False
            try:
                beat.touch()
                kept = KeptRows(own=place, shared=True)
                datasets.encode_once(samples, encoder, folder, kept, base.revision, pace=pace)
            finally:
                beat.unlink(missing_ok=True)
    except (OSError, StorageError, TransientError, KernelOutOfMemoryError) as error:
        log.warning("the rows are not encoded in advance: %s", one_sentence(error))
        return False
    return (place / name).is_dir()


def _was_killed(beat: Path) -> bool:
    """Whether the process that gave these signs of life did not come to remove them; nobody else holds the lock.

    The kernel takes the whole pod for the memory of one of its processes, so that only the next one can spare the run.
    """
    return beat.exists() and time.time() - beat.stat().st_mtime < UNUSED_S


def _changed_ns(path: Path) -> int | None:
    return path.stat().st_mtime_ns if path.exists() else None


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
