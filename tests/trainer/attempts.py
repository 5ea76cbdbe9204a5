"""Attempts of a run, as far as its rows are concerned: each encodes them, or reads what an earlier one has encoded."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from tests.trainer import tiny
from tests.trainer.conftest import make_config

from lora_trainer.data.chosen_template import Chosen
from lora_trainer.data.dataset import Data, read_or_encode
from lora_trainer.data.formats import Sample
from lora_trainer.data.kept_rows import KeptRows
from lora_trainer.data.survey import DatasetIndex, load_index
from lora_trainer.data.tokenizer import load_encoder
from lora_trainer.data.tokens import Encoded, Encoder
from lora_trainer.spec.config import LossOn
from lora_trainer.storage.base import Base
from lora_trainer.storage.hub import Hub
from lora_trainer.storage.volumes import Volumes

READ_AGAIN = re.compile(r"Rows: 40 encoded by an earlier attempt are read again \(\d+\.\d s\)")


def samples_of(root: Path, rows: list[dict[str, Any]] | None = None, **sections: Any) -> DatasetIndex:
    """Rows on a claim, checked and chosen."""
    tiny.write_jsonl(root / "claims/data/train.jsonl", rows or tiny.chats(40))
    return load_index(make_config(**sections), Volumes(claims=root / "claims"), Hub())


class Attempts:
    """Attempts of one run: each has a temporary folder of its own, and all one to keep rows in."""

    def __init__(self, root: Path, index: DatasetIndex, encoder: Encoder, **kept: Any) -> None:
        self.root, self.samples, self.encoder = root, index, encoder
        self.own = root / "own"
        self.own.mkdir(exist_ok=True)
        self.kept = KeptRows(own=self.own, **kept)
        self.count = 0

    def run(self) -> Data:
        """What one of them trains on."""
        self.count += 1
        place = self.root / f"tokens-{self.count}"
        return read_or_encode(self.samples.sources, self.samples, self.encoder, place, self.kept)

    def encoded(self) -> bool:
        """Whether another one encodes rows, and does not read them."""
        with pytest.MonkeyPatch.context() as patch:
            encode_all, calls = self.encoder.encode_all, []

            def counted(index: Sequence[Sample]) -> list[list[Encoded]]:
                calls.append(len(index))
                return encode_all(index)

            patch.setattr(self.encoder, "encode_all", counted)
            self.run()
        return bool(calls)

    def folder(self) -> Path:
        """Where the rows are kept."""
        (found,) = self.own.iterdir()
        return found


def make_encoder(
    base: Base,
    *,
    loss_on: LossOn = LossOn.COMPLETION,
    max_length: int = 256,
    chosen: Chosen = Chosen(),  # noqa: B008
) -> Encoder:
    """The tiny model's tokenizer."""
    return load_encoder(base, loss_on, max_length, chosen)
