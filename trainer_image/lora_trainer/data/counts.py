"""What is counted of rows while they are encoded, and for what of it a run is refused."""

import math
from collections import Counter
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from lora_trainer.data.encoding import Batch
from lora_trainer.data.store import TARGET, Block
from lora_trainer.data.survey import Mask
from lora_trainer.errors import ConfigError
from lora_trainer.plan.families import Positions

MOST_CUT = 0.5
"""Share of the tokens to be learned that may lie beyond the longest length; a run that loses more is refused."""

MOST_LOST = 0.5
"""The same share of rows of which nothing is learned."""

_DOUBT = 1e-12
"""How likely it may be that a refusal by a sample is wrong of the whole."""


@dataclass(slots=True, kw_only=True)
class Counts:
    """Over the rows that were encoded, `training` of them to train on: `examples` to train on, `uncut` of them as they
    were; of held-out rows, too, `targets`, which are target tokens, the `largest` token, and the `longest` example
    before the cut. `whole` says where the first row stands whose example was not cut.

    `lengths` says how many examples to train on have so many tokens before the cut, `first` is the first of these.
    `tokens` are theirs after it, `learned` of them; `squares` sums the squares of each training row's."""

    rows: int = 0
    training: int = 0
    lost: int = 0
    split: int = 0
    cut_tokens: int = 0
    cut_targets: int = 0
    apart: int = 0
    answers: int = 0
    learned_answers: int = 0
    unended_answers: int = 0
    examples: int = 0
    uncut: int = 0
    targets: int = 0
    largest: int = 0
    whole: str | None = None
    held_out: int = 0
    held_out_rows: int = 0
    truncated: int = 0
    longest: int = 0
    lengths: Counter[int] = field(default_factory=Counter)
    tokens: int = 0
    squares: int = 0
    learned: int = 0
    first: NDArray[np.uint32] | None = None

    def add(self, batch: Batch, block: Block, training: Mask) -> tuple[Mask, Mask]:
        """Count some more rows; which of their examples are to train on, as the mask `training` over all rows has it,
        and which are held out: those in which there is something left to learn."""
        kept: Mask = block.targets > 0
        rows_to_train_on = training[np.array(batch.numbers)]
        is_training = rows_to_train_on[block.samples]
        ours, held_out = kept & is_training, kept & ~is_training
        examples = np.bincount(block.samples, kept, minlength=len(batch.samples))
        self.rows += len(examples)
        self.lost += int(np.count_nonzero(examples == 0))
        self.split += int(np.count_nonzero(examples > 1))
        self.cut_tokens += int(block.cut_tokens[kept].sum())
        self.cut_targets += int(block.cut_targets.sum())
        self.apart += int(block.apart[kept].sum())
        self.answers += int(block.answers.sum())
        self.learned_answers += int(block.learned_answers[kept].sum())
        self.unended_answers += int(block.unended_answers[kept].sum())
        self.examples += int(np.count_nonzero(ours))
        self.uncut += int(np.count_nonzero(ours & ~block.truncated))
        self.targets += int(block.targets.sum())
        tokens = block.tokens[np.repeat(kept, block.lengths)] & ~TARGET
        self.largest = max(self.largest, int(tokens.max(initial=0)))
        whole = kept & ~block.truncated
        if self.whole is None and whole.any():
            self.whole = batch.samples[int(block.samples[np.flatnonzero(whole)[0]])].where
        self.training += int(np.count_nonzero(rows_to_train_on))
        self.held_out += int(np.count_nonzero(held_out))
        self.held_out_rows += len(np.unique(block.samples[held_out]))
        self.truncated += int(np.count_nonzero(block.truncated & kept))
        self._add_lengths(block, ours, held_out)
        return ours, held_out

    def _add_lengths(self, block: Block, ours: Mask, held_out: Mask) -> None:
        lengths = block.lengths + block.cut_tokens
        self.longest = max(self.longest, int(lengths[ours | held_out].max(initial=0)))
        for length, count in zip(*np.unique(lengths[ours], return_counts=True), strict=True):
            self.lengths[int(length)] += int(count)
        per_row = np.bincount(block.samples[ours], block.lengths[ours]).astype(np.int64)
        self.tokens += int(per_row.sum())
        self.squares += int((per_row**2).sum())
        self.learned += int(block.targets[ours].sum())
        if self.first is None and ours.any():
            first = int(np.flatnonzero(ours)[0])
            start = int(block.lengths[:first].sum())
            # A view would keep the whole block.
            self.first = block.tokens[start : start + int(block.lengths[first])].copy()


def objection_to(counts: Counts, max_length: int, positions: Positions | None, *, is_text: bool) -> str:
    """For what a training on just these rows is refused, as a sentence; empty where it is not. Plain text has no end to
    learn; to raise the length is no remedy where the model has no `positions` for more."""
    longest = f"training.maxSequenceLength ({max_length})"
    raised = "raise it or " if positions is None or max_length < positions.most else ""
    if not counts.examples or counts.lost > counts.rows * MOST_LOST:
        return (
            f"{counts.lost} of {counts.rows} rows have no answer left within {longest}: their prompts alone are "
            f"longer; {raised}shorten the prompts"
        )
    if not counts.uncut and not is_text:
        return (
            f"all {counts.examples} rows are longer than {longest}, so that no answer keeps its end and the model "
            f"would never learn to stop: {raised}shorten the rows"
        )
    cut = counts.cut_targets / (counts.cut_targets + counts.targets)
    if cut > MOST_CUT:
        return (
            f"{cut:.0%} of the tokens to be learned are beyond {longest} and would be cut off, more than "
            f"{MOST_CUT:.0%}: {raised}split the rows into shorter ones"
        )
    if counts.whole is not None and counts.unended_answers == counts.learned_answers:
        return (
            f"{counts.whole}: no end-of-sequence token is learned after an answer, here as in all rows, so the model "
            "would never stop; the model's tokenizer names no eos_token: choose a model whose tokenizer has one"
        )
    return ""


def positions_suffice(positions: Positions, max_length: int, longest: int) -> None:
    """Refuse rows, held-out ones among them, whose `longest` is longer than a model computes, cut as it is: on a GPU
    that would end like a broken one. Raises `ConfigError`."""
    objection = positions.objection(max_length, longest)
    if objection:
        raise ConfigError(objection)


def surely_lost(lost: int, drawn: int, rows: int) -> bool:
    """Whether of all `rows` too many have nothing to learn, by a sample of `drawn` ones without replacement.

    By the bound on the error of a mean (Serfling, Probability Inequalities for the Sum in Sampling without Replacement,
    1974, corollary 1.1): sqrt((1 - (n - 1) / N) ln(1 / p) / 2n). Of all other objections the rest of the rows decides.
    """
    error = math.sqrt((1 - (drawn - 1) / rows) * -math.log(_DOUBT) / (2 * drawn))
    # One row is not drawn: the first.
    return (lost - 1) / drawn - error > MOST_LOST
