"""Questions to a model that looks its positions up in a table: they and their answers have to fit into it."""

from pathlib import Path

import pytest
from tests.trainer import variants
from tests.trainer.test_merge import adapter_of

from lora_trainer.ask import Pair
from lora_trainer.errors import ConfigError
from lora_trainer.places.volumes import Volumes

POSITIONS = 256


@pytest.fixture
def pair(tmp_path: Path) -> Pair:
    """A GPT-2 with an adapter, whose answers may be as long as it has positions."""
    base = variants.make_gpt2(tmp_path / "base")
    adapter = adapter_of(base, tmp_path / "adapter", target_modules=["c_attn"], fan_in_fan_out=True)
    return Pair(str(base), adapter, POSITIONS, Volumes())


def test_an_answer_ends_where_the_positions_do(pair: Pair) -> None:
    """Instead of with an error of the model's embedding."""
    assert pair.answer("Who are you? " * 5).base


def test_a_question_that_leaves_no_position_for_an_answer_is_refused(pair: Pair) -> None:
    """In one sentence, with the numbers."""
    with pytest.raises(ConfigError, match=r"the question has \d+ tokens.*: gpt2 has positions for 256.*ask a shorter"):
        pair.answer("Who are you? " * 100)
