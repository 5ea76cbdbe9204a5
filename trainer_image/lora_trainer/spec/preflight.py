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

    revision: str = field(metadata=fact("Commit on the Hub, or digest of the file list in a bucket; empty for a PVC."))
    model_type: str = field(metadata=fact("Architecture of the base model, as in config.json."))
    parameters: int = field(metadata=fact("Parameters of the base model."))
    weight_bytes: int = field(metadata=fact("Size of the weight files, in bytes."))
    linear_modules: int = field(metadata=fact("Linear modules that could get an adapter."))
    adapted: int = field(metadata=fact("Linear modules that get an adapter."))
    target_modules: tuple[str, ...] = field(
        metadata=names_of("Names of the modules that get an adapter.", "A module's name.")
    )
    trainable_parameters: int = field(metadata=fact("Parameters that are trained."))
    known: bool = field(
        default=True,
        metadata=fact(
            "Whether the architecture's modules are known by name. If not, the counts are guesses, which the "
            "training checks."
        ),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class RowFacts:
    """The data set, in tokens of the base's tokenizer.

    `validation_rows` None is what a preflight says that does not count them. Where only `sampled` rows were counted,
    tokens are extrapolated to all. `first_row` is JSON of at most `MOST_ROW_BYTES`, a list of objects, each with `seen`
    or `learned` and its text.
    """

    format: str = field(metadata=fact("Format of the rows, detected or given."))
    fingerprint: str = field(metadata=fact("Digest of the training data; equal data have equal digests."))
    train_samples: int = field(metadata=fact("Rows to train on."))
    validation_samples: int = field(metadata=fact("Samples of the validation set."))
    tokens: int = field(metadata=fact("Tokens of the training rows."))
    target_tokens: int = field(metadata=fact("Loss tokens among them."))
    p50_tokens: int = field(metadata=fact("Median length of the training rows before truncation, in tokens."))
    p95_tokens: int = field(
        metadata=fact("95th percentile of the training rows' lengths before truncation, in tokens.")
    )
    longest_tokens: int = field(metadata=fact("Length of the longest training row before truncation, in tokens."))
    truncated_samples: int = field(metadata=fact("Rows that are truncated to maxSequenceLength."))
    truncated_tokens: int = field(metadata=fact("Tokens that are cut off."))
    skipped_samples: int = field(metadata=fact("Rows without loss tokens, which are left out."))
    duplicate_samples: int = field(metadata=fact("Rows that occur more than once."))
    shared_samples: int = field(
        default=0,
        metadata=fact("Rows that are left out of training because validationUri also has them."),
    )
    validation_rows: int | None = field(default=None, metadata=fact("Rows of the validation set."))
    sampled: int | None = field(
        default=None,
        metadata=fact("Rows whose lengths were counted, chosen at random; absent if all were."),
    )
    tokens_standard_error: int | None = field(
        default=None, metadata=fact("Standard error of tokens, if only some rows were counted.")
    )
    first_row: str = field(
        default="",
        metadata=fact(
            "The first row as the model sees it: JSON with stretches of text that are learned or not, truncated if "
            "long."
        ),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Preflight:
    """All that preflight found out; a failure has none of it, but a reason and a sentence."""

    model: ModelFacts = field(metadata=fact("The base model, from its configuration and the headers of its files."))
    dataset: RowFacts = field(
        metadata=fact(
            "The dataset, in tokens of the base model. Token counts are after truncation to maxSequenceLength."
        )
    )
    output: OutputCheck = field(
        metadata=fact(
            "Checked if the credentials were tried at the output's address; AtTraining if the training does that, as "
            "for a PVC.",
            longest=None,
        )
    )
