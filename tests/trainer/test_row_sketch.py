"""What a checkpoint remembers of the rows that its weights were trained on."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lora_trainer.data import row_sketch
from lora_trainer.data.row_sketch import RowSketch
from lora_trainer.data.split import Keys

NUMBERS = st.lists(st.integers(0, 2**64 - 1) | st.integers(0, 20), max_size=30)


def sketch(*numbers: int) -> RowSketch:
    """Of contents with these hashes, among others."""
    return of(np.array(numbers, np.uint64))


def of(keys: Keys) -> RowSketch:
    """The same of an array, each second row of which is another's."""
    chosen = np.arange(2 * len(keys)) % 2 == 0
    return RowSketch.of(np.repeat(keys, 2) + ~chosen * np.uint64(10**6), chosen)


@given(NUMBERS, NUMBERS, NUMBERS)
def test_a_share_of_few_contents_is_exact(ours: list[int], theirs: list[int], but_for: list[int]) -> None:
    """Of the contents, however many rows hold them; also after a way through bytes, and of several runs together."""
    half = len(theirs) // 2
    joined = sketch(*theirs[:half]).joined(sketch(*theirs[half:]))
    others = RowSketch.from_bytes(joined.to_bytes())
    share = sketch(*ours).share_in(others, but_for=sketch(*but_for))
    distinct = set(ours)
    expected = len(distinct & set(theirs) - set(but_for)) / len(distinct) if distinct else 0.0
    assert share == pytest.approx(expected)


@given(st.integers(0, 2**32))
def test_a_share_of_many_contents_is_estimated(seed: int) -> None:
    """Within six standard errors of what is kept, and no more is kept than there is room for."""
    random = np.random.default_rng(seed)
    ours, rest = (random.integers(0, 2**64, 4_000, np.uint64) for _ in range(2))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(row_sketch, "MOST", 1_000)
        patch.setattr(row_sketch, "_AT_A_TIME", 700)
        further = of(random.integers(0, 2**64, 9, np.uint64))
        others = of(np.concatenate([ours[:1_000], rest])).joined(further)
        assert len(others.keys) <= 1_000
        assert len(others.to_bytes()) <= 8_008
        share = of(ours).share_in(others, but_for=sketch())
    kept = 4_000 * others.limit / 2**64
    assert share == pytest.approx(0.25, abs=6 * (0.25 * 0.75 / kept) ** 0.5)


def test_other_bytes_are_refused() -> None:
    """A file that was cut within a number, or is empty."""
    for data in (b"", b"1234567"):
        with pytest.raises(ValueError, match=r"^there is no limit$|buffer size must be a multiple"):
            RowSketch.from_bytes(data)
