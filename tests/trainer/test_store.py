"""Encoded rows give back what was put in, from memory and from files."""

from pathlib import Path

import numpy as np
import pytest

from lora_trainer.data.store import Block, Examples, Writer
from lora_trainer.data.tokens import IGNORED, Encoded, Example

ROWS = [
    ([5, 6, 7], [IGNORED, 6, 7], False),
    ([2**31 - 1], [2**31 - 1], True),
    ([1, 2, 3, 4], [1, IGNORED, IGNORED, 4], False),
]


def example(input_ids: list[int], labels: list[int], truncated: bool) -> Example:
    """An example of plain lists."""
    return Example(input_ids=np.array(input_ids), labels=np.array(labels), truncated=truncated)


def block(*rows: tuple[list[int], list[int], bool]) -> Block:
    """Rows packed together."""
    return Block.of([[Encoded(example=example(*row), cut_tokens=2, cut_targets=1)] for row in rows])


def plain(examples: Examples) -> list[tuple[list[int], list[int], bool]]:
    """The rows as plain lists."""
    return [(e.input_ids.tolist(), e.labels.tolist(), e.truncated) for e in examples]


@pytest.fixture(params=["memory", "files"])
def stored(request: pytest.FixtureRequest, tmp_path: Path) -> Examples:
    """The rows, in memory and in files."""
    if request.param == "memory":
        return Examples.of(example(*row) for row in ROWS)
    with Writer(tmp_path / "store") as writer:
        writer.append(block(*ROWS[:1]))
        writer.append(block(*ROWS[1:]))
    return Examples.open(tmp_path / "store")


def test_rows_come_back_as_they_were_put_in(stored: Examples) -> None:
    """Ids, labels and whether they were cut; what is learned counts from the second token on."""
    assert plain(stored) == ROWS
    assert len(stored) == 3
    assert stored.lengths.tolist() == [3, 1, 4]
    assert stored.targets.tolist() == [2, 0, 1]
    assert stored[0].input_ids.dtype == stored[0].labels.dtype == np.int64
    assert stored.lengths.dtype == stored.targets.dtype == np.int32


def test_a_view_has_the_chosen_rows_in_the_chosen_order(stored: Examples) -> None:
    """By slice and by number."""
    assert plain(stored[1:]) == ROWS[1:]
    assert plain(stored.select(np.array([2, 0, 2]))) == [ROWS[2], ROWS[0], ROWS[2]]
    assert plain(stored[-1:]) == [ROWS[-1]]
    assert stored[-1].input_ids.tolist() == ROWS[-1][0]
    with pytest.raises(IndexError):
        stored[3]


def test_examples_know_the_row_that_they_were_made_of(tmp_path: Path) -> None:
    """Over several batches, without the examples of which nothing is learned, and in views."""
    one = Encoded(example=example(*ROWS[0]), cut_tokens=0, cut_targets=0)
    several = Block.of([[one], [one, one, one], [], [one]])
    with Writer(tmp_path / "store") as writer:
        writer.append(several)
        writer.append(several.select(np.array([False, False, True, True, True])))
        writer.append(several.select(np.zeros(5, np.bool_)))
        writer.append(several)
    stored = Examples.open(tmp_path / "store")
    assert stored.rows.tolist() == [0, 1, 1, 1, 2, 3, 3, 4, 5, 6, 6, 6, 7]
    assert (stored.row_count, stored[::3].rows.tolist()) == (8, [0, 1, 3, 6, 7])
    assert Examples.of(stored).rows.tolist() == list(range(13))


def test_no_rows_are_rows_too(tmp_path: Path) -> None:
    """Nothing held out."""
    with Writer(tmp_path / "store"):
        pass
    assert plain(Examples.of([])) == plain(Examples.open(tmp_path / "store")) == []


def test_a_store_that_lost_its_end_is_reported(tmp_path: Path) -> None:
    """And not read as rows of zeros."""
    with Writer(tmp_path / "store") as writer:
        writer.append(block(ROWS[0]))
    stored = Examples.open(tmp_path / "store")
    with (tmp_path / "store/tokens").open("r+b") as file:
        file.truncate(8)
    with pytest.raises(OSError, match="shorter than when it was written"):
        stored[0]


def test_some_rows_of_a_block_are_chosen_with_their_tokens(tmp_path: Path) -> None:
    """As for the two sides of a split."""
    chosen = block(*ROWS).select(np.array([True, False, True]))
    with Writer(tmp_path / "store") as writer:
        writer.append(chosen)
    assert plain(Examples.open(tmp_path / "store")) == [ROWS[0], ROWS[2]]
    assert (chosen.cut_tokens.tolist(), chosen.cut_targets.tolist()) == ([2, 2], [1, 1])
