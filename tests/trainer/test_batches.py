"""Which rows each optimizer step has, and how they are cut into micro-batches."""

from itertools import islice, pairwise

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lora_trainer.data.tokens import IGNORED, Example
from lora_trainer.model.rope import STEADY
from lora_trainer.spec.config import TrainingConfig
from lora_trainer.train.batches import MicroBatchLimit, collate, evaluation_limit, micro_batches, step_rows, token_limit
from lora_trainer.train.packs import accumulation
from lora_trainer.train.schedule import total_steps, wanted_rows

CPU = torch.device("cpu")


def taken(rows: int, effective: int, total_rows: int, seen: int = 0) -> list[list[int]]:
    """The rows of each step."""
    return [step.tolist() for step in step_rows(rows, effective, total_rows, seed=1, seen=seen)]


def test_every_row_is_seen_once_in_each_pass() -> None:
    """Ten rows in steps of four, two passes and a half: the last step is short."""
    found = taken(10, 4, 25)
    assert [len(rows) for rows in found] == [4, 4, 4, 4, 4, 4, 1]
    flat = [row for rows in found for row in rows]
    assert sorted(flat[:10]) == sorted(flat[10:20]) == list(range(10))
    assert flat[:10] != flat[10:20]
    assert found == taken(10, 4, 25)


def test_a_batch_larger_than_the_data_takes_several_passes() -> None:
    """Each row as often as another."""
    (rows,) = taken(3, 9, 9)
    assert sorted(rows) == [0, 0, 0, 1, 1, 1, 2, 2, 2]


@pytest.mark.parametrize("start", range(8))
def test_any_step_can_be_the_first(start: int) -> None:
    """A run that goes on sees what the uninterrupted one would have seen from there on."""
    assert taken(10, 4, 25, 4 * start) == taken(10, 4, 25)[start:]


def test_what_goes_on_after_a_short_step_leaves_out_no_row() -> None:
    """A pass over 100 rows in steps of 64 ends with one of 36; another pass follows it."""
    config = TrainingConfig(epochs=2.0, effective_batch_size=64)
    rows = taken(100, 64, wanted_rows(config, 100, 2, 100), seen=100)
    assert [len(step) for step in rows] == [64, 36]
    assert sorted(row for step in rows for row in step) == list(range(100))
    assert total_steps(config, 100, 2, 100) == 2 + len(rows)


@pytest.mark.parametrize(
    ("config", "rows", "steps"),
    [
        (TrainingConfig(epochs=2.0, effective_batch_size=64), 200, 4),
        (TrainingConfig(epochs=1.5, effective_batch_size=64), 150, 3),
        (TrainingConfig(epochs=None, max_steps=5, effective_batch_size=64), 100 + 3 * 64, 5),
        (TrainingConfig(epochs=None, max_steps=2, effective_batch_size=64), 100, 2),
    ],
)
def test_what_goes_on_after_a_short_step_is_as_long_as_its_spec_says(
    config: TrainingConfig, rows: int, steps: int
) -> None:
    """After two steps, which saw all of 100 rows: so many rows and steps in all."""
    assert (wanted_rows(config, 100, 2, 100), total_steps(config, 100, 2, 100)) == (rows, steps)


def test_what_has_seen_more_rows_than_are_left_takes_no_further_step() -> None:
    """Rows that became fewer: its steps do not end before the one that was reached."""
    assert total_steps(TrainingConfig(epochs=1.0, effective_batch_size=16), 800, 56, 900) == 56


@given(st.integers(1, 300), st.integers(1, 70), st.one_of(st.floats(0.01, 4.0), st.integers(1, 20)), st.integers(0, 20))
def test_an_attempt_is_as_long_as_the_whole_run(rows: int, effective: int, length: float, step: int) -> None:
    """Whichever step it goes on after, the last included."""
    by_steps = isinstance(length, int)
    config = TrainingConfig(
        epochs=None if by_steps else length, max_steps=int(length) if by_steps else None, effective_batch_size=effective
    )
    wanted, total = wanted_rows(config, rows), total_steps(config, rows)
    step = min(step, total)
    seen = min(step * effective, wanted)
    assert (wanted_rows(config, rows, step, seen), total_steps(config, rows, step, seen)) == (wanted, total)
    assert len(taken(rows, effective, wanted, seen)) == total - step


def test_another_seed_gives_another_order() -> None:
    """The seed decides, and nothing else."""
    first, second = (next(step_rows(50, 50, 50, seed=seed)).tolist() for seed in (1, 2))
    assert first != second
    assert sorted(first) == sorted(second)


def test_ten_million_rows_take_a_small_number_each() -> None:
    """The order of one pass is all that is kept."""
    steps = list(islice(step_rows(10_000_000, 16, 10_000_000, seed=1, seen=9_600_000), 2))
    assert [len(step) for step in steps] == [16, 16]
    assert steps[0].dtype.itemsize == 4


@pytest.mark.parametrize(
    ("micro", "longest", "tokens", "rows"),
    [(None, 100, 4096, 40), (None, 9000, 4096, 1), (1, 9000, 9000, 1), (4, 1000, 4000, 4)],
)
def test_a_micro_batch_holds_as_many_tokens_as_the_user_allowed(
    micro: int | None, longest: int, tokens: int, rows: int
) -> None:
    """The number of rows that the user gave, at the longest length; else the documented number of tokens."""
    limit = MicroBatchLimit.of(micro, longest)
    assert (limit.tokens, limit.rows) == (tokens, rows)


def test_a_budget_is_halved_until_a_single_row_is_left() -> None:
    """Below that nothing can be saved by smaller micro-batches."""
    limit: MicroBatchLimit | None = MicroBatchLimit.of(4, 1000)
    sizes = []
    while limit is not None:
        sizes.append(limit.tokens)
        limit = limit.halved()
    assert sizes == [4000, 2000, 1000]


@pytest.mark.parametrize("packed", [True, False])
def test_a_pack_of_short_rows_shrinks_to_the_longest_row(*, packed: bool) -> None:
    """Although no second row of the longest length had room in it."""
    halved = MicroBatchLimit(tokens=4096, longest=3000, packed=packed).halved()
    assert halved is not None
    assert halved.tokens == 3000
    assert halved.halved() is None
    assert MicroBatchLimit(tokens=4096, longest=5000, packed=packed).halved() is None


def test_rows_of_like_length_share_a_micro_batch() -> None:
    """The longest first, nothing lost, padding within the budget; a row that is longer comes alone."""
    lengths = [10, 50, 20, 200, 30, 11, 12]
    parts = list(micro_batches(lengths, MicroBatchLimit(tokens=100, longest=200)))
    in_order = [lengths[row] for part in parts for row in part]
    assert all(first >= second for first, second in pairwise(in_order))
    assert sorted(in_order) == sorted(lengths)
    assert all(len(part) == 1 or max(lengths[row] for row in part) * len(part) <= 100 for part in parts)
    assert parts[0] == [3]


def test_packs_are_filled_best_fit() -> None:
    """Nothing lost, no pack above the budget but a row that is longer, the fullest first, and few of them."""
    lengths = [10, 50, 20, 200, 30, 11, 12, 70, 60]
    parts = micro_batches(lengths, MicroBatchLimit(tokens=100, longest=200, packed=True))
    assert sorted(row for part in parts for row in part) == list(range(len(lengths)))
    sizes = [sum(lengths[row] for row in part) for part in parts]
    assert sizes == [200, 100, 92, 71]
    assert parts[0] == [3]


def test_a_pack_restarts_positions_and_learns_nothing_across_rows() -> None:
    """The last token of a row does not predict the first of the next, whatever its label."""
    rows = [
        Example(input_ids=np.array([5, 6, 7]), labels=np.array([5, IGNORED, 7]), truncated=False),
        Example(input_ids=np.array([8, 9]), labels=np.array([8, 9]), truncated=False),
    ]
    batch = collate(rows, CPU, packed=True)
    assert batch.input_ids.tolist() == [[5, 6, 7, 8, 9]]
    assert batch.position_ids is not None
    assert batch.position_ids.tolist() == [[0, 1, 2, 0, 1]]
    assert batch.segments is not None
    assert (batch.segments.lengths, batch.segments.cu_seqlens.tolist()) == ((3, 2), [0, 3, 5])
    assert batch.target_positions.tolist() == [1, 3]
    assert (batch.targets.tolist(), batch.rows.tolist()) == ([7, 9], [0, 1])


@pytest.mark.parametrize("packed", [True, False])
def test_a_micro_batch_is_copied_to_a_gpu_without_waiting(monkeypatch: pytest.MonkeyPatch, *, packed: bool) -> None:
    """Every copy from locked memory: from any other the driver reads before the call comes back."""
    locked: list[int] = []
    copies: list[tuple[bool, object, bool]] = []

    def lock(tensor: torch.Tensor) -> torch.Tensor:
        locked.append(tensor.data_ptr())
        return tensor

    def copy(tensor: torch.Tensor, device: object, *, non_blocking: bool = False) -> torch.Tensor:
        copies.append((tensor.data_ptr() in locked, device, non_blocking))
        return tensor

    monkeypatch.setattr(torch.Tensor, "pin_memory", lock)
    monkeypatch.setattr(torch.Tensor, "to", copy)
    gpu = torch.device("cuda")
    row = Example(input_ids=np.array([5, 6, 7]), labels=np.array([5, IGNORED, 7]), truncated=False)
    collate([row, row], gpu, packed=packed)
    assert copies == [(True, gpu, True)] * (6 if packed else 4)


@pytest.mark.parametrize(
    ("lengths", "packed", "processes", "micro_batches_of_a_step"),
    [
        ([100] * 15 + [1000], True, 1, 3),  # 2,500 tokens in packs of 1,000
        ([100] * 15 + [1000], False, 1, 3),  # the long row alone, ten rows of 100, and five
        ([100] * 15 + [1000], True, 2, 2),  # 1,000 and 600 tokens, or 1,200 and 400 on one of both
        ([1000] * 16, True, 1, 16),
        ([10] * 16, True, 4, 1),
    ],
)
def test_the_micro_batches_of_a_step_are_counted_from_its_rows(
    lengths: list[int], *, packed: bool, processes: int, micro_batches_of_a_step: int
) -> None:
    """And not as if each row were as long as the longest: packs hold more of the others."""
    limit = MicroBatchLimit(tokens=1000, longest=max(lengths), packed=packed)
    found = accumulation(np.array(lengths), limit, 16, seed=3, processes=processes)
    assert found == micro_batches_of_a_step


def test_a_cpu_takes_smaller_micro_batches_than_a_gpu() -> None:
    """Its speed does not grow with them, its memory does."""
    assert token_limit(CPU) < token_limit(torch.device("cuda"))


@pytest.mark.parametrize(
    ("device", "rows", "trained", "tokens"),
    [
        ("cuda", None, 512, 512),
        ("cuda", None, 16384, 4096),
        ("cuda", 4, 256, 256),
        ("cpu", None, 768, 4096),
        ("cpu", 4, 400, 400),
    ],
)
def test_an_evaluation_on_a_gpu_takes_no_more_tokens_than_the_training(
    device: str, rows: int | None, trained: int, tokens: int
) -> None:
    """The plan counts no more; a CPU evaluates with as many as are fast."""
    assert evaluation_limit(rows, 100, STEADY, torch.device(device), trained=trained).tokens == tokens
