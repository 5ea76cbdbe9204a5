"""The rows of a run, checked and chosen: every row is looked at once, before a model is, and nothing of it is kept but
twelve bytes, a hash and where it stands."""

import hashlib
import logging
from array import array
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lora_trainer.data.dataset_files import Files, Located, locate, locate_validation
from lora_trainer.data.file_kinds import some
from lora_trainer.data.formats import (
    MAY_BE_ABSENT,
    Conversation,
    Layout,
    content_key,
    detect,
    is_verbatim,
    nothing_to_learn,
    parse,
)
from lora_trainer.data.readers import fingerprint, read_rows
from lora_trainer.data.rows import Row
from lora_trainer.data.split import Keys, among, at_most, copies, first_drawn, held_out
from lora_trainer.distributed.activity import Counter
from lora_trainer.errors import DatasetError
from lora_trainer.plan.hint_checks import Columns
from lora_trainer.spec.config import DatasetConfig, DatasetFormat, TrainConfig
from lora_trainer.storage.hub import Hub
from lora_trainer.storage.volumes import Volumes

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
class Sources:
    """The files of a data set and of the one that it is evaluated on, where that is another, and the fingerprint of
    both."""

    dataset: DatasetConfig
    training: Located
    validation: Located
    fingerprint: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Places:
    """Rows of one file by their positions, as in `Row`."""

    file: str
    unit: str
    positions: NDArray[np.uint32]


@dataclass(frozen=True, slots=True, kw_only=True)
class DatasetIndex:
    """Rows that were checked and chosen, still in their files.

    `held_out` says where the held-out rows stand, empty where a set is held out whole; `held_out_digest` is of their
    contents, None where there are none. They were chosen among the `eligible` ones, in which there is something to
    learn. `capped`: without `dataset.maxValidationRows` there would be more. `shared` rows are left out of the training
    since they are among the held-out ones of another set. `verbatim` is whether the first row is learned as it stands
    where there is no chat template; `columns` are its own. `with_tools` is how many rows have tools.
    """

    sources: Sources
    parts: tuple[Part, ...]
    held_out: tuple[Places, ...]
    eligible: int
    capped: bool
    layout: Layout
    skipped: int
    duplicates: int
    held_out_digest: str | None
    verbatim: bool
    columns: Columns
    shared: int = 0
    with_tools: int = 0

    @property
    def kind(self) -> DatasetFormat:
        """The format of the rows."""
        return self.layout.kind


def load_index(config: TrainConfig, volumes: Volumes, hub: Hub) -> DatasetIndex:
    """Read, check and split. Raises `DatasetError`, `NotFoundError` and the errors of the Hub."""
    return choose_rows(find_sources(config.dataset, volumes, hub))


def find_sources(dataset: DatasetConfig, volumes: Volumes, hub: Hub) -> Sources:
    """Have the files at hand. Raises `DatasetError`, `NotFoundError` and the errors of the Hub."""
    training, validation = locate(dataset, volumes, hub), locate_validation(dataset, volumes, hub)
    return Sources(
        dataset=dataset,
        training=training,
        validation=validation,
        fingerprint=fingerprint(training.files, validation.files),
    )


def choose_rows(sources: Sources) -> DatasetIndex:
    """Check every row, and split. Raises `DatasetError`."""
    dataset, files, validation = sources.dataset, sources.training.files, sources.validation.files
    first = _first_row(files)
    layout = detect(dataset, first)
    columns = _columns(first, layout)
    survey = _survey(files, layout, dataset.columns)
    with_tools = survey.with_tools
    drawn, capped = _drawn(survey.keys, dataset)
    parts, keys, skipped, shared = [_part(survey, ~drawn, drawn)], survey.keys, survey.skipped, 0
    if validation:
        training, survey = survey, _survey(validation, layout, {})
        drawn, capped = _drawn_of_a_set(survey.keys, dataset)
        kept = _left_to_train_on(training.keys, survey.keys[drawn], dataset)
        parts = [_part(training, kept, np.zeros(len(kept), np.bool_)), _part(survey, np.zeros_like(drawn), drawn)]
        keys, skipped = np.concatenate([training.keys[kept], survey.keys[drawn]]), skipped + survey.skipped
        shared = int(np.count_nonzero(~kept))
    return DatasetIndex(
        sources=sources,
        parts=tuple(parts),
        held_out=() if drawn.all() else tuple(survey.places(drawn)),
        eligible=len(drawn),
        capped=capped,
        layout=layout,
        skipped=skipped,
        duplicates=copies(keys),
        held_out_digest=_digest(survey.keys[drawn]),
        verbatim=is_verbatim(first, layout),
        columns=columns,
        shared=shared,
        with_tools=with_tools,
    )


def _digest(keys: Keys) -> str | None:
    return hashlib.sha256(np.sort(keys).tobytes()).hexdigest() if len(keys) else None


def _drawn(keys: Keys, dataset: DatasetConfig) -> tuple[Mask, bool]:
    """Which rows are held out of those of the training, and whether these are fewer than the fraction asks for."""
    wanted = held_out(keys, dataset.validation_fraction, dataset.split_seed)
    most = dataset.max_validation_rows
    if most is None or np.count_nonzero(wanted) <= most:
        return wanted, False
    drawn = at_most(keys, wanted, most, dataset.split_seed)
    log.info(
        "%d rows are held out, at most dataset.maxValidationRows; %d more that dataset.validationFraction asks for are "
        "trained on",
        np.count_nonzero(drawn),
        np.count_nonzero(wanted) - np.count_nonzero(drawn),
    )
    return drawn, True


def _drawn_of_a_set(keys: Keys, dataset: DatasetConfig) -> tuple[Mask, bool]:
    """The same of the rows of `dataset.validationUri`, which are all evaluated where no number is given."""
    most = dataset.max_validation_rows
    if most is None or len(keys) <= most:
        return np.ones(len(keys), np.bool_), False
    log.info("%d of the %d rows of dataset.validationUri are evaluated: dataset.maxValidationRows", most, len(keys))
    return first_drawn(keys, most, dataset.split_seed), True


def _left_to_train_on(keys: Keys, held_out: Keys, dataset: DatasetConfig) -> Mask:
    """The training rows that do not stand among those of `dataset.validationUri`, whose loss would flatter. Raises
    `DatasetError` where there are none."""
    kept = ~among(keys, held_out)
    if not kept.any():
        raise DatasetError(
            f"dataset.validationUri is {dataset.validation_uri}: all {len(keys)} rows of dataset.uri ({dataset.uri}) "
            "are among its rows, which are not trained on: name other rows, or remove the field to hold out some of "
            "dataset.uri"
        )
    if not kept.all():
        log.info(
            "%d rows are left out of the training: they are among the rows of dataset.validationUri, too",
            np.count_nonzero(~kept),
        )
    return kept


@dataclass(frozen=True, slots=True, kw_only=True)
class _Survey:
    """Of each row whether there is something to learn; of each for which there is, the key of its content and its
    position in its file. `begins` says at which of these a file begins, with its name and the unit of positions;
    `with_tools` is how many of them have tools."""

    files: Files
    kept: Mask
    keys: Keys
    positions: NDArray[np.uint32]
    begins: tuple[tuple[int, str, str], ...]
    with_tools: int

    @property
    def skipped(self) -> int:
        """How many rows have nothing to learn."""
        return int(np.count_nonzero(~self.kept))

    def places(self, drawn: Mask) -> Iterator[Places]:
        """Where the rows stand that are drawn of those with something to learn."""
        ends = [*(start for start, _, _ in self.begins[1:]), len(self.keys)]
        for (start, file, unit), end in zip(self.begins, ends, strict=True):
            positions = self.positions[start:end][drawn[start:end]]
            if len(positions):
                yield Places(file=file, unit=unit, positions=positions)


def _first_row(files: Files) -> Row:
    first = next((row for row in read_rows(files, batch_rows=1) if row.values), None)
    if first is None:
        raise DatasetError(f"{_names(files)} has no rows: a data set needs at least one")
    return first


def _columns(first: Row, layout: Layout) -> Columns:
    read = {role: column for role, column in layout.columns.items() if column in first.values}
    unread = tuple(column for column in first.values if column not in layout.names)
    if unread:
        log.info("%s: columns that are read: %s; not read: %s", first.where, some(read.values()), some(unread))
    return Columns(format=layout.kind, read=read, unread=unread)


def _survey(files: Files, layout: Layout, mapped: Mapping[str, str]) -> _Survey:
    """Check every row. Raises `DatasetError` for the first that is wrong, or where none has anything to learn."""
    keys, positions, kept = array("Q"), array("I"), bytearray()
    begins: list[tuple[int, str, str]] = []
    absent = {role: column for role, column in mapped.items() if role in MAY_BE_ABSENT}
    first: Row | None = None
    with_tools = 0
    counter = Counter("reading rows")
    for row in read_rows(files, columns=layout.names):
        sample = parse(row, layout) if row.values else None
        kept.append(sample is not None)
        counter(len(kept))
        if sample is not None:
            if not begins or begins[-1][1] != row.file:
                begins.append((len(keys), row.file, row.unit))
            keys.append(content_key(sample))
            positions.append(row.position)
            with_tools += isinstance(sample, Conversation) and bool(sample.tools)
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
    return _Survey(
        files=files,
        kept=np.frombuffer(kept, np.bool_),
        keys=np.frombuffer(keys, np.uint64),
        positions=np.frombuffer(positions, np.uint32),
        begins=tuple(begins),
        with_tools=with_tools,
    )


def _names(files: Files) -> str:
    return ", ".join(name for name, _ in files[:8]) + (f" and {len(files) - 8} more" if len(files) > 8 else "")


def _part(survey: _Survey, training: Mask, drawn: Mask) -> Part:
    masks = np.zeros((2, len(survey.kept)), np.bool_)
    masks[0][survey.kept], masks[1][survey.kept] = training, drawn
    return Part(files=survey.files, training=masks[0], held_out=masks[1])
