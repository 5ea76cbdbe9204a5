"""The data set of a run: files, rows, format, held-out split, tokens, counts."""

import random
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from lora_trainer.contract.config import DatasetFormat, TrainConfig
from lora_trainer.contract.summary import DatasetStats
from lora_trainer.dataset_files import locate
from lora_trainer.errors import DatasetError
from lora_trainer.formats import Sample, check_optional, detect, parse
from lora_trainer.hub import Hub
from lora_trainer.rows import Table, read_table
from lora_trainer.store import Examples
from lora_trainer.tokens import Encoder
from lora_trainer.volumes import Volumes

EVALUATED_TRAINING_ROWS = 64
"""How many training rows stand in for held-out rows where none are held out."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Samples:
    """Parsed rows, split. `training` and `held_out` hold no row of equal content in both."""

    training: tuple[Sample, ...]
    held_out: tuple[Sample, ...]
    kind: DatasetFormat
    fingerprint: str
    skipped: int
    duplicates: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Data:
    """What is trained on and what is evaluated; with `held_out` false the latter are training rows."""

    training: Examples
    evaluation: Examples
    held_out: bool
    kind: DatasetFormat
    fingerprint: str
    stats: DatasetStats


def load_samples(config: TrainConfig, volumes: Volumes, hub: Hub) -> Samples:
    """Read, parse and split. Raises `DatasetError`, `NotFoundError` and the errors of the Hub."""
    table = read_table(locate(config.dataset, volumes, hub))
    kind = detect(config.dataset, table.rows[0])
    check_optional(config.dataset.columns, table.rows)
    parsed = [(row.key, parse(row, kind, config.dataset.columns)) for row in table.rows]
    kept = [(key, sample) for key, sample in parsed if sample is not None]
    if not kept:
        raise DatasetError(
            f"{table.rows[0].where}: this and all other rows are empty; nothing can be learned from them"
        )
    training, held_out = split(kept, config.dataset.validation_fraction, config.training.seed)
    return Samples(
        training=training,
        held_out=held_out,
        kind=kind,
        fingerprint=table.fingerprint,
        skipped=_skipped(table, len(kept)),
        duplicates=len(kept) - len({key for key, _ in kept}),
    )


def _skipped(table: Table, kept: int) -> int:
    return table.empty + len(table.rows) - kept


def split(
    keyed: Sequence[tuple[str, Sample]], fraction: float, seed: int
) -> tuple[tuple[Sample, ...], tuple[Sample, ...]]:
    """Training and held-out samples in the order of the file. The same rows and seed give the same split.

    Rows of equal content go to the same side: a copy of a training row among the held-out rows would flatter.
    """
    wanted = round(len(keyed) * fraction)
    copies: dict[str, int] = {}
    for key, _ in keyed:
        copies[key] = copies.get(key, 0) + 1
    order = sorted(copies)
    random.Random(seed).shuffle(order)  # noqa: S311 - a reproducible split, not a secret
    held: set[str] = set()
    count = 0
    for key in order:
        if count >= wanted or count + copies[key] >= len(keyed):
            break
        held.add(key)
        count += copies[key]
    training = tuple(sample for key, sample in keyed if key not in held)
    return training, tuple(sample for key, sample in keyed if key in held)


def encode(samples: Samples, encoder: Encoder) -> Data:
    """Tokenize both sides. Raises `DatasetError` where nothing would be learned, or not where to stop."""
    training, lost = _encode_all(samples.training, encoder)
    evaluation, lost_too = _encode_all(samples.held_out, encoder)
    total = len(samples.training) + len(samples.held_out)
    if not training or lost + lost_too > total // 2:
        raise DatasetError(
            f"{lost + lost_too} of {total} rows have no answer left within training.maxSequenceLength "
            f"({encoder.max_length}): their prompts alone are longer; raise it or shorten the prompts"
        )
    _check_stop(samples, training, encoder)
    stats = DatasetStats(
        train_samples=len(training),
        validation_samples=len(evaluation),
        train_tokens=int(training.lengths.sum()),
        target_tokens=int(training.targets.sum()),
        longest_tokens=int(training.lengths.max()),
        truncated_samples=int(training.truncated.sum() + evaluation.truncated.sum()),
        skipped_samples=samples.skipped + lost + lost_too,
        duplicate_samples=samples.duplicates,
    )
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
    evaluation, _ = _encode_all(samples.held_out, encoder)
    if evaluation:
        return evaluation
    return _encode_all(samples.training, encoder)[0][:EVALUATED_TRAINING_ROWS]


def _encode_all(samples: Sequence[Sample], encoder: Encoder) -> tuple[Examples, int]:
    """Examples with something to learn, and how many rows have nothing after truncation."""
    examples = Examples.of(example for example in map(encoder.encode, samples) if example.targets)
    return examples, len(samples) - len(examples)


def _check_stop(samples: Samples, training: Examples, encoder: Encoder) -> None:
    """The first row that was not cut must teach the model to stop, else its answers would never end."""
    whole = np.flatnonzero(~training.truncated)
    if not len(whole) and samples.kind is not DatasetFormat.TEXT:
        raise DatasetError(
            f"all {len(training)} rows are longer than training.maxSequenceLength ({encoder.max_length}), so that no "
            "answer keeps its end and the model would never learn to stop: raise it or shorten the rows"
        )
    if len(whole) and not encoder.learns_to_stop(training[int(whole[0])]):
        raise DatasetError(
            f"{samples.training[0].where}: no end-of-sequence token is learned after the answer, so the model would "
            "never stop; the model's tokenizer names no eos_token: choose a model whose tokenizer has one"
        )
