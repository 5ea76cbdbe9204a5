"""The rows of a run, checked and chosen: every row is looked at once, before a model is, and nothing of it is kept but
eight bytes."""

import logging
from array import array
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lora_trainer.contract.config import DatasetFormat, TrainConfig
from lora_trainer.data.dataset_files import Files, locate, locate_validation
from lora_trainer.data.formats import MAY_BE_ABSENT, Layout, content_key, detect, nothing_to_learn, parse
from lora_trainer.data.readers import fingerprint, read_rows
from lora_trainer.data.rows import Row
from lora_trainer.data.split import Keys, common, copies, held_out
from lora_trainer.errors import DatasetError
from lora_trainer.places.hub import Hub
from lora_trainer.places.volumes import Volumes
from lora_trainer.ranks.activity import Counter

log = logging.getLogger(__name__)

Mask = NDArray[np.bool_]
"""Which rows of some files, in their order."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """Files and what is chosen of their rows: masks over all rows in their order, read or not."""

    files: Files
    training: Mask
    held_out: Mask


@dataclass(frozen=True, slots=True, kw_only=True)
class Samples:
    """Rows that were checked and chosen, still in their files."""

    parts: tuple[Part, ...]
    layout: Layout
    fingerprint: str
    skipped: int
    duplicates: int

    @property
    def kind(self) -> DatasetFormat:
        """The format of the rows."""
        return self.layout.kind


def load_samples(config: TrainConfig, volumes: Volumes, hub: Hub) -> Samples:
    """Read, check and split. Raises `DatasetError`, `NotFoundError` and the errors of the Hub."""
    files = locate(config.dataset, volumes, hub)
    validation = locate_validation(config.dataset, volumes, hub)
    layout = detect(config.dataset, _first_row(files))
    survey = _survey(files, layout, config.dataset.columns)
    drawn = held_out(survey.keys, config.dataset.validation_fraction, config.training.seed)
    parts = [_part(survey, drawn)]
    surveys = [survey]
    if validation:
        surveys.append(_survey(validation, layout, {}))
        parts.append(_part(surveys[1], np.ones(len(surveys[1].keys), np.bool_)))
        shared = common(survey.keys, surveys[1].keys)
        if shared:
            log.warning("%d training rows are held-out rows, too: the held-out loss will flatter", shared)
    return Samples(
        parts=tuple(parts),
        layout=layout,
        fingerprint=fingerprint(files, validation),
        skipped=sum(int(np.count_nonzero(~survey.kept)) for survey in surveys),
        duplicates=copies(np.concatenate([survey.keys for survey in surveys])),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Survey:
    """Of each row whether there is something to learn; of each for which there is, the key of its content."""

    files: Files
    kept: Mask
    keys: Keys


def _first_row(files: Files) -> Row:
    first = next((row for row in read_rows(files, batch_rows=1) if row.values), None)
    if first is None:
        raise DatasetError(f"{_names(files)} has no rows: a data set needs at least one")
    return first


def _survey(files: Files, layout: Layout, mapped: Mapping[str, str]) -> _Survey:
    """Check every row. Raises `DatasetError` for the first that is wrong, or where none has anything to learn."""
    keys, kept = array("Q"), bytearray()
    absent = {role: column for role, column in mapped.items() if role in MAY_BE_ABSENT}
    first: Row | None = None
    counter = Counter("reading rows")
    for row in read_rows(files, columns=layout.names):
        sample = parse(row, layout) if row.values else None
        kept.append(sample is not None)
        counter(len(kept))
        if sample is not None:
            keys.append(content_key(sample))
        first = first or (row if row.values else None)
        absent = {role: column for role, column in absent.items() if column not in row.values} if absent else absent
    if first is None:
        raise DatasetError(f"{_names(files)} has no rows: a data set needs at least one")
    for role, column in absent.items():
        raise DatasetError(
            f'{first.where}: dataset.columns maps {role} to "{column}", which no row has; '
            f"the columns are {', '.join(list(first.values)[:20])}"
        )
    if not keys:
        raise DatasetError(f"{first.where}: this row is empty, {nothing_to_learn(first, layout)}")
    return _Survey(files=files, kept=np.frombuffer(kept, np.bool_), keys=np.frombuffer(keys, np.uint64))


def _names(files: Files) -> str:
    return ", ".join(name for name, _ in files[:8]) + (f" and {len(files) - 8} more" if len(files) > 8 else "")


def _part(survey: _Survey, drawn: Mask) -> Part:
    masks = np.zeros((2, len(survey.kept)), np.bool_)
    masks[0][survey.kept], masks[1][survey.kept] = ~drawn, drawn
    return Part(files=survey.files, training=masks[0], held_out=masks[1])
