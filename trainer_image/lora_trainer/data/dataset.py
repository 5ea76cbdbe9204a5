"""The data of a training: rows to tokens in files, what is evaluated, counts.

`survey` has looked at every row and chosen the held-out ones; here the files are read once more, and encoded.
"""

import dataclasses
import fcntl
import json
import logging
import shutil
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from lora_trainer.contract.config import DatasetFormat
from lora_trainer.contract.summary import DatasetStats
from lora_trainer.data.chosen_rows import Pace, encoded_rows
from lora_trainer.data.counts import Counts, Found, check
from lora_trainer.data.kept_rows import KeptRows
from lora_trainer.data.row_key import row_key
from lora_trainer.data.store import COLUMNS, Examples, Writer
from lora_trainer.data.survey import Mask, Part, Samples
from lora_trainer.data.tokens import Encoder
from lora_trainer.places.temporary import temporary_folder
from lora_trainer.ranks.activity import Counter

log = logging.getLogger(__name__)

EVALUATED_TRAINING_ROWS = 64
"""How many training rows stand in for held-out rows where none are held out."""


_TRAINING, _EVALUATION, _FACTS, _NOTE = "training", "evaluation", "data.json", "note"
_FILES = (*(f"{part}/{column}" for part in (_TRAINING, _EVALUATION) for column in COLUMNS), _FACTS)
_LOG_EVERY_S = 30.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Data:
    """What is trained on and what is evaluated; with `held_out` false the latter are training rows. `with_tools` rows
    of the files have tools."""

    training: Examples
    evaluation: Examples
    held_out: bool
    kind: DatasetFormat
    fingerprint: str
    stats: DatasetStats
    with_tools: int = 0

    @property
    def longest_evaluated(self) -> int:
        """The tokens of the longest row that is evaluated."""
        return int(self.evaluation.room(packed=False).max())


def log_data(data: Data, encoder: Encoder) -> None:
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
    first = data.training[0]
    log.info("the first row, with what is learned between >>> and <<<: %s", encoder.show(first))
    for sentence in encoder.warnings(first.input_ids, data.with_tools) if data.kind is not DatasetFormat.TEXT else ():
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


def encode_once(
    samples: Samples,
    encoder: Encoder,
    folder: Path | None,
    kept: KeptRows | None = None,
    model_revision: str = "",
    *,
    pace: Pace | None = None,
) -> Data:
    """`encode` by the first process that comes to the shared folder; the others wait and read what it wrote.

    What an earlier attempt has encoded is taken from where it is `kept`, and what is encoded is kept there.
    """
    if folder is None:
        return encode(samples, encoder)
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("wb") as lock:
        # The kernel gives the lock up with a process that dies, whose files are then made anew.
        fcntl.flock(lock, fcntl.LOCK_EX)
        facts = folder / _FACTS
        if not facts.exists():
            _fill(samples, encoder, folder, kept or KeptRows(), row_key(samples, encoder, model_revision), pace=pace)
        stats = DatasetStats(**json.loads(facts.read_text(encoding="utf-8")))
        # For the log of the process that speaks for the node, which may have been another.
        if (folder / _NOTE).exists():
            log.info("%s", (folder / _NOTE).read_text(encoding="utf-8"))
    return _data(samples, Examples.open(folder / _TRAINING), Examples.open(folder / _EVALUATION), stats)


def _fill(samples: Samples, encoder: Encoder, folder: Path, kept: KeptRows, key: str, *, pace: Pace | None) -> None:
    """Put the encoded rows into a folder, and what is to be reported of them, which completes it."""
    for name in (_TRAINING, _EVALUATION):
        shutil.rmtree(folder / name, ignore_errors=True)
    started = time.monotonic()
    if kept.read(key, folder, _FILES):
        count = sum(len(Examples.open(folder / name)) for name in (_TRAINING, _EVALUATION))
        seconds = time.monotonic() - started
        note = f"Rows: {count:,} encoded by an earlier attempt are read again ({seconds:.1f} s)"
        (folder / _NOTE).write_text(note, encoding="utf-8")
        return
    stats = encode(samples, encoder, folder, pace).stats
    (folder / _FACTS).write_text(json.dumps(dataclasses.asdict(stats)), encoding="utf-8")
    kept.keep(key, folder, _FILES)


def encode(samples: Samples, encoder: Encoder, folder: Path | None = None, pace: Pace | None = None) -> Data:
    """Tokenize all rows into files in `folder`, or in temporary ones that vanish with the process.

    Raises `DatasetError` where nothing would be learned, or not where to stop, or too much would be cut.
    """
    if folder is None:
        with temporary_folder("lora-tokens-") as temporary:
            return encode(samples, encoder, temporary, pace)
    pace = pace or Pace()
    counts = Counts()
    log_rows = _RowLog(sum(int(np.count_nonzero(part.training | part.held_out)) for part in samples.parts))
    with Writer(folder / _TRAINING) as training_writer, Writer(folder / _EVALUATION) as evaluation_writer:
        for part in samples.parts:
            for batch, block in encoded_rows(part, part.training | part.held_out, samples.layout, encoder, pace):
                is_training = part.training[np.array(batch.numbers)[block.samples]]
                kept = counts.add(batch, block)
                training_writer.append(block.select(kept & is_training))
                evaluation_writer.append(block.select(kept & ~is_training))
                log_rows(counts.rows)
                pace.alive()
    training, evaluation = Examples.open(folder / _TRAINING), Examples.open(folder / _EVALUATION)
    targets = int(training.targets.sum() + evaluation.targets.sum())
    found = Found(
        training=len(training),
        whole=int(np.count_nonzero(~training.truncated)),
        targets=targets,
        is_text=samples.kind is DatasetFormat.TEXT,
    )
    check(counts, found, encoder.max_length)
    if counts.apart:
        log.info(
            "%d samples of %d rows: prompt and answer are tokenized apart, since the prompt alone, as at "
            "inference, has other tokens than before the answer",
            counts.apart,
            counts.rows,
        )
    stats = DatasetStats(
        train_samples=len(training),
        validation_samples=len(evaluation),
        train_tokens=int(training.lengths.sum()),
        target_tokens=int(training.targets.sum()),
        longest_tokens=int(training.room(packed=False).max()),
        truncated_samples=int(training.truncated.sum() + evaluation.truncated.sum()),
        truncated_tokens=counts.cut_tokens,
        skipped_samples=samples.skipped + counts.lost,
        duplicate_samples=samples.duplicates,
        split_samples=counts.split,
        learned_answers=counts.learned_answers,
        skipped_answers=counts.answers - counts.learned_answers,
        unended_answers=counts.unended_answers,
    )
    return _data(samples, training, evaluation, stats)


def _data(samples: Samples, training: Examples, evaluation: Examples, stats: DatasetStats) -> Data:
    return Data(
        training=training,
        evaluation=evaluation or training[:EVALUATED_TRAINING_ROWS],
        held_out=bool(evaluation),
        kind=samples.kind,
        fingerprint=samples.fingerprint,
        stats=stats,
        with_tools=samples.with_tools,
    )


def encode_evaluation(samples: Samples, encoder: Encoder) -> Examples:
    """The rows that `encode` would evaluate, without tokenizing the rest."""
    with temporary_folder("lora-tokens-") as temporary:
        held_out = [(part, part.held_out) for part in samples.parts]
        evaluation = _store(samples, held_out, encoder, temporary / _EVALUATION, None)
        if evaluation:
            return evaluation
        training = [(part, part.training) for part in samples.parts]
        return _store(samples, training, encoder, temporary / _TRAINING, EVALUATED_TRAINING_ROWS)


def _store(
    samples: Samples, chosen: Sequence[tuple[Part, Mask]], encoder: Encoder, folder: Path, most: int | None
) -> Examples:
    with Writer(folder) as writer:
        left = sys.maxsize if most is None else most
        for part, wanted in chosen:
            blocks = encoded_rows(part, wanted, samples.layout, encoder)
            while left > 0 and (found := next(blocks, None)) is not None:
                kept = found[1].targets > 0
                kept &= np.cumsum(kept) <= left
                writer.append(found[1].select(kept))
                left -= int(np.count_nonzero(kept))
    return Examples.open(folder)
