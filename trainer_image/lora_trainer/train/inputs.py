"""The inputs of a run: its data prepared in a folder, or model and data into the cache. No weights in memory."""

import logging
import os
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from lora_trainer.data import dataset as datasets
from lora_trainer.data.chosen_rows import Pace
from lora_trainer.data.chosen_template import chosen_template
from lora_trainer.data.clock import today
from lora_trainer.data.counts import positions_suffice
from lora_trainer.data.dataset import Data
from lora_trainer.data.dataset_files import locate, locate_validation
from lora_trainer.data.kept_rows import UNUSED_S, KeptRows, folder_name
from lora_trainer.data.survey import DatasetIndex, choose_rows, find_sources
from lora_trainer.data.tokens import Encoder
from lora_trainer.data.vocabulary import check_token
from lora_trainer.errors import KernelOutOfMemoryError, StorageError, TransientError, one_sentence
from lora_trainer.spec.config import TrainConfig
from lora_trainer.spec.preflight import RowFacts
from lora_trainer.spec.uri import ClaimUri, at_commit, parse_uri
from lora_trainer.storage.base import Base, find_base
from lora_trainer.storage.cache_folders import cached_rows
from lora_trainer.storage.hub import Hub
from lora_trainer.storage.lock import held
from lora_trainer.storage.model_headers import read_headers
from lora_trainer.storage.temporary import temporary_folder
from lora_trainer.storage.volumes import Volumes
from lora_trainer.train.objective import encoder_of
from lora_trainer.train.resume_overrides import kept_day, with_kept_commits

log = logging.getLogger(__name__)
ENCODED_FROM_BYTES = 4 * 2**20
"""Size of the files from which on rows are encoded here: fewer take seconds, as the libraries for it do."""

_REVISION = "revision"
"""Of prepared data, the file that says which model it was prepared with: encoded rows that are kept serve each whose
tokenizer has the same files."""

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
    check: Callable[[Base], None],
    kept: KeptRows = KeptRows(),  # noqa: B008 - frozen
    workspace: Path | None = None,
) -> None:
    """The data of a run in the folder `place`, which is there once all of it is: one process prepares it, all others
    of its pod open it. A run goes on with the commits and the day of the checkpoints in `workspace`.

    `check` refuses what the model cannot be trained with, whatever the rows: before these are encoded, and before the
    weights of a model on a claim are read for their digest, either of which may take many minutes. Raises
    `DatasetError` and `ConfigError` for rows that cannot be trained on, and what `check` and reading raise.
    """
    chosen = chosen_template(config.dataset, volumes, kept_day(config, workspace, volumes) or today())
    read = with_kept_commits(config, workspace, hub)
    sources = replace(find_sources(read.dataset, volumes, hub), dataset=config.dataset)
    # Bad rows show at once, before libraries are loaded.
    index = None if kept.some else choose_rows(sources)
    check(read_headers(read.model.uri, volumes, hub).base)
    base = find_base(read.model.uri, volumes, hub)
    partial = place.with_name(f".{place.name}")
    partial.mkdir(parents=True)
    encoder = encoder_of(config, base, chosen)
    data = datasets.read_or_encode(sources, index, encoder, partial, kept)
    _check_data(base, encoder, data)
    (partial / _REVISION).write_text(base.revision, encoding="utf-8")
    partial.rename(place)


def base_of(config: TrainConfig, prepared: Path, volumes: Volumes, hub: Hub) -> Base:
    """The model that the data in the folder `prepared` was prepared with. Raises `TransientError` where it was replaced
    since."""
    revision = (prepared / _REVISION).read_text(encoding="utf-8")
    base = find_base(at_commit(config.model.uri, revision), volumes, hub)
    if base.revision != revision:
        raise TransientError(
            f"the base model {base.name} was changed while the run's data was prepared: both are read again"
        )
    return base


def _check_data(base: Base, encoder: Encoder, data: Data) -> None:
    """Refuse rows, held-out ones among them, that are longer than the model has positions, or have tokens beyond its
    embeddings: before its weights are read, and never in the midst of a step. Raises `ConfigError`."""
    if encoder.positions is not None:
        longest = max(rows.longest for rows in (data.training, data.evaluation))
        positions_suffice(encoder.positions, encoder.max_length, longest)
    check_token(base, encoder, data.largest_token)


def fetch(config: TrainConfig, volumes: Volumes, hub: Hub) -> None:
    """Model and data into the cache. Raises `TrainerError`."""
    files = locate(config.dataset, volumes, hub).files + locate_validation(config.dataset, volumes, hub).files
    base = find_base(config.model.uri, volumes, hub)
    log.info("%s at %s and %d files of data are at hand", base.name, base.revision, len(files))


def fetch_model(address: str, volumes: Volumes, hub: Hub) -> None:
    """The whole model into the cache; one on a claim is at hand, and its digest would take all of its bytes. Raises
    `TrainerError`."""
    if not isinstance(parse_uri(address), ClaimUri):
        find_base(address, volumes, hub)


def keep_encoded(index: DatasetIndex, base: Base, encoder: Encoder) -> RowFacts | None:
    """Have the rows encoded in the cache that runs share, if it has room for them, and what is counted of them
    meanwhile; None where they are few, or are not encoded here. Raises what a training finds wrong with the rows."""
    if sum(path.stat().st_size for part in index.parts for _, path in part.files) < ENCODED_FROM_BYTES:
        return None
    place = cached_rows(os.environ)
    name = folder_name(datasets.row_key(index.sources, encoder), shared=True)
    begun = place / f".{name}.begun"
    pace = Pace(processes=_PROCESSES, longest=MOST_CHARACTERS)
    what = f"dataset.uri is {index.sources.dataset.uri}: its encoded rows"
    try:
        with held(place / f".{name}.lock", what) as lock, temporary_folder("lora-tokens-") as folder:
            if _was_killed(begun) and not (place / name).is_dir():
                log.warning(
                    "the rows are not encoded in advance: a process that did so was killed, most likely for memory; "
                    "remove %s from the cache to have it tried again",
                    begun.name,
                )
                return None
            try:
                begun.touch()
                kept = KeptRows(own=place, shared=True, may_write=lock.check)
                data = datasets.read_or_encode(index.sources, index, encoder, folder, kept, pace=pace)
            finally:
                begun.unlink(missing_ok=True)
            _check_data(base, encoder, data)
    except (OSError, StorageError, TransientError, KernelOutOfMemoryError) as error:
        log.warning("the rows are not encoded in advance: %s", one_sentence(error))
        return None
    for sentence in data.doubts:
        log.warning("%s", sentence)
    return data.rows


def _was_killed(begun: Path) -> bool:
    """Whether the process that left this mark did not come to remove it; nobody else holds the lock.

    The kernel takes the whole pod for the memory of one of its processes, so that only the next one can spare the run.
    """
    return begun.exists() and time.time() - begun.stat().st_mtime < UNUSED_S
