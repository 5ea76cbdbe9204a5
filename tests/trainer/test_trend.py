"""Where the held-out loss is going: which evaluations are made for it, what is kept of them, and what they show."""

import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.trainer.trainings import Bench, Kept, same

from lora_trainer.contract.config import TrainingConfig
from lora_trainer.data.tokens import Encoder
from lora_trainer.errors import NonFiniteLossError, TerminatedError
from lora_trainer.model.device import Device
from lora_trainer.places.base import Base
from lora_trainer.training.evaluate import Evaluation
from lora_trainer.training.guards import LossGuard
from lora_trainer.training.loop import Training
from lora_trainer.training.stopping import Stop
from lora_trainer.training.trend import Interim, Mark, interim, remembered, since_late, since_lowest

PLAIN = TrainingConfig()


@pytest.fixture
def bench(tmp_path: Path, tiny_base: Base, encoder: Encoder, cpu: Device) -> Bench:
    """Trainings of the tiny model with a folder for their states."""
    return Bench(tmp_path, tiny_base, encoder, cpu)


def of(loss: float, rows: int = 20) -> Evaluation:
    """Rows of ten tokens with these losses, each a little different."""
    return Evaluation(sums=tuple(10 * loss + 0.01 * (row % 3) for row in range(rows)), tokens=(10,) * rows)


def mark(step: int, loss: float, every: int = 1, rows: int = 20) -> Mark:
    """An evaluation on the way."""
    return Mark(step=step, every=every, evaluation=of(loss, rows))


@pytest.mark.parametrize(
    ("config", "total", "trained", "rows", "expected"),
    [
        (PLAIN, 100, 2_000_000, 200, Interim(steps=(50, 75), every=1)),
        (PLAIN, 100, 1_999_999, 200, Interim(steps=(50, 75), every=2)),
        (PLAIN, 100, 200_000, 200, Interim(steps=(50, 75), every=10)),
        (PLAIN, 100, 199_999, 200, Interim()),
        (PLAIN, 4, 10**9, 20, Interim(steps=(2, 3), every=1)),
        (PLAIN, 3, 10**9, 20, Interim()),
        (PLAIN, 100, 10**9, 19, Interim()),
        (PLAIN, 100, 0, 200, Interim()),
        (replace(PLAIN, eval_steps=10), 100, 10**9, 200, Interim()),
    ],
)
def test_a_run_that_asks_for_no_evaluations_gets_two_that_are_cheap(
    config: TrainingConfig, total: int, trained: int, rows: int, expected: Interim
) -> None:
    """Both together take at most 2 % of its tokens, over 20 rows or more."""
    assert interim(config, total, trained, [100] * rows) == expected


def test_rows_that_are_longer_than_the_mean_are_counted_as_they_are() -> None:
    """Every second one is long here: every third are the first that cost little enough."""
    assert interim(PLAIN, 100, 1_500_000, [190, 10] * 100) == Interim(steps=(50, 75), every=3)


def test_samples_of_few_rows_tell_nothing() -> None:
    """However many they are."""
    for rows, steps in ((19, ()), (20, (50, 75))):
        assert interim(PLAIN, 100, 10**9, [100] * 200, [i % rows for i in range(200)]).steps == steps


@given(st.integers(0, 10_000), st.integers(0, 10**7), st.lists(st.integers(2, 5_000), max_size=300))
def test_the_evaluations_never_cost_more_than_they_may(total: int, trained: int, lengths: list[int]) -> None:
    """However long the rows are; after two different steps before the end."""
    found = interim(PLAIN, total, trained, lengths)
    if found.steps:
        chosen = lengths[:: found.every]
        assert len(chosen) >= 20
        assert 2 * sum(chosen) <= 0.02 * trained
        assert 0 < found.steps[0] < found.steps[1] < total


def test_of_many_evaluations_two_are_kept() -> None:
    """The last one within three quarters of the steps, and the lowest."""
    marks: tuple[Mark, ...] = ()
    for step, loss in enumerate([5.0, 3.0, 4.0, 4.5, 4.2, 4.1, 4.0, 3.9, 3.8, 3.7], start=1):
        marks = remembered(marks, mark(step, loss), total=10)
        assert len(marks) <= 2
    assert [one.step for one in marks] == [2, 7]
    late, lowest = since_late(marks, of(3.5), total=10), since_lowest(marks, of(3.5))
    assert late is not None
    assert lowest is not None
    assert (late.step, lowest.step) == (7, 2)
    assert [late.fall, lowest.fall] == pytest.approx([0.5, -0.5])


def test_a_change_is_paired_over_the_rows_that_were_evaluated() -> None:
    """Every third row before, the same rows of all at the end: each fell by as much, whatever their own losses."""
    hard = Evaluation(sums=tuple(float(10 * row) for row in range(60)), tokens=(10,) * 60)
    before = Evaluation(sums=tuple(value + 5 for value in hard.sums[::3]), tokens=(10,) * 20)
    change = since_late((Mark(step=3, every=3, evaluation=before),), hard, total=4)
    assert change is not None
    assert (change.step, change.rows) == (3, 20)
    assert change.fall == pytest.approx(0.5)
    assert change.standard_error == pytest.approx(0, abs=1e-12)


def test_nothing_is_compared_with_other_rows_or_with_none() -> None:
    """A run that took no step for long has no evaluations."""
    assert since_late((), of(1.0), total=4) is None
    assert since_lowest((mark(2, 1.0, rows=19),), of(1.0)) is None
    assert since_late((mark(4, 1.0),), of(1.0), total=4) is None
    assert since_lowest((mark(2, float("nan")),), of(1.0)) is None


def counted(losses: list[float], rows: int = 20) -> Callable[[], Evaluation]:
    """Evaluations with these losses, one after the other."""
    left = iter(losses)
    return lambda: of(next(left), rows)


def test_evaluations_on_the_way_change_nothing_of_the_training(bench: Bench) -> None:
    """Nor of its reported losses, where they are of a part of the rows; all rows are reported as others are."""
    plain = bench.training(save=False)
    plain.run()
    for every, reported in ((1, [(2, 2.0), (3, 1.5)]), (4, [])):
        listener = Kept()
        training = bench.training(listener, save=False)
        training.evaluate = counted([2.0, 1.5])
        training.interim, training.sample = Interim(steps=(2, 3), every=every), counted([2.0, 1.5], 5)
        trained = training.run()
        assert [(step, round(loss, 1)) for step, loss in listener.evaluations] == reported
        assert [(one.step, one.every) for one in trained.marks] == [(3, every)]
        for name, values in plain.state().adapter.items():
            assert values.equal(training.state().adapter[name])


def test_a_training_that_goes_on_has_the_evaluations_of_its_first_attempt(bench: Bench) -> None:
    """None is made twice, and none is left out; the state is the same, bit for bit."""

    def training(losses: list[float], listener: Kept | None = None, stop: Stop | None = None) -> Training:
        made = bench.training(listener, stop)
        made.interim, made.sample, made.evaluate = Interim(steps=(2, 3), every=2), counted(losses, 10), counted([])
        return made

    whole = training([1.0, 2.0])
    whole.run()
    bench.folder = bench.folder / "b"
    bench.folder.mkdir()
    stop = Stop()
    first = training([1.0], Kept(lambda step: stop.handle(signal.SIGTERM, None) if step == 2 else None), stop)
    with pytest.raises(TerminatedError):
        first.run()
    done = len(bench.newest_state().course.marks)
    second = training([1.0, 2.0][done:])
    second.restore(bench.newest_state())
    trained = second.run()
    assert same(whole.state(), second.state())
    assert [one.step for one in trained.marks] == [2, 3]


def test_a_loss_that_stands_halfway_to_divergence_is_counted() -> None:
    """A run that recovers ends well, and its advice says that it was noisy."""
    guard = LossGuard()
    for step in range(30):
        guard.observe(step, 1.0)
    assert guard.unsteady == 0
    for step in range(8):
        guard.observe(step, 5.0)
    for step in range(60):
        guard.observe(step, 1.0)
    assert 5 < guard.unsteady < 20

    def diverge() -> None:
        for step in range(200):
            guard.observe(step, 50.0)

    with pytest.raises(NonFiniteLossError, match=r"set lora\.alpha to lora\.rank where it is larger"):
        diverge()
