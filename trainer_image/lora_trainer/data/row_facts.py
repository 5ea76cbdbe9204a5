"""What a training will learn from, counted before there is one: lengths in tokens, what is learned, what is cut.

No token is kept, so that any number of rows takes little memory and no disk.
"""

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from lora_trainer.contract.config import DatasetFormat
from lora_trainer.contract.preflight import RowFacts
from lora_trainer.data.chosen_rows import parsed_rows
from lora_trainer.data.counts import Counts, objection_to, positions_suffice, surely_lost
from lora_trainer.data.encoding import Batch, batches, encode_batches
from lora_trainer.data.first_row import show_row
from lora_trainer.data.formats import Sample, is_larger
from lora_trainer.data.store import LEARNED, Block
from lora_trainer.data.survey import Mask, Part, Samples
from lora_trainer.data.tokens import Encoder
from lora_trainer.errors import DatasetError
from lora_trainer.plan.families import Positions
from lora_trainer.ranks.activity import Counter

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


@dataclass(slots=True, kw_only=True)
class _Tally:
    """Over the rows that were counted, of which `training` were to train on. `lengths` are tokens of each example
    before the cut; `tokens` those of each training row after it, `targets` those of them that are learned; `longest` is
    the longest example before the cut, held-out ones among them."""

    counts: Counts = field(default_factory=Counts)
    training: int = 0
    lengths: list[NDArray[np.int64]] = field(default_factory=list)
    tokens: list[NDArray[np.int64]] = field(default_factory=list)
    targets: int = 0
    held_out: int = 0
    held_out_rows: int = 0
    truncated: int = 0
    longest: int = 0
    first: NDArray[np.uint32] | None = None

    def add(self, batch: Batch, block: Block, part: Part) -> None:
        """Count some more rows."""
        ours, held_out = self.counts.add(batch, block, part.training)
        kept, rows = ours | held_out, np.array(batch.numbers)
        self.training += int(np.count_nonzero(part.training[rows]))
        lengths = block.lengths + block.cut_tokens
        self.longest = max(self.longest, int(lengths[kept].max(initial=0)))
        self.lengths.append(lengths[ours])
        per_row = np.bincount(block.samples[ours], block.lengths[ours], minlength=len(rows)).astype(np.int64)
        self.tokens.append(per_row[part.training[rows]])
        self.targets += int(block.targets[ours].sum())
        self.held_out += int(np.count_nonzero(held_out))
        self.held_out_rows += len(np.unique(block.samples[held_out]))
        self.truncated += int(np.count_nonzero(block.truncated & kept))
        if self.first is None and ours.any():
            first = int(np.flatnonzero(ours)[0])
            start = int(block.lengths[:first].sum())
            self.first = block.tokens[start : start + int(block.lengths[first])]


def count_rows(
    samples: Samples,
    encoder: Encoder,
    seed: int,
    *,
    positions: Positions | None = None,
    check_token: Callable[[int], None] | None = None,
    most_rows: int = MOST_ROWS,
) -> RowFacts:
    """Count all rows, or of very many a sample drawn by `seed`. Raises `DatasetError` where a training would, and
    `ConfigError` where a row is longer than the model has `positions`, or `check_token` for the largest token.

    A total over N rows of which n were drawn is N times their mean; the variance of that is N² s²/n (1 - n/N), s² being
    that of the drawn rows (Cochran, Sampling Techniques, 1977, theorem 2.2).
    """
    rows = _chosen(samples.parts)
    wanted = min(most_rows, _affordable(samples, rows))
    parts = [_drawn(part, wanted / rows, seed) for part in samples.parts] if rows > wanted else list(samples.parts)
    longest = LONGEST_CHARACTERS
    tally, left_out = _tally(samples, parts, encoder, longest)
    if not tally.counts.examples and (left_out or not _are_lost(tally, left_out, rows)):
        parts = parts if left_out else list(samples.parts)
        longest = MOST_CHARACTERS
        tally, left_out = _tally(samples, parts, encoder, longest)
    if left_out and not tally.counts.examples:
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
    _check(samples, tally, encoder, left_out, positions)
    if positions is not None:
        positions_suffice(positions, encoder.max_length, tally.longest)
    if check_token is not None:
        check_token(tally.counts.largest)
    if tally.first is not None and samples.kind is not DatasetFormat.TEXT:
        for sentence in encoder.warnings((tally.first & ~LEARNED).astype(np.int64), samples.with_tools):
            log.warning("%s", sentence)
    facts = _facts(samples, tally, encoder)
    return _extrapolated(facts, samples, tally) if tally.counts.rows < rows else facts


def _check(samples: Samples, tally: _Tally, encoder: Encoder, left_out: int, positions: Positions | None) -> None:
    """Refuse what a training would refuse, where that is certain: it sees all rows. Raises `DatasetError`."""
    counts, rows = tally.counts, _chosen(samples.parts)
    is_text = samples.kind is DatasetFormat.TEXT
    objection = objection_to(counts, encoder.max_length, is_text=is_text, positions=positions)
    if objection and (counts.rows == rows or _are_lost(tally, left_out, rows)):
        raise DatasetError(objection)
    if objection:
        log.warning("of %d rows, of which %d were counted, the training may say: %s", rows, counts.rows, objection)


def _are_lost(tally: _Tally, left_out: int, rows: int) -> bool:
    return surely_lost(tally.counts.lost, tally.counts.rows + left_out, rows)


def _chosen(parts: Sequence[Part]) -> int:
    return sum(int(np.count_nonzero(part.training | part.held_out)) for part in parts)


def _affordable(samples: Samples, rows: int) -> int:
    file_bytes = sum(path.stat().st_size for part in samples.parts for _, path in part.files)
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


def _tally(samples: Samples, parts: list[Part], encoder: Encoder, longest: int) -> tuple[_Tally, int]:
    """What the rows of some parts come to, and how many of them have more than `longest` characters and were left
    out."""
    tally, left_out = _Tally(), 0
    counter = Counter("encoding rows", _chosen(parts))

    def short(rows: Iterator[tuple[int, Sample]]) -> Iterator[tuple[int, Sample]]:
        nonlocal left_out
        for number, sample in rows:
            if is_larger(sample, longest):
                left_out += 1
            else:
                yield number, sample

    for part in parts:
        rows = short(parsed_rows(part, part.training | part.held_out, samples.layout))
        # One process: the tokenizer has threads of its own, and a second process would take its memory again.
        for batch, block in encode_batches(batches(rows), encoder, 1):
            tally.add(batch, block, part)
            counter(tally.counts.rows)
    return tally, left_out


def _facts(samples: Samples, tally: _Tally, encoder: Encoder) -> RowFacts:
    lengths = np.concatenate([np.empty(0, np.int64), *tally.lengths])
    # Rows that are: interpolated lengths would belong to none.
    p50, p95 = (int(value) for value in np.percentile(lengths, (50, 95), method="inverted_cdf"))
    return RowFacts(
        format=samples.kind.value,
        fingerprint=samples.sources.fingerprint,
        train_samples=len(lengths),
        validation_samples=tally.held_out,
        validation_rows=tally.held_out_rows,
        tokens=int(sum(int(tokens.sum()) for tokens in tally.tokens)),
        target_tokens=tally.targets,
        p50_tokens=p50,
        p95_tokens=p95,
        longest_tokens=int(lengths.max()),
        truncated_samples=tally.truncated,
        truncated_tokens=tally.counts.cut_tokens,
        skipped_samples=samples.skipped + tally.counts.lost,
        duplicate_samples=samples.duplicates,
        shared_samples=samples.shared,
        first_row="" if tally.first is None else show_row(_stretches(tally.first, encoder)),
    )


def _extrapolated(facts: RowFacts, samples: Samples, tally: _Tally) -> RowFacts:
    """To all rows; skipped rows and duplicates were counted over all of them already."""
    training = sum(int(np.count_nonzero(part.training)) for part in samples.parts)
    held_out = sum(int(np.count_nonzero(part.held_out)) for part in samples.parts)
    counted = tally.training
    factor, held_out_factor = training / counted, held_out / max(1, tally.counts.rows - counted)
    whole = (training + held_out) / tally.counts.rows
    tokens = np.concatenate(tally.tokens)
    spread = float(tokens.std(ddof=1)) if counted > 1 else float(tokens.sum())
    error = training * spread / counted**0.5 * max(0.0, 1 - counted / training) ** 0.5
    return replace(
        facts,
        train_samples=round(facts.train_samples * factor),
        validation_samples=round(facts.validation_samples * held_out_factor),
        validation_rows=round(tally.held_out_rows * held_out_factor),
        tokens=round(facts.tokens * factor),
        target_tokens=round(facts.target_tokens * factor),
        truncated_samples=round(facts.truncated_samples * whole),
        truncated_tokens=round(facts.truncated_tokens * whole),
        skipped_samples=samples.skipped + round(tally.counts.lost * whole),
        sampled=tally.counts.rows,
        tokens_standard_error=round(error),
    )


def _stretches(tokens: NDArray[np.uint32], encoder: Encoder) -> list[tuple[str, bool]]:
    learned = (tokens & LEARNED) != 0
    pieces = np.split(np.arange(len(tokens)), np.flatnonzero(np.diff(learned)) + 1)
    ids = (tokens & ~LEARNED).astype(np.int64)
    return [
        (encoder.tokenizer.decode(ids[piece], clean_up_tokenization_spaces=False), bool(learned[piece[0]]))
        for piece in pieces
    ]
