"""The held-out rows: as many as asked for, by content and seed alone."""

import numpy as np
import pytest

from lora_trainer.data.split import Keys, common, copies, held_out


def keys(count: int) -> Keys:
    """Hashes of distinct contents."""
    return np.random.default_rng(7).integers(0, 2**64, count, dtype=np.uint64)


@pytest.mark.parametrize(
    ("count", "fraction", "held"),
    [(100, 0.2, 20), (10, 0.25, 2), (20, 0.02, 0), (2, 0.9, 1), (5, 0.0, 0), (1, 0.9, 0), (10_000, 0.02, 200)],
)
def test_the_fraction_is_held_out(count: int, fraction: float, held: int) -> None:
    """Rounded; 2 % of 20 rows are none; at least one row is left to train on."""
    assert held_out(keys(count), fraction, 42).sum() == held


def test_the_split_depends_on_seed_and_content_alone() -> None:
    """The same twice and in another order, another one for another seed."""
    rows = keys(50)
    shuffled = np.random.default_rng(1).permutation(50)
    assert held_out(rows, 0.2, 1).tolist() == held_out(rows, 0.2, 1).tolist()
    assert held_out(rows[shuffled], 0.2, 1).tolist() == held_out(rows, 0.2, 1)[shuffled].tolist()
    assert held_out(rows, 0.2, 1).tolist() != held_out(rows, 0.2, 2).tolist()


def test_copies_of_a_row_stay_on_one_side() -> None:
    """A held-out row that was also trained on would flatter the result."""
    rows = np.repeat(keys(30), 3)
    held = held_out(rows, 0.3, 7)
    assert held.sum() == 27
    assert set(rows[held]).isdisjoint(rows[~held])
    assert (copies(rows), copies(keys(30))) == (60, 0)


def test_rows_that_are_all_alike_are_all_trained_on() -> None:
    """Any split would have copies on both sides."""
    assert held_out(np.repeat(keys(1), 20), 0.5, 7).sum() == 0


def test_rows_of_one_set_are_found_in_another() -> None:
    """For a validation file that repeats training rows; every copy counts."""
    rows = keys(10)
    assert common(np.repeat(rows[:4], 2), rows[2:]) == 4
