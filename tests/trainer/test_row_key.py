"""What encoded rows depend on: whatever makes other tokens or counts gives them another key."""

import shutil
from collections.abc import Callable
from dataclasses import replace
from datetime import date
from pathlib import Path

import pytest
from tests.trainer import tiny
from tests.trainer.attempts import Attempts, make_encoder, samples_of
from tests.trainer.test_data import ids

from lora_trainer.data import kept_rows
from lora_trainer.data.chosen_template import Chosen
from lora_trainer.data.dataset import encode, read_or_encode, row_key
from lora_trainer.data.survey import DatasetIndex
from lora_trainer.data.tokens import Encoder
from lora_trainer.spec.config import LossOn
from lora_trainer.storage.base import Base


def changed(root: Path, base: Base, name: str) -> Base:
    """A copy of the model of whose files one ends in a blank more; its commit or digest is the same."""
    folder = root / "changed"
    shutil.copytree(base.folder, folder)
    with (folder / name).open("ab") as file:
        file.write(b" ")
    return replace(base, folder=folder)


CHANGES: dict[str, Callable[[Path, Base], tuple[DatasetIndex, Encoder]]] = {
    "rows": lambda root, base: (samples_of(root, tiny.chats(41)), make_encoder(base)),
    "fraction": lambda root, base: (
        samples_of(root, dataset={"validationFraction": "0.3"}),
        make_encoder(base),
    ),
    "seed": lambda root, base: (samples_of(root, training={"seed": 7}), make_encoder(base)),
    "tokenizer": lambda root, base: (samples_of(root), make_encoder(changed(root, base, "tokenizer_config.json"))),
    "length": lambda root, base: (samples_of(root), make_encoder(base, max_length=255)),
    "loss": lambda root, base: (samples_of(root), make_encoder(base, loss_on=LossOn.ALL)),
    "template": lambda root, base: (
        samples_of(root),
        make_encoder(base, chosen=Chosen(text=tiny.CHATML.replace("user", "human") + " ")),
    ),
    "arguments": lambda root, base: (
        samples_of(root),
        make_encoder(base, chosen=Chosen(arguments={"enable_thinking": False})),
    ),
}


@pytest.mark.parametrize("change", CHANGES)
def test_whatever_makes_other_tokens_or_counts_is_encoded_anew(
    tmp_path: Path, encoder: Encoder, tiny_base: Base, change: str
) -> None:
    """And takes the place of what was kept, which no attempt of this run will read."""
    attempts = Attempts(tmp_path, samples_of(tmp_path), encoder)
    attempts.run()
    before = attempts.folder().name
    index, encoder = CHANGES[change](tmp_path, tiny_base)
    data = read_or_encode(index.sources, index, encoder, tmp_path / "tokens", attempts.kept)
    fresh = encode(index, encoder, tmp_path / "fresh")
    assert attempts.folder().name != before
    assert (ids(data.training), data.stats) == (ids(fresh.training), fresh.stats)


def test_other_weights_give_the_same_key(tmp_path: Path, tiny_base: Base) -> None:
    """Those of a model on a claim are read by the training alone: a preflight has no digest of them."""
    index = samples_of(tmp_path)
    other = replace(changed(tmp_path, tiny_base, "model.safetensors"), revision="")
    assert row_key(index.sources, make_encoder(other)) == row_key(index.sources, make_encoder(tiny_base))


def test_a_day_is_a_part_of_the_key(tmp_path: Path, tiny_base: Base) -> None:
    """For a template that writes the date, and for no other."""
    index = samples_of(tmp_path)
    text = "{{ strftime_now('%Y') }}" + tiny.CHATML

    def keys(day: date = date(2026, 7, 26)) -> tuple[str, str]:
        plain = make_encoder(tiny_base, chosen=Chosen(day=day))
        dated = make_encoder(tiny_base, chosen=Chosen(text=text, day=day))
        return row_key(index.sources, plain), row_key(index.sources, dated)

    first = keys()
    assert keys() == first
    assert [now == then for now, then in zip(keys(date(2026, 7, 27)), first, strict=True)] == [True, False]


def test_a_run_goes_on_with_its_rows_under_other_libraries(
    tmp_path: Path, encoder: Encoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where runs share a place, another one encodes them with its own."""
    own = Attempts(tmp_path / "own", samples_of(tmp_path / "own"), encoder)
    shared = Attempts(tmp_path / "shared", samples_of(tmp_path / "shared"), encoder, shared=True)
    for attempts in (own, shared):
        attempts.run()
        assert not attempts.encoded()
    monkeypatch.setattr(kept_rows, "version", lambda name: f"{name} 99")
    assert [attempts.encoded() for attempts in (own, shared)] == [False, True]
