"""Another objective than that of a supervised training: pairs of sequences, through a run and its verification."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.trainer.conftest import make_config
from tests.trainer.families import make_family
from tests.trainer.matrix import lay_out, train_cell

from lora_trainer.data.formats import Sample
from lora_trainer.data.store import Examples
from lora_trainer.data.tokens import IGNORED, Encoded, Encoder, Example
from lora_trainer.result.verify import verify
from lora_trainer.storage.hub import Hub
from lora_trainer.storage.volumes import Volumes
from lora_trainer.train import objective
from lora_trainer.train.batches import Batch, MicroBatchLimit, collate, idle, micro_batches
from lora_trainer.train.objective import Weights, by_sequence


class Margins:
    """The answer is to be likelier than the answer spelt backwards: -log sigmoid of the difference, each pair alike."""

    sequences = 2

    def encode(self, encoder: Encoder, samples: Sequence[Sample]) -> list[list[Encoded]]:
        """Each text and what it is compared with."""
        return [[self._pair(one) for one in several] for several in encoder.encode_texts(samples)]

    def _pair(self, one: Encoded) -> Encoded:
        ids, learned = one.example.input_ids.copy(), np.flatnonzero(one.example.labels != IGNORED)
        ids[learned] = ids[learned[::-1]]
        labels = np.where(one.example.labels != IGNORED, ids, IGNORED)
        # Shorter than the other: neither their sum nor twice the longer one is what both take.
        other = Example(input_ids=ids[:-1], labels=labels[:-1], truncated=False)
        pair = Example.of([one.example, other])
        return Encoded(example=pair, cut_tokens=one.cut_tokens, cut_targets=one.cut_targets)

    def weights(self, examples: Examples) -> Weights:
        """Pairs."""
        return {"margin": np.ones(len(examples), np.int32)}

    def terms(self, losses: torch.Tensor, batch: Batch) -> Mapping[str, torch.Tensor]:
        """The loss of each pair."""
        sums = by_sequence(losses, batch)
        return {"margin": -torch.nn.functional.logsigmoid(0.1 * (sums[:, 1] - sums[:, 0]))}

    def measure_weights(self, examples: Examples) -> Weights:
        """Pairs."""
        return {"margin": self.weights(examples)["margin"], "accuracy": self.weights(examples)["margin"]}

    def measures(self, losses: torch.Tensor, batch: Batch) -> Mapping[str, torch.Tensor]:
        """The loss, and how often the answer is likelier."""
        sums = by_sequence(losses, batch)
        return {**self.terms(losses, batch), "accuracy": (sums[:, 0] < sums[:, 1]).double()}


def run(claims: Path, folder: Path, **training: Any) -> dict[str, Any]:
    """What the manifest of a verified run says; held-out rows are pairs, too."""
    config = make_config(
        model={"uri": "pvc://models/llama"},
        dataset={"uri": "pvc://data/train.jsonl", "validationFraction": "0.25"},
        lora={"rank": 4},
        training={"maxSteps": 5, "effectiveBatchSize": 8, "learningRate": "0.01", **training},
    )
    folder.mkdir()
    outcome = train_cell(config, claims, folder)
    assert outcome.adapter is not None, outcome.refusal
    assert verify(outcome.adapter, Volumes(claims=claims), Hub()).difference <= 1e-6
    found: dict[str, Any] = json.loads((outcome.adapter / "manifest.json").read_text(encoding="utf-8"))
    return found


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_pairs_are_learned_and_verified(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Packed and padded, at once and in parts: the same numbers, whose first is that of an untrained model."""
    claims = lay_out(tmp_path / "claims")
    make_family(claims / "models/llama", "llama")
    monkeypatch.setattr(objective, "SFT", Margins())
    packed = run(claims, tmp_path / "packed")["measured"]
    parts = run(claims, tmp_path / "parts", packing="Disabled", microBatchSize=1)["measured"]
    assert packed["eval_loss_after"] < packed["eval_loss_before"] - 0.05
    assert packed["train_loss"] < packed["eval_loss_before"]
    for name in ("eval_loss_before", "eval_loss_after", "train_loss"):
        assert parts[name] == pytest.approx(packed[name], abs=1e-5)


def pairs(*lengths: tuple[int, int]) -> list[Example]:
    """Pairs of sequences, all tokens of which are learned."""
    return [Example.of([_counting(length) for length in both]) for both in lengths]


def _counting(length: int) -> Example:
    return Example(input_ids=np.arange(length), labels=np.arange(length), truncated=False)


@pytest.mark.parametrize("packed", [False, True])
def test_sequences_of_a_pair_are_rows_of_their_own(packed: bool) -> None:
    """Nothing is predicted across the border, in a batch and in what is stored."""
    examples = Examples.of(pairs((3, 5), (4, 2)))
    assert (examples.lengths.tolist(), examples.targets.tolist(), examples.longest) == ([8, 6], [6, 4], 5)
    assert examples.room(packed=packed).tolist() == ([8, 6] if packed else [10, 8])
    batch = collate(list(examples), torch.device("cpu"), packed=packed)
    assert (batch.count, batch.sequences) == (4, 2)
    assert batch.rows.tolist() == [0, 0, 1, 1, 1, 1, 2, 2, 2, 3]
    assert batch.targets.tolist() == [1, 2, 1, 2, 3, 4, 1, 2, 3, 1]
    sums = by_sequence(torch.ones(10), batch)
    assert sums.tolist() == [[2, 4], [3, 1]]


def test_pairs_stay_together() -> None:
    """In a micro-batch, a view of rows, a file and what an idle process computes."""
    room = Examples.of(pairs((3, 5), (4, 2), (1, 7))).room(packed=False)
    assert micro_batches(room, MicroBatchLimit(tokens=20, longest=14)) == [[2], [0, 1]]
    assert collate([idle(2)], torch.device("cpu")).sequences == 2
    assert [one.lengths for one in Examples.of(pairs((3, 5), (4, 2), (1, 7)))[1:]] == [(4, 2), (1, 7)]
