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
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from lora_trainer.contract.config import DatasetFormat
from lora_trainer.contract.summary import DatasetStats
from lora_trainer.data.encoding import Batch, batches, encode_batches
from lora_trainer.data.formats import Layout, Sample, parse, size
from lora_trainer.data.kept_rows import KeptRows
from lora_trainer.data.readers import read_rows
from lora_trainer.data.row_key import row_key
from lora_trainer.data.store import COLUMNS, Block, Examples, Writer
from lora_trainer.data.survey import Mask, Part, Samples
from lora_trainer.data.tokens import Encoder
from lora_trainer.errors import DatasetError, KernelOutOfMemoryError
from lora_trainer.places.temporary import temporary_folder
from lora_trainer.ranks.activity import Counter
from lora_trainer.ranks.cpus import node_cpus

log = logging.getLogger(__name__)

EVALUATED_TRAINING_ROWS = 64
"""How many training rows stand in for held-out rows where none are held out."""

MOST_CUT = 0.5
"""Share of the tokens to be learned that may lie beyond the longest length; a run that loses more is refused."""

_TRAINING, _EVALUATION, _FACTS, _NOTE = "training", "evaluation", "data.json", "note"
_FILES = (*(f"{part}/{column}" for part in (_TRAINING, _EVALUATION) for column in COLUMNS), _FACTS)
_LOG_EVERY_S = 30.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Data:
    """What is trained on and what is evaluated; with `held_out` false the latter are training rows."""

    training: Examples
    evaluation: Examples
    held_out: bool
    kind: DatasetFormat
    fingerprint: str
    stats: DatasetStats


def log_data(data: Data, encoder: Encoder) -> None:
    """Log what there is to train on, and the first row of it."""
    stats = data.stats
    log.info(
        "%s: %d training samples (%d tokens, %d learned), %d held out; %d cut by %d tokens, %d skipped, %d duplicates; "
        "%d answers learned, %d skipped, %d without their end",
        data.kind.value,
        stats.train_samples,
        stats.train_tokens,
        stats.target_tokens,
        stats.validation_samples,
        stats.truncated_samples,
        stats.truncated_tokens,
        stats.skipped_samples,
        stats.duplicate_samples,
        stats.learned_answers,
        stats.skipped_answers,
        stats.unended_answers,
    )
    log.info("the first row, with what is learned between >>> and <<<: %s", encoder.show(data.training[0]))
    if stats.split_samples:
        log.info(
            "%d rows became several samples: the chat template rewrites earlier answers, or does not end them, so that "
            "each is learned from a text of its own, with the turns before it",
            stats.split_samples,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Pace:
    """At most how many processes encode, None for all CPUs; `alive` is called again and again while they do. A row of
    more than `longest` characters is a `KernelOutOfMemoryError`."""

    processes: int | None = None
    longest: int | None = None
    alive: Callable[[], None] = lambda: None


@dataclass(slots=True, kw_only=True)
class _Counts:
    """Over the rows that were encoded; `whole` says where the first row stands whose example was not cut."""

    rows: int = 0
    lost: int = 0
    split: int = 0
    cut_tokens: int = 0
    cut_targets: int = 0
    apart: int = 0
    answers: int = 0
    learned_answers: int = 0
    unended_answers: int = 0
    whole: str | None = None

    def add(self, batch: Batch, block: Block) -> Mask:
        """Count some more rows; in which of their examples there is something left to learn."""
        kept: Mask = block.targets > 0
        examples = np.bincount(block.samples, kept, minlength=len(batch.samples))
        self.rows += len(examples)
        self.lost += int(np.count_nonzero(examples == 0))
        self.split += int(np.count_nonzero(examples > 1))
        self.cut_tokens += int(block.cut_tokens.sum())
        self.cut_targets += int(block.cut_targets.sum())
        self.apart += int(block.apart[kept].sum())
        self.answers += int(block.answers.sum())
        self.learned_answers += int(block.learned_answers[kept].sum())
        self.unended_answers += int(block.unended_answers[kept].sum())
        whole = kept & ~block.truncated
        if self.whole is None and whole.any():
            self.whole = batch.samples[int(block.samples[np.flatnonzero(whole)[0]])].where
        return kept


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
    counts = _Counts()
    log_rows = _RowLog(sum(int(np.count_nonzero(part.training | part.held_out)) for part in samples.parts))
    with Writer(folder / _TRAINING) as training_writer, Writer(folder / _EVALUATION) as evaluation_writer:
        for part in samples.parts:
            for batch, block in _encoded(part, part.training | part.held_out, samples.layout, encoder, pace):
                is_training = part.training[np.array(batch.numbers)[block.samples]]
                kept = counts.add(batch, block)
                training_writer.append(block.select(kept & is_training))
                evaluation_writer.append(block.select(kept & ~is_training))
                log_rows(counts.rows)
                pace.alive()
    training, evaluation = Examples.open(folder / _TRAINING), Examples.open(folder / _EVALUATION)
    targets = int(training.targets.sum() + evaluation.targets.sum())
    _check(samples, training, counts, targets, encoder.max_length)
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
        longest_tokens=int(training.lengths.max()),
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
            blocks = _encoded(part, wanted, samples.layout, encoder)
            while left > 0 and (found := next(blocks, None)) is not None:
                kept = found[1].targets > 0
                kept &= np.cumsum(kept) <= left
                writer.append(found[1].select(kept))
                left -= int(np.count_nonzero(kept))
    return Examples.open(folder)


def _encoded(
    part: Part, wanted: Mask, layout: Layout, encoder: Encoder, pace: Pace | None = None
) -> Iterator[tuple[Batch, Block]]:
    """The wanted rows, many at a time."""
    pace = pace or Pace()
    most = node_cpus() if pace.processes is None else min(pace.processes, node_cpus())
    return encode_batches(batches(_short(_parsed(part, wanted, layout), pace.longest)), encoder, most)


def _short(rows: Iterator[tuple[int, Sample]], longest: int | None) -> Iterator[tuple[int, Sample]]:
    for number, sample in rows:
        if longest is not None and size(sample) > longest:
            raise KernelOutOfMemoryError(
                f"{sample.where}: a row of {size(sample):,} characters takes more memory to encode than there may be"
            )
        yield number, sample


def _parsed(part: Part, wanted: Mask, layout: Layout) -> Iterator[tuple[int, Sample]]:
    left = int(np.count_nonzero(wanted))
    for row in read_rows(part.files, wanted=wanted, columns=layout.names):
        sample = parse(row, layout)
        if sample is None:
            raise DatasetError(f"{row.where}: the row changed while it was read; keep files as they are during a run")
        left -= 1
        yield row.number, sample
    if left:
        raise DatasetError(
            f"{part.files[-1][0]}: {left} rows are gone since the first reading; keep files as they are during a run"
        )


def _check(samples: Samples, training: Examples, counts: _Counts, targets: int, max_length: int) -> None:
    """Refuse what would train a model that has seen too little, or one whose answers never end."""
    longest = f"training.maxSequenceLength ({max_length})"
    if not training or counts.lost > counts.rows // 2:
        raise DatasetError(
            f"{counts.lost} of {counts.rows} rows have no answer left within {longest}: their prompts alone are "
            "longer; raise it or shorten the prompts"
        )
    whole = np.flatnonzero(~training.truncated)
    if not len(whole) and samples.kind is not DatasetFormat.TEXT:
        raise DatasetError(
            f"all {len(training)} rows are longer than {longest}, so that no answer keeps its end and the model would "
            "never learn to stop: raise it or shorten the rows"
        )
    cut = counts.cut_targets / (counts.cut_targets + targets)
    if cut > MOST_CUT:
        raise DatasetError(
            f"{cut:.0%} of the tokens to be learned lie beyond {longest} and would be cut off, more than "
            f"{MOST_CUT:.0%}: raise it, or split the rows into shorter ones"
        )
    if counts.whole is not None and counts.unended_answers == counts.learned_answers:
        raise DatasetError(
            f"{counts.whole}: no end-of-sequence token is learned after an answer, here as in all rows, so the model "
            "would never stop; the model's tokenizer names no eos_token: choose a model whose tokenizer has one"
        )
