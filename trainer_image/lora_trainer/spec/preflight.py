"""What was found out about a run before a GPU is asked for: the base model, the rows, and the output's address."""

import enum
from dataclasses import dataclass, field

from lora_trainer.spec.api import fact, names_of

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

    Modules and the trained parameters are 0 where layers could not be counted. Of a family that is not `known` all
    counts but `parameters` are guesses.
    """

    revision: str = field(
        metadata=fact(
            "Commit of the base model on the Hub, or the digest of its listing in a bucket; empty for a volume, "
            "whose digest would take all of its bytes."
        )
    )
    model_type: str = field(metadata=fact("Architecture of the base model, as in its config.json."))
    parameters: int = field(metadata=fact("Number of parameters of the base model."))
    weight_bytes: int = field(metadata=fact("Size of the files that hold its weights, in bytes."))
    linear_modules: int = field(metadata=fact("Linear modules that an adapter could be put on."))
    adapted: int = field(metadata=fact("How many of them get one."))
    target_modules: tuple[str, ...] = field(
        metadata=names_of("Names of the modules that get an adapter.", "A module's name.")
    )
    trainable_parameters: int = field(metadata=fact("Number of parameters that are trained."))
    known: bool = field(
        default=True,
        metadata=fact(
            "Whether the architecture is one whose modules are known by name; else the counts are guesses, and "
            "the training checks them when it has loaded the model."
        ),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class RowFacts:
    """The data set, in tokens of the base's tokenizer.

    `validation_rows` None is what a preflight says that does not count them. Where only `sampled` rows were counted,
    tokens are extrapolated to all. `first_row` is JSON of at most `MOST_ROW_BYTES`, a list of objects, each with `seen`
    or `learned` and its text.
    """

    format: str = field(metadata=fact("Format of the rows, found or given."))
    fingerprint: str = field(metadata=fact("Digest of the training data; the same data give the same one."))
    train_samples: int = field(metadata=fact("Rows to train on."))
    validation_samples: int = field(metadata=fact("Samples of the rows that are held out."))
    tokens: int = field(metadata=fact("Tokens of the training rows."))
    target_tokens: int = field(metadata=fact("Tokens of them that are learned."))
    p50_tokens: int = field(metadata=fact("Median length of the training rows before the cut, in tokens."))
    p95_tokens: int = field(
        metadata=fact("Length before the cut that 95 of 100 training rows do not exceed, in tokens.")
    )
    longest_tokens: int = field(metadata=fact("Length of the longest training row, before the cut."))
    truncated_samples: int = field(metadata=fact("Rows that are cut at maxSequenceLength."))
    truncated_tokens: int = field(metadata=fact("Tokens that are cut off."))
    skipped_samples: int = field(metadata=fact("Rows without anything to learn, which are left out."))
    duplicate_samples: int = field(metadata=fact("Rows that occur more than once."))
    shared_samples: int = field(
        default=0,
        metadata=fact("Rows that are not trained on, since they are among the held-out ones of dataset.validationUri."),
    )
    validation_rows: int | None = field(default=None, metadata=fact("Rows that are held out."))
    sampled: int | None = field(
        default=None,
        metadata=fact("Rows whose lengths were counted, chosen at random by the seed; absent where all were."),
    )
    tokens_standard_error: int | None = field(
        default=None, metadata=fact("Standard error of tokens, where only some rows were counted.")
    )
    first_row: str = field(
        default="",
        metadata=fact(
            "The first row as the model will see it, in JSON, as stretches of text that are learned or not; long "
            "ones are cut."
        ),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Preflight:
    """All that preflight found out; a failure has none of it, but a reason and a sentence."""

    model: ModelFacts = field(metadata=fact("The base model, by its configuration and the headers of its files."))
    dataset: RowFacts = field(
        metadata=fact(
            "The data set, in tokens of the base model's tokenizer; token counts are after the cut at "
            "maxSequenceLength."
        )
    )
    output: OutputCheck = field(
        metadata=fact(
            "Checked where the address of the output was tried with its credentials; AtTraining where that is "
            "done when the training begins, as for a claim.",
            longest=None,
        )
    )
