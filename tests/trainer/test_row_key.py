"""What encoded rows depend on: whatever makes other tokens or counts gives them another key."""

from collections.abc import Callable
from datetime import date
from pathlib import Path

import pytest
from tests.trainer import tiny
from tests.trainer.attempts import Attempts, make_encoder, samples_of
from tests.trainer.test_data import ids

from lora_trainer.contract.config import LossOn
from lora_trainer.data import row_key
from lora_trainer.data.chosen_template import Chosen
from lora_trainer.data.dataset import encode_once
from lora_trainer.data.survey import Samples
from lora_trainer.data.tokens import Encoder
from lora_trainer.places.base import Base

CHANGES: dict[str, Callable[[Path, Base], tuple[Samples, Encoder, str]]] = {
    "rows": lambda root, base: (samples_of(root, tiny.chats(41)), make_encoder(base), "commit"),
    "fraction": lambda root, base: (
        samples_of(root, dataset={"validationFraction": "0.3"}),
        make_encoder(base),
        "commit",
    ),
    "seed": lambda root, base: (samples_of(root, training={"seed": 7}), make_encoder(base), "commit"),
    "model": lambda root, base: (samples_of(root), make_encoder(base), "other"),
    "length": lambda root, base: (samples_of(root), make_encoder(base, max_length=255), "commit"),
    "loss": lambda root, base: (samples_of(root), make_encoder(base, loss_on=LossOn.ALL), "commit"),
    "template": lambda root, base: (
        samples_of(root),
        make_encoder(base, chosen=Chosen(text=tiny.CHATML.replace("user", "human") + " ")),
        "commit",
    ),
    "arguments": lambda root, base: (
        samples_of(root),
        make_encoder(base, chosen=Chosen(arguments={"enable_thinking": False})),
        "commit",
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
    samples, encoder, revision = CHANGES[change](tmp_path, tiny_base)
    data = encode_once(samples, encoder, tmp_path / "tokens", attempts.kept, revision)
    fresh = encode_once(samples, encoder, tmp_path / "fresh")
    assert attempts.folder().name != before
    assert (ids(data.training), data.stats) == (ids(fresh.training), fresh.stats)


def test_a_library_and_a_day_are_a_part_of_the_key(
    tmp_path: Path, tiny_base: Base, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another library, and another day for a template that writes the date, and for no other."""
    samples = samples_of(tmp_path)
    text = "{{ strftime_now('%Y') }}" + tiny.CHATML

    def keys(day: date = date(2026, 7, 26)) -> tuple[str, str]:
        plain = make_encoder(tiny_base, chosen=Chosen(day=day))
        dated = make_encoder(tiny_base, chosen=Chosen(text=text, day=day))
        return row_key.row_key(samples, plain, "x"), row_key.row_key(samples, dated, "x")

    first = keys()
    assert keys() == first
    assert [now == then for now, then in zip(keys(date(2026, 7, 27)), first, strict=True)] == [True, False]
    monkeypatch.setattr(row_key, "version", lambda name: f"{name} 99")
    assert not set(keys()) & set(first)
