"""When a training ends for its numbers, when it stands still, and what it belongs to."""

import math
from collections.abc import Callable
from contextlib import nullcontext
from datetime import date
from typing import Any

import pytest
from tests.trainer.conftest import make_config

from lora_trainer.distributed.reports import Counters, Report
from lora_trainer.errors import NonFiniteLossError
from lora_trainer.host.stall import StallWatch
from lora_trainer.spec.progress import Phase, Progress
from lora_trainer.spec.reasons import Reason
from lora_trainer.train.guards import DIVERGED_STEPS, LossGuard
from lora_trainer.train.identity import (
    Identity,
    day_of,
    difference,
    identity,
    same_training,
    weights_difference,
)


def reading(scale: float | None) -> Callable[[], float] | None:
    """What reads a scale, where there is one."""
    return None if scale is None else lambda: scale


@pytest.mark.parametrize(("scale", "counts"), [(None, True), (65536.0, False), (1.0, False), (0.5, True)])
def test_an_infinite_gradient_counts_unless_a_lower_scale_may_help(scale: float | None, counts: bool) -> None:
    """fp16 lowers the scale of its loss first; below 1 every further step would be skipped in silence."""
    guard, read = LossGuard(), reading(scale)
    assert [guard.may_take(step, 1.5, math.inf, read) for step in (1, 2)] == [not counts] * 2
    with pytest.raises(NonFiniteLossError, match="norm of the gradient is inf at step 3") if counts else nullcontext():
        guard.may_take(3, 1.5, math.inf, read)


@pytest.mark.parametrize("scale", [None, 65536.0])
def test_a_loss_that_is_no_number_always_counts(scale: float | None) -> None:
    """And only three in a row end the run."""
    guard, read = LossGuard(), reading(scale)
    for step in (1, 2, 4, 5):
        assert not guard.may_take(step, math.nan, 1.0, read)
        if step == 2:
            assert guard.may_take(3, 1.0, 1.0, read)
    assert guard.suspicious
    with pytest.raises(NonFiniteLossError, match="the loss is nan at step 6, the third step in a row"):
        guard.may_take(6, math.nan, 1.0, read)


def observe(losses: list[float], guard: LossGuard) -> None:
    """Show a run's losses to the guard."""
    for number, loss in enumerate(losses, start=1):
        guard.observe(number, loss)


def test_a_loss_that_goes_up_for_good_ends_the_run() -> None:
    """From 1 to that of guessing; within the smoothing and the steps in a row."""
    calm, guard = [3.0, 2.0, 1.5, *[1.0] * 30], LossGuard()
    observe([*calm, *[10.0] * DIVERGED_STEPS], guard)
    with pytest.raises(
        NonFiniteLossError,
        match=r"the loss went from 1\.\d+ up to \d\.\d+ and stayed up for 20 steps, until step \d+: lower training\."
        r"learningRate, set lora\.alpha to lora\.rank where it is larger",
    ) as ended:
        observe([10.0] * 10, guard)
    assert (ended.value.reason, ended.value.code) == (Reason.LOSS_DIVERGED, 70)


@pytest.mark.parametrize(
    "losses",
    [
        [2.0] * 20 + [12.0] * 10 + [2.0] * 40,  # a spike that heals
        [2.0] * 20 + ([12.0] * 6 + [2.0] * 30) * 5,  # several of them
        [0.01] * 50 + [1.5] * 100,  # rows that are known by heart, then others
        [5.0 + 3 * (-1) ** i for i in range(200)],  # rows of very different difficulty
        [10.0 - 0.1 * i for i in range(80)],  # learning
    ],
)
def test_losses_of_a_healthy_run_never_end_it(losses: list[float]) -> None:
    """Spikes, memorised rows and noise."""
    guard = LossGuard()
    observe(losses, guard)
    assert guard.lowest == pytest.approx(min(losses), abs=3.0)


def test_no_good_state_is_replaced_while_the_loss_is_up() -> None:
    """The guard says so from the first step above its threshold."""
    suspicious: list[bool] = []
    guard = LossGuard()
    for loss in (1.0, 12.0):
        observe([loss] * 15, guard)
        suspicious.append(guard.suspicious)
    assert suspicious == [False, True]


def report(phase: Phase, step_s: float | None = None) -> Report:
    """A report of a training."""
    counters = None if step_s is None else Counters(step_seconds=step_s)
    return Report(progress=Progress(phase=phase), counters=counters)


def test_a_training_without_a_sign_of_life_is_a_stall() -> None:
    """After the timeout, or twenty median steps where these are longer; loading may take as long as it takes."""
    now, stalls, healthy = [0.0], list[float](), list[bool]()
    watch = StallWatch(100, stalls.append, clock=lambda: now[0])
    watch.hear(report(Phase.LOADING_MODEL))
    now[0] = 5000
    assert not watch.check()
    watch.hear(report(Phase.TRAINING, step_s=1))
    now[0] += 100
    assert not watch.check()
    healthy.append(watch.healthy)
    now[0] += 1
    assert watch.check()
    assert stalls == [101]
    now[0] += 100
    healthy.append(watch.healthy)
    watch.hear(report(Phase.TRAINING, step_s=30))
    watch.hear(report(Phase.CHECKPOINTING, step_s=30))
    assert watch.limit_s == 600
    now[0] += 599
    assert not watch.check()
    watch.stop()
    now[0] += 9999
    healthy.append(watch.healthy)
    assert healthy == [True, False, True]


def identity_of(revision: str = "sha256:1", data: str = "sha256:2", **sections: Any) -> Identity:
    """Of a run with these sections."""
    return identity(make_config(**{"quantization": "None", **sections}), revision, data)


@pytest.mark.parametrize(
    ("theirs", "sentence"),
    [
        (identity_of(revision="sha256:9"), 'model (revision) "sha256:9", this run has "sha256:1"'),
        (identity_of(data="sha256:9"), 'dataset (content) "sha256:9", this run has "sha256:2"'),
        (identity_of(lora={"rank": 8}), "lora.alpha 16, this run has 8"),
        (identity_of(lora={"rank": 4, "alpha": 8, "dropout": "0.1"}), "lora.dropout 0.1, this run has 0.0"),
        (identity_of(training={"maxSteps": 7}), "training.maxSteps 7, this run has 6"),
        (identity_of(training={"learningRate": "0.02"}), "training.learningRate 0.02, this run has 0.01"),
        (identity_of(training={"evalSteps": 2}), "training.evalSteps 2, this run has absent"),
        (identity_of(quantization="NF4"), 'quantization "NF4", this run has "None"'),
        (identity_of(dataset={"format": "Text"}), 'dataset.format "Text", this run has "Auto"'),
    ],
)
def test_the_first_field_in_which_two_runs_differ_is_named_with_both_values(theirs: Identity, sentence: str) -> None:
    """As the manifest calls it."""
    assert difference(theirs, identity_of()) == sentence


@pytest.mark.parametrize(
    "same",
    [
        {"training": {"microBatchSize": 2}},
        {"training": {"activationCheckpointing": "Full"}},
        {"dataset": {"uri": "pvc://elsewhere/train.jsonl"}},
        {"output": {"uri": "pvc://adapters/other"}},
        {"checkpoint": {"keep": 7, "intervalSeconds": 5}},
        {"resources": {"gpus": 4}},
    ],
)
def test_what_does_not_decide_the_result_may_change(same: dict[str, Any]) -> None:
    """Where the same data lies, how often is saved, what trades memory for time."""
    assert difference(identity_of(**same), identity_of()) is None


def test_rows_of_another_date_are_other_rows() -> None:
    """An attempt keeps the day of its run; another run's state is gone on from where it has the same."""
    noted, later = (identity(make_config(), "sha256:1", "sha256:2", day=date(2026, 7, day)) for day in (26, 27))
    assert not same_training(later, noted)
    assert (day_of(noted), day_of(identity_of())) == (date(2026, 7, 26), None)


def test_the_limit_of_held_out_rows_counts_where_it_decides_anything() -> None:
    """Where fewer rows are held out than without it: then a checkpoint without one does not fit."""
    old = identity_of(dataset={"maxValidationRows": 7})
    ours = identity_of()
    assert "dataset.maxValidationRows" not in old
    assert old == ours
    limited = identity(make_config(dataset={"maxValidationRows": 7}), "sha256:1", "sha256:2", capped=True)
    assert difference(ours, limited) == "dataset.maxValidationRows absent, this run has 7"
    assert difference(limited, ours) == "dataset.maxValidationRows 7, this run has absent"
    assert not same_training(ours, limited)
    assert weights_difference(ours, limited) is None


def test_another_runs_state_is_gone_on_from_where_only_length_and_manner_differ() -> None:
    """Its weights alone count where the data or the batch differ; nothing where the adapter does."""
    ours = identity_of()
    longer = identity_of(training={"maxSteps": 60, "learningRate": "0.1", "schedule": "Constant", "evalSteps": 2})
    assert same_training(longer, ours)
    for other in ({"training": {"effectiveBatchSize": 4}}, {"training": {"seed": 1}}, {"lora": {"dropout": "0.1"}}):
        theirs = identity_of(**other)
        assert not same_training(theirs, ours)
        assert weights_difference(theirs, ours) is None
    assert not same_training(identity_of(data="sha256:9"), ours)
    assert weights_difference(identity_of(data="sha256:9"), ours) is None
    assert weights_difference(identity_of(lora={"layers": "Attention"}), ours) is not None
    assert weights_difference(identity_of(revision="sha256:9"), ours) is not None
