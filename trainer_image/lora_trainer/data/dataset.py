"""The data of a training: rows to tokens in files, what is evaluated, counts.

`survey` has looked at every row and chosen the held-out ones; here the files are read once more, and encoded.
"""

import dataclasses
import hashlib
import json
import logging
import time
from dataclasses import dataclass
from datetime import date
from pathlib import Path

import numpy as np

from lora_trainer.data.chosen_rows import Pace, encoded_rows
from lora_trainer.data.counts import Counts, objection_to
from lora_trainer.data.held_out import EVALUATED_TRAINING_ROWS, write_held_out_rows
from lora_trainer.data.kept_rows import KeptRows
from lora_trainer.data.row_facts import doubts, row_facts
from lora_trainer.data.store import COLUMNS, Examples, Writer
from lora_trainer.data.survey import DatasetIndex, Sources, choose_rows
from lora_trainer.data.tokens import Encoder
from lora_trainer.distributed.activity import Counter
from lora_trainer.errors import DatasetError, storage_error
from lora_trainer.plan.hint_checks import Columns
from lora_trainer.spec import codec
from lora_trainer.spec.config import DatasetFormat
from lora_trainer.spec.preflight import RowFacts
from lora_trainer.spec.summary import DatasetStats
from lora_trainer.storage.held_out_rows import HELD_OUT_ROWS
from lora_trainer.storage.temporary import temporary_folder

log = logging.getLogger(__name__)

_TRAINING, _EVALUATION, _FACTS = "training", "evaluation", "data.json"
FILES = (*(f"{part}/{column}" for part in (_TRAINING, _EVALUATION) for column in COLUMNS), HELD_OUT_ROWS, _FACTS)
"""Of a folder with prepared data. The last one completes it."""

_LOG_EVERY_S = 30.0


@dataclass(frozen=True, kw_only=True)
class Facts:
    """What is known of prepared data beside its examples, so that nobody else looks at rows, tokenizer or template.

    `columns`, `capped` and `held_out_digest` are as in `DatasetIndex`, the revisions of data sets commits of the Hub.
    `stats` is what the training says of the rows, `rows` what a preflight says. `day` is what the chat template may
    write into rows, None of one that reads no clock; `template` the text to serve with, where the model's own will not
    do, `template_digest` that of a chosen one. `verbatim` says that the first row is learned as it stands. `first` is
    that row as a person is shown it, `doubts` are sentences on what the template leaves out.
    """

    kind: DatasetFormat
    fingerprint: str
    dataset_revision: str | None
    validation_revision: str | None
    held_out_digest: str | None
    capped: bool
    columns: Columns
    stats: DatasetStats
    rows: RowFacts
    day: date | None
    template: str | None
    template_digest: str | None
    verbatim: bool
    largest_token: int
    first: str
    doubts: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Data(Facts):
    """What is trained on and what is evaluated; with `held_out` false the latter are training rows."""

    training: Examples
    evaluation: Examples
    held_out: bool

    @property
    def longest_evaluated(self) -> int:
        """The tokens of the longest row that is evaluated."""
        return int(self.evaluation.room(packed=False).max())


def log_data(data: Data) -> None:
    """Log what there is to train on, and the first row of it."""
    stats = data.stats
    log.info(
        "%s: %d training samples (%d tokens, %d learned), %d held out (of %d rows); %d cut by %d tokens, "
        "%d skipped, %d duplicates; %d answers learned, %d skipped, %d without their end",
        data.kind.value,
        stats.train_samples,
        stats.train_tokens,
        stats.target_tokens,
        stats.validation_samples,
        data.evaluation.row_count if data.held_out else 0,
        stats.truncated_samples,
        stats.truncated_tokens,
        stats.skipped_samples,
        stats.duplicate_samples,
        stats.learned_answers,
        stats.skipped_answers,
        stats.unended_answers,
    )
    log.info("the first row, with what is learned between >>> and <<<: %s", data.first)
    for sentence in data.doubts:
        log.warning("%s", sentence)
    if stats.split_samples:
        log.info(
            "%d rows became several samples: the chat template rewrites earlier answers, or does not end them, so that "
            "each is learned from a text of its own, with the turns before it",
            stats.split_samples,
        )


class _RowLog:
    """Logs now and then how many rows are encoded, and reports it more often."""

    def __init__(self, rows: int) -> None:
        self._rows = rows
        self._count = Counter("encoding rows", rows)
        self._logged_at_s = time.monotonic()

    def __call__(self, done: int) -> None:
        self._count(done)
        if time.monotonic() - self._logged_at_s >= _LOG_EVERY_S:
            self._logged_at_s = time.monotonic()
            log.info("encoded %d of %d rows", done, self._rows)


def open_data(folder: Path) -> Data:
    """What was prepared in a folder; the examples stay in its files, and are read when they are asked for."""
    facts = codec.decode(Facts, json.loads((folder / _FACTS).read_text(encoding="utf-8")))
    training, evaluation = Examples.open(folder / _TRAINING), Examples.open(folder / _EVALUATION)
    return Data(
        training=training,
        evaluation=evaluation or training[:EVALUATED_TRAINING_ROWS],
        held_out=bool(evaluation),
        **{field.name: getattr(facts, field.name) for field in dataclasses.fields(Facts)},
    )


def row_key(sources: Sources, encoder: Encoder) -> str:
    """Digest (64 hexadecimal digits) over all that decides which examples are trained and evaluated, and their
    counts."""
    document = {
        "counted": sorted(field.name for kind in (Facts, DatasetStats, RowFacts) for field in dataclasses.fields(kind)),
        "dataset": codec.encode(sources.dataset),
        "content": sources.fingerprint,
        "files": [[part.commit, [name for name, _ in part.files]] for part in (sources.training, sources.validation)],
        "encoder": encoder.facts(),
    }
    text = json.dumps(document, sort_keys=True)
    return hashlib.sha256(text.encode(errors="surrogatepass")).hexdigest()


def read_or_encode(
    sources: Sources,
    index: DatasetIndex | None,
    encoder: Encoder,
    folder: Path,
    kept: KeptRows,
    *,
    pace: Pace | None = None,
) -> Data:
    """The data that was `kept` for another attempt, or else encoded and kept there; in files of the empty `folder`.

    `index` are the chosen rows, where somebody has looked at them already. Raises as `encode`.
    """
    started = time.monotonic()
    key = row_key(sources, encoder)
    if kept.read(key, folder, FILES):
        count = sum(len(Examples.open(folder / name)) for name in (_TRAINING, _EVALUATION))
        seconds = time.monotonic() - started
        log.info("Rows: %s encoded by an earlier attempt are read again (%.1f s)", f"{count:,}", seconds)
        return open_data(folder)
    data = encode(index or choose_rows(sources), encoder, folder, pace)
    kept.keep(key, folder, FILES)
    return data


def encode(index: DatasetIndex, encoder: Encoder, folder: Path | None = None, pace: Pace | None = None) -> Data:
    """Tokenize all rows into files in `folder`, or in temporary ones that vanish with the process.

    Raises `DatasetError` where nothing would be learned, or not where to stop, or too much would be cut.
    """
    if folder is None:
        with temporary_folder("lora-tokens-") as temporary:
            return encode(index, encoder, temporary, pace)
    pace = pace or Pace()
    counts = Counts()
    log_rows = _RowLog(sum(int(np.count_nonzero(part.training | part.held_out)) for part in index.parts))
    with Writer(folder / _TRAINING) as training_writer, Writer(folder / _EVALUATION) as evaluation_writer:
        for part in index.parts:
            for batch, block in encoded_rows(part, part.training | part.held_out, index.layout, encoder, pace):
                ours, held_out = counts.add(batch, block, part.training)
                training_writer.append(block.select(ours))
                evaluation_writer.append(block.select(held_out))
                log_rows(counts.rows)
    is_text = index.kind is DatasetFormat.TEXT
    objection = objection_to(counts, encoder.max_length, encoder.positions, is_text=is_text)
    if objection:
        raise DatasetError(objection)
    training = Examples.open(folder / _TRAINING)
    if counts.apart:
        log.info(
            "%d samples of %d rows: prompt and answer are tokenized apart, since the prompt alone, as at "
            "inference, has other tokens than before the answer",
            counts.apart,
            counts.rows,
        )
    stats = DatasetStats(
        train_samples=counts.examples,
        validation_samples=counts.held_out,
        train_tokens=counts.tokens,
        target_tokens=counts.learned,
        longest_tokens=int(training.room(packed=False).max()),
        truncated_samples=counts.truncated,
        truncated_tokens=counts.cut_tokens,
        skipped_samples=index.skipped + counts.lost,
        duplicate_samples=index.duplicates,
        split_samples=counts.split,
        learned_answers=counts.learned_answers,
        skipped_answers=counts.answers - counts.learned_answers,
        unended_answers=counts.unended_answers,
    )
    write_held_out_rows(folder, index)
    facts = Facts(
        kind=index.kind,
        fingerprint=index.sources.fingerprint,
        dataset_revision=index.sources.training.commit,
        validation_revision=index.sources.validation.commit,
        held_out_digest=index.held_out_digest,
        capped=index.capped,
        columns=index.columns,
        stats=stats,
        rows=row_facts(index, counts, encoder),
        day=encoder.day,
        template=encoder.template,
        template_digest=encoder.chosen.digest,
        verbatim=index.verbatim and not encoder.has_template,
        largest_token=counts.largest,
        first=encoder.show(training[0]),
        doubts=tuple(doubts(index, counts, encoder)),
    )
    try:
        (folder / _FACTS).write_text(json.dumps(codec.encode(facts)), encoding="utf-8")
    except OSError as error:
        raise storage_error(error, f"the folder for tokens, {folder},") from error
    return open_data(folder)
