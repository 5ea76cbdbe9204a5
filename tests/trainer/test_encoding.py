"""Rows encoded by several processes: the same tokens in the same order, and the same errors."""

import os
import signal
from collections.abc import Iterator, Sequence

import numpy as np
import pytest

from lora_trainer.data import encoding
from lora_trainer.data.encoding import Batch, batches, encode_batches
from lora_trainer.data.formats import Conversation, PlainText, Sample
from lora_trainer.data.messages import Message
from lora_trainer.data.tokens import Encoded, Encoder
from lora_trainer.errors import DatasetError, KernelOutOfMemoryError


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
