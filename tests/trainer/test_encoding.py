"""Rows encoded by several processes: the same tokens in the same order, and the same errors."""

import dataclasses
import os
import signal
from collections.abc import Iterator, Sequence

import numpy as np
import pytest

from lora_trainer.data import encoding, tokens
from lora_trainer.data.assistant_spans import Text
from lora_trainer.data.chosen_template import Chosen
from lora_trainer.data.completion_mask import CompletionTokenizer, Tokens
from lora_trainer.data.encoding import Batch, batches, encode_batches
from lora_trainer.data.formats import Conversation, PlainText, Sample, rendered_size, size
from lora_trainer.data.messages import Message
from lora_trainer.data.store import Block
from lora_trainer.data.tokens import Encoded, Encoder
from lora_trainer.errors import DatasetError, KernelOutOfMemoryError
from lora_trainer.spec.config import LossOn

REWRITES = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n"
    "{{ m.content if m.role == 'user' or loop.last else m.content[:-3] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
"""The text of an earlier answer is another one."""


@pytest.fixture(autouse=True)
def small_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    """A few rows suffice for several processes."""
    monkeypatch.setattr(encoding, "BATCH_ROWS", 3)
    monkeypatch.setattr(encoding, "ALONE_BATCHES", 2)


def rows(count: int) -> Iterator[tuple[int, Sample]]:
    """Every second row of a data set."""
    return ((2 * i, PlainText(where=f"line {i}", text="Fair winds, " * (i % 5) + str(i))) for i in range(count))


def test_several_processes_give_what_one_gives(encoder: Encoder) -> None:
    """In the same order, whichever is done first."""
    one, several = (list(encode_batches(batches(rows(50)), encoder, processes)) for processes in (1, 2))
    assert [batch.numbers for batch, _ in one] == [batch.numbers for batch, _ in several]
    assert [number for batch, _ in one for number in batch.numbers] == list(range(0, 100, 2))
    for (_, alone), (_, other) in zip(one, several, strict=True):
        assert np.array_equal(alone.tokens, other.tokens)
        assert np.array_equal(alone.lengths, other.lengths)


def test_long_rows_come_in_small_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    """A batch of the longest rows would not fit into memory."""
    monkeypatch.setattr(encoding, "BATCH_CHARACTERS", 100)
    samples = [PlainText(where="x", text="x" * length) for length in (10, 10, 10, 150, 90, 90)]
    assert [len(batch.samples) for batch in batches(enumerate(samples))] == [3, 1, 2]


def talk(turns: int, words: int = 9) -> Conversation:
    """A conversation of so many questions and answers."""
    roles = ("user", "assistant") * turns
    messages = [Message(role=role, content=f"{n} " + "winds " * words) for n, role in enumerate(roles)]
    return Conversation(where="x", messages=tuple(messages))


def test_long_conversations_come_in_small_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    """Before each answer all is rendered once more that comes before it."""
    monkeypatch.setattr(encoding, "BATCH_ROWS", 512)
    monkeypatch.setattr(encoding, "BATCH_RENDERED", 4 * rendered_size(talk(8)))
    assert rendered_size(talk(8)) == 8 * size(talk(8))
    assert [len(batch.samples) for batch in batches(enumerate([*[talk(8)] * 7, *[talk(1)] * 9]))] == [5, 11]


def test_what_is_tokenized_at_once_is_bounded(encoder: Encoder, monkeypatch: pytest.MonkeyPatch) -> None:
    """However many texts a conversation becomes; the tokens are the same, and what was cut is not kept."""
    encoder = Encoder(encoder.tokenizer, LossOn.COMPLETION, 60, list(encoder.stop_ids), Chosen(text=REWRITES))
    samples: list[Sample] = [talk(6), talk(1), PlainText(where="y", text="winds " * 80), talk(3)]
    whole = Block.of(encoder.encode_all(samples))
    groups: list[tuple[int, int]] = []
    tokenize = CompletionTokenizer.tokenize

    def noted(given: CompletionTokenizer, texts: Sequence[Text]) -> list[Tokens]:
        groups.append((len(texts), sum(len(text.text) for text in texts)))
        return tokenize(given, texts)

    monkeypatch.setattr(CompletionTokenizer, "tokenize", noted)
    monkeypatch.setattr(tokens, "TOKENIZED_AT_ONCE", 900)
    found = encoder.encode_all(samples)
    assert [len(several) for several in found] == [6, 1, 1, 3]
    assert max(count for count, _ in groups) > 1
    assert {count for count, characters in groups if characters > 900} == {1}, "a longer text alone"
    for field in dataclasses.fields(whole):
        assert np.array_equal(getattr(Block.of(found), field.name), getattr(whole, field.name))
    cut = [one.example.input_ids for several in found for one in several if one.example.truncated]
    assert cut
    assert all(ids.base is None for ids in cut)


def test_an_error_in_another_process_is_the_same_error(encoder: Encoder) -> None:
    """With where the row stands."""
    call = {"tool_calls": [{"function": {"name": "f", "arguments": {}}}]}
    bad = Conversation(where="line 40", messages=(Message(role="assistant", content="", extra=call),))
    given = batches([*rows(40), (80, bad), *rows(9)])
    with pytest.raises(DatasetError, match=r"^line 40: the model's chat template has no place for tool calls"):
        list(encode_batches(given, encoder, 2))


class _Killed(Encoder):
    """An encoder whose process the kernel kills."""

    def __init__(self) -> None:
        self.parent = os.getpid()

    def encode_all(self, samples: Sequence[Sample]) -> list[list[Encoded]]:
        """Never returns."""
        assert os.getpid() != self.parent
        os.kill(os.getpid(), signal.SIGKILL)
        return []


def test_a_process_that_the_kernel_kills_is_reported() -> None:
    """Most likely it was for memory."""
    given: Iterator[Batch] = batches(rows(50))
    with pytest.raises(
        KernelOutOfMemoryError, match=r"a process that encodes rows was killed.* raise resources\.memory"
    ):
        list(encode_batches(given, _Killed(), 2))
