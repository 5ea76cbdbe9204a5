"""Questions to a model that looks its positions up in a table: they and their answers have to fit into it."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from tests.trainer import variants
from tests.trainer.test_merge import adapter_of

from lora_trainer import ask
from lora_trainer.ask import Answer, Pair
from lora_trainer.errors import ConfigError
from lora_trainer.storage.volumes import Volumes

POSITIONS = 256


@pytest.fixture
def pair(tmp_path: Path) -> Pair:
    """A GPT-2 with an adapter, whose answers may be as long as it has positions."""
    base = variants.make_gpt2(tmp_path / "base")
    adapter = adapter_of(base, tmp_path / "adapter", target_modules=["c_attn"], fan_in_fan_out=True)
    return Pair(str(base), adapter, POSITIONS, Volumes())


def test_a_pickled_adapter_is_refused(tmp_path: Path) -> None:
    """A pickle can run code when it is read."""
    (tmp_path / "adapter_config.json").write_text("{}")
    (tmp_path / "adapter_model.bin").touch()
    with pytest.raises(ConfigError, match=r"there is no adapter_model\.safetensors"):
        Pair(None, tmp_path, POSITIONS, Volumes())


def test_an_answer_ends_where_the_positions_do(pair: Pair) -> None:
    """Instead of with an error of the model's embedding."""
    assert pair.answer("Who are you? " * 5).base


def test_a_question_that_leaves_no_position_for_an_answer_is_refused(pair: Pair) -> None:
    """In one sentence, with the numbers."""
    with pytest.raises(ConfigError, match=r"the question has \d+ tokens.*: gpt2 has positions for 256.*ask a shorter"):
        pair.answer("Who are you? " * 100)


def test_each_side_answers_with_its_own_answers_in_mind(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    """A second question is asked behind the first one and what that side answered."""
    prompts: list[str] = []

    def seen(model: object, encoder: Any, prompt: Sequence[int], *_: object) -> str:
        prompts.append(encoder.tokenizer.decode(prompt))
        return "yes"

    monkeypatch.setattr(ask, "_answer", seen)
    before = [Answer(question="Who are you?", base="A model.", adapter="The shop.")]
    pair.answer("And by\nmail?", before)
    for prompt, own, other in zip(prompts, ("A model.", "The shop."), ("The shop.", "A model."), strict=True):
        assert prompt.index("Who are you?") < prompt.index(own) < prompt.index("And by\nmail?")
        assert other not in prompt


@pytest.mark.parametrize("line", ["Hi", "[]", "{}", '{"question": 1}', '{"question": "Hi", "before": [{}]}'])
def test_a_line_that_is_no_question_is_refused(line: str) -> None:
    """In one sentence, with an example."""
    with pytest.raises(ConfigError, match=r"a line of standard input is .*: must be JSON with a question, as in \{"):
        ask.asked_in(line)
