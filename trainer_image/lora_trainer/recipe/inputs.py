"""The inputs of a run: its data prepared in a folder, or model and data into the cache. No weights in memory."""

import logging
import os
import time
from dataclasses import replace
from pathlib import Path

from lora_trainer.contract.config import TrainConfig
from lora_trainer.contract.uri import ClaimUri, parse_uri
from lora_trainer.data import dataset as datasets
from lora_trainer.data.chosen_rows import Pace
from lora_trainer.data.chosen_template import Chosen, chosen_template
from lora_trainer.data.clock import today
from lora_trainer.data.counts import positions_suffice
from lora_trainer.data.dataset import Data
from lora_trainer.data.dataset_files import locate, locate_validation
from lora_trainer.data.kept_rows import UNUSED_S, KeptRows, folder_name
from lora_trainer.data.survey import Samples, choose_rows, find_sources
from lora_trainer.errors import KernelOutOfMemoryError, StorageError, TransientError, one_sentence
from lora_trainer.places.base import Base, find_base
from lora_trainer.places.base_shape import positions_in
from lora_trainer.places.cache_folders import cached_rows
from lora_trainer.places.hub import Hub
from lora_trainer.places.lock import held
from lora_trainer.places.temporary import temporary_folder
from lora_trainer.places.volumes import Volumes
from lora_trainer.recipe.vocabulary import check_token
from lora_trainer.training.objective import encoder_of
from lora_trainer.training.resume_overrides import kept_day, with_kept_commits

log = logging.getLogger(__name__)
ENCODED_FROM_BYTES = 4 * 2**20
"""Size of the files from which on rows are encoded here: fewer take seconds, as the libraries for it do."""

_PROCESSES = 2
"""Each takes memory, of which the pod has little."""

MOST_CHARACTERS = 2 * 2**20
"""Of a row that is encoded here: a fast tokenizer takes about 160 bytes a character while it works on it, and the pod
has 2 GiB, of which the libraries take a third."""


def prepare(
    config: TrainConfig,
    volumes: Volumes,
    hub: Hub,
    place: Path,
    *,
    kept: KeptRows = KeptRows(),  # noqa: B008 - frozen
    workspace: Path | None = None,
) -> None:
    """The data of a run in the folder `place`, which is there once all of it is: one process prepares it, all others
    of its pod open it. A run goes on with the commits and the day of the checkpoints in `workspace`.

    Raises `DatasetError` and `ConfigError` for rows that cannot be trained on, and what reading raises.
    """
    chosen = chosen_template(config.dataset, volumes, kept_day(config, workspace, volumes) or today())
    read = with_kept_commits(config, workspace, hub)
    sources = replace(find_sources(read.dataset, volumes, hub), dataset=config.dataset)
    # Bad rows show at once, before libraries are loaded.
    samples = None if kept.some else choose_rows(sources)
    base = find_base(read.model.uri, volumes, hub)
    partial = place.with_name(f".{place.name}")
    partial.mkdir(parents=True)
    encoder = encoder_of(config, base, chosen)
    data = datasets.read_or_encode(sources, samples, encoder, partial, kept)
    check_lengths(config, base, data)
    check_token(base, encoder, data.largest_token)
    partial.rename(place)


def check_lengths(config: TrainConfig, base: Base, data: Data) -> None:
    """Refuse rows, held-out ones among them, that are longer than the model has positions: before its weights are read,
    and never in the midst of a step. Raises `ConfigError`."""
    positions = positions_in(base.folder)
    if positions is not None:
        longest = max(rows.longest for rows in (data.training, data.evaluation))
        positions_suffice(positions, config.training.max_sequence_length, longest)


def fetch(config: TrainConfig, volumes: Volumes, hub: Hub) -> None:
    """Model and data into the cache. Raises `TrainerError`."""
    files = locate(config.dataset, volumes, hub).files + locate_validation(config.dataset, volumes, hub).files
    base = find_base(config.model.uri, volumes, hub)
    log.info("%s at %s and %d files of data are at hand", base.name, base.revision, len(files))


def fill_cache(config: TrainConfig, samples: Samples, volumes: Volumes, hub: Hub, chosen: Chosen) -> bool:
    """The whole model into the cache that runs share, and many rows encoded; whether rows were. Raises `TrainerError`.

    The data is there already: its rows were read.
    """
    many = _take_long(samples)
    if isinstance(parse_uri(config.model.uri), ClaimUri) and not many:
        # There is nothing to fetch, and nothing that all bytes of the model would have to be read for.
        return False
    base = find_base(config.model.uri, volumes, hub)
    return _keep_encoded(config, samples, base, chosen) if many else False


def _take_long(samples: Samples) -> bool:
    """Whether to encode the rows takes longer than to import the libraries for it."""
    return sum(path.stat().st_size for part in samples.parts for _, path in part.files) >= ENCODED_FROM_BYTES


def _keep_encoded(config: TrainConfig, samples: Samples, base: Base, chosen: Chosen) -> bool:
    """Have the encoded rows in the cache, if it has room for them. Raises what encoding finds wrong with the rows."""
    encoder = encoder_of(config, base, chosen)
    place = cached_rows(os.environ)
    name = folder_name(datasets.row_key(samples.sources, encoder), shared=True)
    begun = place / f".{name}.begun"
    pace = Pace(processes=_PROCESSES, longest=MOST_CHARACTERS)
    what = f"dataset.uri is {config.dataset.uri}: its encoded rows"
    try:
        with held(place / f".{name}.lock", what) as lock, temporary_folder("lora-tokens-") as folder:
            if _was_killed(begun) and not (place / name).is_dir():
                log.warning(
                    "the rows are not encoded in advance: a process that did so was killed, most likely for memory; "
                    "remove %s from the cache to have it tried again",
                    begun.name,
                )
                return False
            try:
                begun.touch()
                kept = KeptRows(own=place, shared=True, may_write=lock.check)
                datasets.read_or_encode(samples.sources, samples, encoder, folder, kept, pace=pace)
            finally:
                begun.unlink(missing_ok=True)
    except (OSError, StorageError, TransientError, KernelOutOfMemoryError) as error:
        log.warning("the rows are not encoded in advance: %s", one_sentence(error))
        return False
    return (place / name).is_dir()


def _was_killed(begun: Path) -> bool:
    """Whether the process that left this mark did not come to remove it; nobody else holds the lock.

    The kernel takes the whole pod for the memory of one of its processes, so that only the next one can spare the run.
    """
    return begun.exists() and time.time() - begun.stat().st_mtime < UNUSED_S
