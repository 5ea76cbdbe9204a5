"""What a training will learn from, counted before there is one: lengths in tokens, what is learned, what is cut.

No token is kept, so that any number of rows takes little memory and no disk.
"""

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from lora_trainer.data.chosen_rows import parsed_rows
from lora_trainer.data.counts import Counts, objection_to, positions_suffice, surely_lost
from lora_trainer.data.encoding import batches, encode_batches
from lora_trainer.data.first_row import show_row
from lora_trainer.data.formats import Sample, is_larger
from lora_trainer.data.store import TARGET
from lora_trainer.data.survey import DatasetIndex, Mask, Part
from lora_trainer.data.tokens import Encoder
from lora_trainer.distributed.activity import Counter
from lora_trainer.errors import DatasetError
from lora_trainer.spec.config import DatasetFormat
from lora_trainer.spec.preflight import RowFacts

log = logging.getLogger(__name__)

MOST_ROWS = 200_000
"""Of more rows, a sample of so many is counted."""

MOST_BYTES = 2**30
"""Of files, about, as far as rows of them are counted: to tokenize more would take longer than to begin a training."""

FEWEST_ROWS = 1000
"""That are counted of the largest files, too."""

LONGEST_CHARACTERS = 2**20
"""Of a row that is tokenized here, and of several at a time: a fast tokenizer takes about 160 bytes a character while
it works on it, and the pod has 1 GiB, of which the libraries take a third."""

MOST_CHARACTERS = 3 * 2**20
"""The same where no row is shorter: half a GiB, and nothing else at that time."""


def count_rows(
    index: DatasetIndex,
    encoder: Encoder,
    seed: int,
    *,
    check_token: Callable[[int], None] | None = None,
    most_rows: int = MOST_ROWS,
) -> RowFacts:
    """Count all rows, or of very many a sample drawn by `seed`. Raises `DatasetError` where a training would, and
    `ConfigError` where a row is longer than the model has positions, or `check_token` for the largest token.

    A total over N rows of which n were drawn is N times their mean; the variance of that is N² s²/n (1 - n/N), s² being
    that of the drawn rows (Cochran, Sampling Techniques, 1977, theorem 2.2).
    """
    rows = _chosen(index.parts)
    wanted = min(most_rows, _affordable(index, rows))
    parts = [_drawn(part, wanted / rows, seed) for part in index.parts] if rows > wanted else list(index.parts)
    longest = LONGEST_CHARACTERS
    counts, left_out = _counted(index, parts, encoder, longest)
    if not counts.examples and (left_out or not _are_lost(counts, left_out, rows)):
        parts = parts if left_out else list(index.parts)
        longest = MOST_CHARACTERS
        counts, left_out = _counted(index, parts, encoder, longest)
    if left_out and not counts.examples:
        raise DatasetError(
            f"{left_out} rows have more than {MOST_CHARACTERS:,} characters, or very many answers: to count them takes "
            "more memory than there is before a training, and without them nothing is left to count; split them into "
            "shorter rows, or set spec.preflight to Skip"
        )
    if left_out:
        log.warning(
            "%d rows of more than %s characters were not tokenized: tokens are extrapolated from the others",
            left_out,
            f"{longest:,}",
        )
    _check(index, counts, encoder, left_out)
    if encoder.positions is not None:
        positions_suffice(encoder.positions, encoder.max_length, counts.longest)
    if check_token is not None:
        check_token(counts.largest)
    for sentence in doubts(index, counts, encoder):
        log.warning("%s", sentence)
    facts = row_facts(index, counts, encoder)
    return _extrapolated(facts, index, counts) if counts.rows < rows else facts


def doubts(index: DatasetIndex, counts: Counts, encoder: Encoder) -> list[str]:
    """Sentences on what the chat template leaves out; plain text has none."""
    if counts.first is None or index.kind is DatasetFormat.TEXT:
        return []
    return encoder.warnings((counts.first & ~TARGET).astype(np.int64), index.with_tools)


def _check(index: DatasetIndex, counts: Counts, encoder: Encoder, left_out: int) -> None:
    """Refuse what a training would refuse, where that is certain: it sees all rows. Raises `DatasetError`."""
    rows = _chosen(index.parts)
    is_text = index.kind is DatasetFormat.TEXT
    objection = objection_to(counts, encoder.max_length, encoder.positions, is_text=is_text)
    if objection and (counts.rows == rows or _are_lost(counts, left_out, rows)):
        raise DatasetError(objection)
    if objection:
        log.warning("of %d rows, of which %d were counted, the training may say: %s", rows, counts.rows, objection)


def _are_lost(counts: Counts, left_out: int, rows: int) -> bool:
    return surely_lost(counts.lost, counts.rows + left_out, rows)


def _chosen(parts: Sequence[Part]) -> int:
    return sum(int(np.count_nonzero(part.training | part.held_out)) for part in parts)


def _affordable(index: DatasetIndex, rows: int) -> int:
    file_bytes = sum(path.stat().st_size for part in index.parts for _, path in part.files)
    return rows if file_bytes <= MOST_BYTES else max(FEWEST_ROWS, rows * MOST_BYTES // file_bytes)


def _drawn(part: Part, share: float, seed: int) -> Part:
    """The same share of the rows to train on and of those held out; the first of all to train on is among them."""
    generator = np.random.default_rng(seed)

    def draw(mask: Mask) -> Mask:
        numbers = np.flatnonzero(mask)
        chosen = np.zeros(len(mask), np.bool_)
        chosen[generator.choice(numbers, min(len(numbers), round(len(numbers) * share)), replace=False)] = True
        return chosen

    training = draw(part.training)
    training[np.flatnonzero(part.training)[:1]] = True
    return replace(part, training=training, held_out=draw(part.held_out))


def _counted(index: DatasetIndex, parts: list[Part], encoder: Encoder, longest: int) -> tuple[Counts, int]:
    """What the rows of some parts come to, and how many of them have more than `longest` characters and were left
    out."""
    counts, left_out = Counts(), 0
    counter = Counter("encoding rows", _chosen(parts))

    def short(rows: Iterator[tuple[int, Sample]]) -> Iterator[tuple[int, Sample]]:
        nonlocal left_out
        for number, sample in rows:
            if is_larger(sample, longest):
                left_out += 1
            else:
                yield number, sample

    for part in parts:
        rows = short(parsed_rows(part, part.training | part.held_out, index.layout))
        # One process: the tokenizer has threads of its own, and a second process would take its memory again.
        for batch, block in encode_batches(batches(rows), encoder, 1):
            counts.add(batch, block, part.training)
            counter(counts.rows)
    return counts, left_out


def row_facts(index: DatasetIndex, counts: Counts, encoder: Encoder) -> RowFacts:
    """What was counted, for a person."""
    return RowFacts(
        format=index.kind.value,
        fingerprint=index.sources.fingerprint,
        train_samples=counts.examples,
        validation_samples=counts.held_out,
        validation_rows=counts.held_out_rows,
        tokens=counts.tokens,
        target_tokens=counts.learned,
        p50_tokens=_reached(counts, 50),
        p95_tokens=_reached(counts, 95),
        longest_tokens=max(counts.lengths),
        truncated_samples=counts.truncated,
        truncated_tokens=counts.cut_tokens,
        skipped_samples=index.skipped + counts.lost,
        duplicate_samples=index.duplicates,
        shared_samples=index.shared,
        first_row="" if counts.first is None else show_row(_pieces(counts.first, encoder)),
    )


def _reached(counts: Counts, percent: int) -> int:
    """The least length that so many of 100 examples do not exceed: one that is, an interpolated one would be none's."""
    lengths = sorted(counts.lengths)
    reached = np.cumsum([counts.lengths[length] for length in lengths])
    return lengths[int(np.searchsorted(100 * reached, percent * counts.examples))]


def _extrapolated(facts: RowFacts, index: DatasetIndex, counts: Counts) -> RowFacts:
    """To all rows; skipped rows and duplicates were counted over all of them already."""
    training = sum(int(np.count_nonzero(part.training)) for part in index.parts)
    held_out = sum(int(np.count_nonzero(part.held_out)) for part in index.parts)
    counted = counts.training
    factor, held_out_factor = training / counted, held_out / max(1, counts.rows - counted)
    whole = (training + held_out) / counts.rows
    # In whole numbers, of which none is too large for Python.
    squares = counted * counts.squares - counts.tokens**2
    spread = (squares / (counted * (counted - 1))) ** 0.5 if counted > 1 else float(counts.tokens)
    error = training * spread / counted**0.5 * max(0.0, 1 - counted / training) ** 0.5
    return replace(
        facts,
        train_samples=round(facts.train_samples * factor),
        validation_samples=round(facts.validation_samples * held_out_factor),
        validation_rows=round(counts.held_out_rows * held_out_factor),
        tokens=round(facts.tokens * factor),
        target_tokens=round(facts.target_tokens * factor),
        truncated_samples=round(facts.truncated_samples * whole),
        truncated_tokens=round(facts.truncated_tokens * whole),
        skipped_samples=index.skipped + round(counts.lost * whole),
        sampled=counts.rows,
        tokens_standard_error=round(error),
    )


def _pieces(tokens: NDArray[np.uint32], encoder: Encoder) -> list[tuple[str, bool]]:
    learned = (tokens & TARGET) != 0
    pieces = np.split(np.arange(len(tokens)), np.flatnonzero(np.diff(learned)) + 1)
    ids = (tokens & ~TARGET).astype(np.int64)
    return [
        (encoder.tokenizer.decode(ids[piece], clean_up_tokenization_spaces=False), bool(learned[piece[0]]))
        for piece in pieces
    ]
