"""What was found out about a run before a GPU is asked for: the base model, the rows, and the output's address."""

import enum
from dataclasses import dataclass

MOST_ROW_BYTES = 800
"""Of the first row as the model will see it, in JSON."""


class OutputCheck(enum.StrEnum):
    """Whether the output's address was tried with its credentials, or is tried when the training begins, as a claim
    is, which could otherwise bind far from the GPUs."""

    CHECKED = "Checked"
    AT_TRAINING = "AtTraining"


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelFacts:
    """The base by its configuration and its files' headers; no weight was read for it.

    `revision` is a commit, of a bucket a digest over names, sizes and ETags; it is empty where the model lies on a
    claim, whose digest is over all bytes. `weight_bytes` are those of its files. `target_modules` are the names that
    the adapter resolves to, `adapted` of `linear_modules` modules; these and the trained parameters are 0
    where layers could not be counted. Of a family that is not `known` all counts but `parameters` are guesses.
    """

    revision: str
    model_type: str
    parameters: int
    weight_bytes: int
    linear_modules: int
    adapted: int
    target_modules: tuple[str, ...]
    trainable_parameters: int
    known: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class RowFacts:
    """The data set, in tokens of the base's tokenizer.

    `tokens` are those of training rows after the cut at `maxSequenceLength`, `target_tokens` of them are learned. The
    `validation_samples` are of `validation_rows`, None is what a preflight says that does not count them. Lengths
    are of training rows before the cut: median, 95th percentile, longest; `truncated_samples` lost
    `truncated_tokens`; `shared_samples` are rows that are not trained on, since they are among the held-out ones.
    Where only `sampled` rows were counted, tokens are extrapolated to all, with `tokens_standard_error`.
    `first_row` is the first row as the model will see it: JSON of at most `MOST_ROW_BYTES`, a list of objects, each
    with `seen` or `learned` and its text.
    """

    format: str
    fingerprint: str
    train_samples: int
    validation_samples: int
    tokens: int
    target_tokens: int
    p50_tokens: int
    p95_tokens: int
    longest_tokens: int
    truncated_samples: int
    truncated_tokens: int
    skipped_samples: int
    duplicate_samples: int
    shared_samples: int = 0
    validation_rows: int | None = None
    sampled: int | None = None
    tokens_standard_error: int | None = None
    first_row: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Preflight:
    """All that preflight found out; a failure has none of it, but a reason and a sentence."""

    model: ModelFacts
    dataset: RowFacts
    output: OutputCheck
