"""The held-out rows: as many as asked for, by content and seed alone."""

import itertools

import numpy as np
import pytest

from lora_trainer.data.split import Keys, among, at_most, copies, first_drawn, held_out


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


@pytest.mark.parametrize("most", [1, 2, 7, 26, 27, 2000])
def test_a_limit_keeps_some_of_the_rows_that_are_held_out_without_it(most: int) -> None:
    """As many as fit with all their copies; more as the limit rises, and never one that was not drawn."""
    rows = np.repeat(keys(30), 3)
    held = held_out(rows, 0.3, 7)
    kept = at_most(rows, held, most, 7)
    assert kept.sum() == min(27, most // 3 * 3)
    assert not (kept & ~held).any()
    assert set(rows[kept]).isdisjoint(rows[~kept])
    assert not (kept & ~at_most(rows, held, most + 3, 7)).any()
    assert held.sum() == 27


def test_copies_that_do_not_fit_are_passed_over() -> None:
    """What is drawn after them may fit."""
    contents = keys(6)
    draw = [contents[first_drawn(contents, most, 7) & ~first_drawn(contents, most - 1, 7)][0] for most in range(1, 7)]
    rows = np.repeat(np.array(draw), [2, 5, 1, 3, 1, 9])
    held = held_out(rows, 0.5, 7)
    kept = {most: int(at_most(rows, held, most, 7).sum()) for most in (1, 2, 3, 5, 6, 7, 8, 10, 11)}
    assert kept == {1: 1, 2: 2, 3: 3, 5: 3, 6: 6, 7: 7, 8: 8, 10: 8, 11: 11}


def test_of_a_set_that_is_held_out_whole_the_first_of_the_draw_are_taken() -> None:
    """By content and seed, copies in their order."""
    rows = keys(40)
    chosen = [first_drawn(rows, most, 7) for most in range(41)]
    assert [mask.sum() for mask in chosen] == list(range(41))
    assert all(not (fewer & ~more).any() for fewer, more in itertools.pairwise(chosen))
    order = np.random.default_rng(1).permutation(40)
    assert (first_drawn(rows[order], 9, 7) == chosen[9][order]).all()
    assert (first_drawn(rows, 9, 8) != chosen[9]).any()
    assert first_drawn(np.repeat(keys(1), 5), 2, 7).tolist() == [True, True, False, False, False]


def test_rows_of_one_set_are_found_in_another() -> None:
    """For a validation file that repeats training rows; every copy counts."""
    rows = keys(10)
    assert among(np.repeat(rows[:4], 2), rows[2:]).tolist() == [False] * 4 + [True] * 4
