"""What a training minimises: the seam between loop, packing, evaluation and verification, which know examples, weights
and sums alone, and what these are sums of."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

import numpy.typing as npt

from lora_trainer.data.chosen_template import Chosen
from lora_trainer.data.formats import Sample
from lora_trainer.data.store import Examples
from lora_trainer.data.tokenizer import load_encoder
from lora_trainer.data.tokens import Encoded, Encoder, one_by_one
from lora_trainer.spec.config import TrainConfig
from lora_trainer.storage.base import Base

if TYPE_CHECKING:  # preflight, which has no PyTorch, asks for `encode`
    import torch

    from lora_trainer.train.batches import Batch

Weights = Mapping[str, npt.NDArray[Any]]
"""By name, of each example."""


class Objective(Protocol):
    """A loss over examples of `sequences` sequences each.

    The loss of a step is the sum over its terms of (sum over its examples, on all processes and in all micro-batches) /
    (sum of their weights): where a micro-batch ends changes nothing. An evaluation's `measures` are such quotients,
    too; the first is the held-out loss. Both are computed from negative log-likelihoods of target tokens, in nats,
    fp32, shape (target tokens,), and of the `Batch` that they belong to.
    """

    sequences: int

    def encode(self, encoder: Encoder, samples: Sequence[Sample]) -> list[list[Encoded]]:
        """The examples of each of some rows. Raises `DatasetError`."""

    def weights(self, examples: Examples) -> Weights:
        """By term, known before any forward pass."""

    def terms(self, losses: "torch.Tensor", batch: "Batch") -> Mapping[str, "torch.Tensor"]:
        """By term, with gradients, parts of any shape whose sum is that over the examples of the batch."""

    def measure_weights(self, examples: Examples) -> Weights:
        """By measure."""

    def measures(self, losses: "torch.Tensor", batch: "Batch") -> Mapping[str, "torch.Tensor"]:
        """By measure, shape (examples,), fp64: the numerators."""


def by_sequence(losses: "torch.Tensor", batch: "Batch") -> "torch.Tensor":
    """The summed losses of each sequence of a batch, shape (examples, sequences), fp64, with gradients."""
    wide = losses.double()
    return wide.new_zeros(batch.count).index_add(0, batch.rows, wide).reshape(-1, batch.sequences)


class SupervisedFineTuning:
    """The mean negative log-likelihood of target tokens: each of them counts alike, in rows short and long."""

    sequences = 1
    encode = staticmethod(one_by_one)

    def weights(self, examples: Examples) -> Weights:
        """Learned tokens."""
        return {"loss": examples.targets}

    def terms(self, losses: "torch.Tensor", batch: "Batch") -> Mapping[str, "torch.Tensor"]:
        """The tokens' losses."""
        return {"loss": losses}

    def measure_weights(self, examples: Examples) -> Weights:
        """Learned tokens."""
        return {"loss": examples.targets}

    def measures(self, losses: "torch.Tensor", batch: "Batch") -> Mapping[str, "torch.Tensor"]:
        """The loss of each example."""
        return {"loss": by_sequence(losses, batch)[:, 0]}


SFT = SupervisedFineTuning()


def objective_of(config: TrainConfig) -> Objective:
    """What a run with this configuration minimises."""
    return SFT


def encoder_of(config: TrainConfig, base: Base, chosen: Chosen) -> Encoder:
    """What makes examples of the rows of a run with this configuration. Raises `ConfigError`."""
    training = config.training
    encode = objective_of(config).encode
    return load_encoder(base, training.loss_on, training.max_sequence_length, chosen, encode=encode)
