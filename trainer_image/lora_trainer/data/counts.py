"""What is counted of rows while they are encoded, and for what of it a run is refused."""

import math
from dataclasses import dataclass

import numpy as np

from lora_trainer.data.encoding import Batch
from lora_trainer.data.store import LEARNED, Block
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
    """Over the rows that were encoded: `examples` to train on, `uncut` of them as they were; of held-out rows, too,
    `targets`, which are learned tokens, and the `largest` token. `whole` says where the first row stands whose example
    was not cut."""

    rows: int = 0
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

    def add(self, batch: Batch, block: Block, training: Mask) -> tuple[Mask, Mask]:
        """Count some more rows; which of their examples are to train on, as the mask `training` over all rows has it,
        and which are held out: those in which there is something left to learn."""
        kept: Mask = block.targets > 0
        is_training = training[np.array(batch.numbers)[block.samples]]
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
        self.examples += int(np.count_nonzero(kept & is_training))
        self.uncut += int(np.count_nonzero(kept & is_training & ~block.truncated))
        self.targets += int(block.targets.sum())
        tokens = block.tokens[np.repeat(kept, block.lengths)] & ~LEARNED
        self.largest = max(self.largest, int(tokens.max(initial=0)))
        whole = kept & ~block.truncated
        if self.whole is None and whole.any():
            self.whole = batch.samples[int(block.samples[np.flatnonzero(whole)[0]])].where
        return kept & is_training, kept & ~is_training


def objection_to(counts: Counts, max_length: int, *, is_text: bool, positions: Positions | None = None) -> str:
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
