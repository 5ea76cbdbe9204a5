"""A training is stopped, killed and disturbed at every place; what comes out is what an undisturbed one gives."""

import math
import signal
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.trainer.trainings import Bench, Kept, same, weights

from lora_trainer.data.tokens import Encoder
from lora_trainer.errors import CheckpointError, CudaOutOfMemoryError, NonFiniteLossError, TerminatedError
from lora_trainer.model.device import Device
from lora_trainer.result.export_checkpoint import export_checkpoint
from lora_trainer.spec.config import Init, Optimizer
from lora_trainer.spec.reasons import Reason
from lora_trainer.storage.base import Base
from lora_trainer.storage.hub import Hub
from lora_trainer.storage.volumes import Volumes
from lora_trainer.train import loop
from lora_trainer.train.batches import Rows, step_rows
from lora_trainer.train.checkpoint import Checkpoints
from lora_trainer.train.evaluate import Evaluation
from lora_trainer.train.loop import Training
from lora_trainer.train.step import run_step
from lora_trainer.train.stopping import Stop


@pytest.fixture
def bench(tmp_path: Path, tiny_base: Base, encoder: Encoder, cpu: Device) -> Bench:
    """Trainings of the tiny model with a folder for their states."""
    (tmp_path / "a").mkdir()
    return Bench(tmp_path / "a", tiny_base, encoder, cpu)


def falling(losses: list[float]) -> Callable[[], Evaluation]:
    """An evaluation with given results, one after the other."""
    left = iter(losses)
    return lambda: Evaluation(sums=(next(left) * 10,), tokens=(10,))


def asked(stop: Stop) -> None:
    """Ask for the end, as SIGTERM does."""
    stop.handle(signal.SIGTERM, None)


@pytest.mark.parametrize("eval_steps", [None, 1])
def test_two_steps_and_two_resumed_ones_equal_four(bench: Bench, eval_steps: int | None) -> None:
    """Adapter, optimizer, losses and evaluations, bit for bit, with dropout."""
    bench.evaluate = falling([3.0, 2.0, 1.0, 0.5])
    whole = bench.training(Kept(), eval_steps=eval_steps, early_stopping_patience=eval_steps and 3)
    expected = whole.run()

    bench.folder = bench.folder.with_name("b")
    bench.folder.mkdir()
    bench.evaluate = falling([3.0, 2.0])
    stop = Stop()
    first = bench.training(
        Kept(lambda step: asked(stop) if step == 2 else None),
        stop,
        eval_steps=eval_steps,
        early_stopping_patience=eval_steps and 3,
    )
    with pytest.raises(TerminatedError, match="its state after step 2 of 4 is saved, and the next attempt continues"):
        first.run()
    bench.evaluate = falling(
        [1.0, 0.5] if len(bench.newest_state().trainer_state.evaluations) == 2 else [2.0, 1.0, 0.5]
    )
    second = bench.training(Kept(), eval_steps=eval_steps, early_stopping_patience=eval_steps and 3)
    second.restore(bench.newest_state())
    done = second.run()
    assert same(whole.state(), second.state())
    assert (done.step, done.tokens, done.loss, done.best_step) == (4, expected.tokens, expected.loss, eval_steps and 4)


@pytest.mark.parametrize(
    ("optimizer", "init", "rank"),
    [
        (Optimizer.ADAMW_8BIT, Init.DEFAULT, 64),
        (Optimizer.PAGED_ADAMW_8BIT, Init.DEFAULT, 64),
        (Optimizer.ADAMW, Init.PISSA, 8),
    ],
)
def test_state_that_is_not_plain_comes_back_exactly(bench: Bench, optimizer: Optimizer, init: Init, rank: int) -> None:
    """8-bit moments with their scales (from 4,096 values on); the directions that PiSSA took out of the base model."""
    bench.lora = replace(bench.lora, init=init, rank=rank)
    whole = bench.training(optimizer=optimizer)
    whole.run()
    bench.folder = bench.folder.with_name("b")
    bench.folder.mkdir()
    stop = Stop()
    with pytest.raises(TerminatedError):
        bench.training(Kept(lambda step: asked(stop) if step == 2 else None), stop, optimizer=optimizer).run()
    state = bench.newest_state()
    resumed = bench.training(optimizer=optimizer, starts=state.starts)
    resumed.restore(state)
    resumed.run()
    assert same(whole.state(), resumed.state())
    assert bool(state.starts) == (init is Init.PISSA)
    base, again = (training.adapted.model.state_dict() for training in (whole, resumed))
    assert all(torch.equal(base[name], again[name]) for name in base)


def test_a_request_to_stop_ends_within_the_micro_batch_and_loses_no_step(bench: Bench) -> None:
    """The step at hand is given up, the one before is saved, and nothing of the half step remains."""
    stop = Stop()

    class Impatient(Kept):
        def alive(self) -> None:
            super().alive()
            if self.passes == 5:  # the second micro-batch of the second step
                asked(stop)

    callback = Impatient()
    training = bench.training(callback, stop)
    bench.checkpoint = replace(bench.checkpoint, interval_steps=None)
    with pytest.raises(TerminatedError, match="after step 1 of 4"):
        training.run()
    assert callback.passes == 5
    assert bench.newest_state().trainer_state.step == 1
    resumed = bench.training()
    resumed.restore(bench.newest_state())
    resumed.run()
    bench.folder = bench.folder.with_name("b")
    bench.folder.mkdir()
    whole = bench.training()
    whole.run()
    assert same(whole.state(), resumed.state())


def test_a_second_request_to_stop_changes_nothing() -> None:
    """Neither while the state is saved nor while the first one unwinds."""
    stop = Stop()
    saved: list[bool] = []

    def train() -> None:
        with stop.deferred():
            asked(stop)
            asked(stop)
            saved.append(True)

    with pytest.raises(SystemExit) as ended:
        train()
    asked(stop)
    assert (ended.value.code, saved) == (143, [True])


def test_a_request_to_stop_outside_of_the_training_ends_at_once() -> None:
    """There is nothing that the checkpoints do not have."""
    with pytest.raises(SystemExit):
        asked(Stop())


def test_a_request_that_comes_in_an_evaluation_is_heard_in_it_and_the_evaluation_is_made_up(bench: Bench) -> None:
    """The state after the step is saved without it, and the next attempt begins with it."""
    stop = Stop()
    training = bench.training(Kept(), stop, eval_steps=2)
    forward = torch.zeros(1, 2, dtype=torch.long)

    def evaluate() -> Evaluation:
        asked(stop)
        training.adapted.model(input_ids=forward)
        raise AssertionError("the evaluation went on")

    training.evaluate = evaluate
    with pytest.raises(TerminatedError, match="after step 2 of 4"):
        training.run()
    assert bench.newest_state().trainer_state.evaluations == ()
    callback = Kept()
    bench.evaluate = falling([1.5])
    resumed = bench.training(callback, eval_steps=2)
    resumed.restore(bench.newest_state())
    resumed.run()
    assert callback.evaluations == [(2, 1.5)]


def test_states_are_saved_by_steps_and_by_time_whichever_comes_first(bench: Bench) -> None:
    """And always at the end."""
    now = [0.0]
    for config, expected in (
        (replace(bench.checkpoint, interval_steps=2), [2, 4]),
        (replace(bench.checkpoint, interval_steps=None, interval_s=25), [3, 4]),
        (replace(bench.checkpoint, interval_steps=3, interval_s=15), [2, 4]),
    ):
        bench.checkpoint = config
        callback = Kept(lambda step: now.__setitem__(0, now[0] + 10))
        training = bench.training(callback)
        assert training.checkpoint_policy is not None
        training.checkpoint_policy.clock = lambda: now[0]
        training.checkpoint_policy.begin(0)
        training.run()
        assert callback.saves == expected


def out_of_memory_at(monkeypatch: pytest.MonkeyPatch, fails: Callable[[int, int], bool]) -> list[int]:
    """Have the arithmetic of a step fail as CUDA does; `fails` gets call and budget. The budgets of all calls."""
    calls: list[int] = []

    def step(*arguments: object, **options: object) -> torch.Tensor:
        limit = options["limit"].tokens  # type: ignore[attr-defined]
        calls.append(limit)
        share = run_step(*arguments, **options)  # type: ignore[arg-type]
        if fails(len(calls), limit):
            # Half a step's gradients are others than a whole one's, in direction too.
            for parameter in arguments[0].model.parameters():  # type: ignore[attr-defined]
                if parameter.grad is not None:
                    parameter.grad.add_(1.0)
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return share

    monkeypatch.setattr(loop, "run_step", step)
    return calls


def test_out_of_memory_halves_the_micro_batch_and_takes_the_same_step_again(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At the same effective batch: the gradients that were half done are gone, so the losses are those of before."""
    bench.lora = replace(bench.lora, dropout=0.0)
    calm = Kept()
    whole = bench.training(calm, save=False)
    whole.run()
    limit = whole.limit.tokens
    calls = out_of_memory_at(monkeypatch, lambda call, _budget: call == 2)
    callback = Kept()
    training = bench.training(callback)
    training.run()
    assert calls == [limit, limit, limit // 2, limit // 2, limit // 2]
    assert callback.limits == [limit // 2]
    assert callback.accumulations == [6]
    assert [step.loss for step in callback.steps] == pytest.approx([step.loss for step in calm.steps], abs=1e-5)
    resumed = bench.training()
    resumed.restore(bench.newest_state())
    assert resumed.limit.tokens == limit // 2


def test_out_of_memory_with_one_example_ends_with_peak_and_advice(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """71, and the last checkpoint stays."""
    out_of_memory_at(monkeypatch, lambda call, _budget: call > 2)
    with pytest.raises(CudaOutOfMemoryError, match=r"one example of \d+ tokens \(peak .* GiB\): lower") as ended:
        bench.training().run()
    assert ended.value.code == 71
    assert bench.newest_state().trainer_state.step == 2


def poisoned(training: Training, steps: set[int], monkeypatch: pytest.MonkeyPatch) -> None:
    """Make the gradients of some steps infinite."""

    def step(*arguments: object, **options: object) -> torch.Tensor:
        share = run_step(*arguments, **options)  # type: ignore[arg-type]
        if training.trainer_state.step + 1 in steps:
            next(iter(training.parameters.values())).grad[0, 0] = math.inf  # type: ignore[index]
        return share

    monkeypatch.setattr(loop, "run_step", step)


def test_a_step_without_finite_numbers_is_left_out(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """Counted and reported; the weights stay as they were; the next steps go on."""
    before: dict[str, torch.Tensor] = {}
    callback = Kept(lambda step: before.update(weights(training)) if step == 1 else None)
    training = bench.training(callback)
    poisoned(training, {2, 3}, monkeypatch)
    original = callback.left_out
    untouched: list[bool] = []

    def left_out(step: int, *, bad: bool) -> None:
        original(step, bad=bad)
        untouched.append(all(torch.equal(before[name], value) for name, value in weights(training).items()))

    callback.left_out = left_out  # type: ignore[method-assign]
    assert training.run().step == 4
    assert callback.left_out_steps == callback.bad_steps == [2, 3]
    assert untouched == [True, True]
    assert [step.number for step in callback.steps] == [1, 4]
    assert callback.saves == [1, 4], "a good state made room for one in doubt"


def test_a_step_that_the_scaler_of_fp16_leaves_out_does_not_count_as_taken(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its loss is no loss of a step; several in a row are no sign of a bad training, since a lower scale helps."""
    callback = Kept()
    training = bench.training(callback)
    training.scaler = torch.amp.GradScaler("cpu")
    scale = training.scaler.get_scale()
    poisoned(training, {1, 2, 3}, monkeypatch)
    training.run()
    assert (callback.left_out_steps, callback.bad_steps) == ([1, 2, 3], [])
    assert [step.number for step in callback.steps] == [4]
    assert training.scaler.get_scale() == scale / 8
    assert not training.trainer_state.guard.suspicious


@pytest.mark.parametrize(("optimizer", "rank"), [(Optimizer.ADAMW, 4), (Optimizer.ADAMW_8BIT, 64)])
def test_steps_in_fp16_are_those_of_the_scaler(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, optimizer: Optimizer, rank: int
) -> None:
    """Bit for bit, though it takes none itself; beside one that is left out, and as its factor grows."""
    bench.lora = replace(bench.lora, rank=rank)
    found = []
    for by_the_scaler in (False, True):
        training = bench.training(save=False, optimizer=optimizer)
        scaler = training.scaler = torch.amp.GradScaler("cpu", growth_interval=2)
        own = training.optimizer.step

        def step(training: Training = training, scaler: Any = scaler, own: Any = own) -> None:
            with monkeypatch.context() as patch:
                patch.setattr(training.optimizer, "step", own)
                scaler.step(training.optimizer)

        if by_the_scaler:
            monkeypatch.setattr(training.optimizer, "step", step)
        poisoned(training, {2}, monkeypatch)
        training.run()
        found.append((training.state(), scaler.state_dict()))
    (ours, left), (theirs, right) = found
    assert same(ours, theirs)
    assert left == right
    assert left["scale"] == 65536, "halved once and doubled once"


def test_a_state_of_a_gpu_with_bf16_is_gone_on_from_in_fp16(bench: Bench) -> None:
    """Another attempt may get an older GPU; the first one had no scaler, and this one's begins."""
    bench.training(max_steps=2).run()
    training = bench.training()
    training.scaler = torch.amp.GradScaler("cpu", init_scale=64.0)
    training.restore(bench.newest_state())
    assert training.scaler.get_scale() == 64.0
    assert training.run().step == 4


def test_three_steps_without_finite_numbers_end_the_run_with_the_last_good_state_kept(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """70, with the step and what to change."""
    training = bench.training(max_steps=6)
    poisoned(training, {3, 4, 5}, monkeypatch)
    with pytest.raises(
        NonFiniteLossError, match=r"gradient is inf at step 5, the third .*lower training\.learningRate"
    ):
        training.run()
    state = bench.newest_state()
    assert state.trainer_state.step == 2
    assert all(bool(torch.isfinite(tensor).all()) for tensor in state.adapter.values())


@pytest.mark.parametrize(("steps", "scaled"), [(2, False), (4, True)], ids=["two steps", "four steps in fp16"])
def test_a_run_of_which_no_step_was_taken_has_failed(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, *, steps: int, scaled: bool
) -> None:
    """It ends before a third step in a row, or before fp16's factor is found: its adapter has learned nothing."""
    training = bench.training(max_steps=steps)
    training.scaler = torch.amp.GradScaler("cpu", enabled=scaled)
    poisoned(training, set(range(1, steps + 1)), monkeypatch)
    with pytest.raises(NonFiniteLossError, match=f"none of the {steps} steps had a finite loss") as ended:
        training.run()
    assert (ended.value.reason, ended.value.code) == (Reason.NON_FINITE_LOSS, 70)


def test_a_state_in_which_nothing_was_learned_is_not_exported(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """The scaler of fp16 left every step out, which is no sign of a bad training: the states were saved."""
    training = bench.training(max_steps=2)
    training.scaler = torch.amp.GradScaler("cpu")
    poisoned(training, {1, 2}, monkeypatch)
    with pytest.raises(NonFiniteLossError, match="none of the 2 steps"):
        training.run()
    checkpoint = Checkpoints(bench.folder, keep=2).newest()
    assert checkpoint is not None
    output = bench.folder / "exported"
    with pytest.raises(NonFiniteLossError, match="none of the 2 steps"):
        export_checkpoint(checkpoint.folder, output, Volumes(claims=bench.folder), Hub())
    assert not output.exists()


def test_weights_that_are_no_numbers_are_never_saved(bench: Bench) -> None:
    """Whatever made them so."""

    def spoil(step: int) -> None:
        if step == 2:
            with torch.no_grad():
                next(iter(training.parameters.values())).fill_(math.nan)

    training = bench.training(Kept(spoil))
    with pytest.raises(NonFiniteLossError, match="weights are not finite after step 2 and are not saved"):
        training.run()
    assert bench.newest_state().trainer_state.step == 1


def test_the_best_weights_are_kept_and_taken_and_patience_ends_the_run(bench: Bench) -> None:
    """Two evaluations without a lower loss; a resumed run still knows the best."""
    best: dict[str, torch.Tensor] = {}
    callback = Kept(lambda step: best.update(weights(training)) if step == 2 else None)
    bench.evaluate = falling([2.0, 1.0, 1.2, 1.1, 0.1])
    training = bench.training(callback, max_steps=9, eval_steps=1, early_stopping_patience=2)
    done = training.run()
    assert (done.step, done.best_step, done.stopped_early) == (4, 2, True)
    assert callback.evaluations == [(1, 2.0), (2, 1.0), (3, 1.2), (4, 1.1)]
    assert all(torch.equal(best[name], value) for name, value in weights(training).items())
    bench.evaluate = falling([])
    again = bench.training(max_steps=9, eval_steps=1, early_stopping_patience=2)
    again.restore(bench.newest_state())
    assert again.run() == replace(done, seconds=again.trainer_state.seconds)
    assert all(torch.equal(best[name], value) for name, value in weights(again).items())


@pytest.mark.parametrize(
    ("losses", "patience", "steps", "best_step"),
    [([], None, 9, None), ([1.5, 0.5, 0.9, 0.8, 0.7], 5, 9, 6), ([1.5, 1.4, 1.3, 1.2, 1.1], 6, 9, 2)],
    ids=["the last weights", "the best", "the best before"],
)
def test_another_run_goes_on_where_one_stopped_early(
    bench: Bench, losses: list[float], patience: int | None, steps: int, best_step: int | None
) -> None:
    """With its own patience; without any, the weights after the last step are published and not that run's best."""
    bench.evaluate = falling([2.0, 1.0, 1.2, 1.1])
    stopped = bench.training(max_steps=9, eval_steps=1, early_stopping_patience=2).run()
    assert (stopped.step, stopped.stopped_early) == (4, True)
    bench.evaluate = falling(losses)
    training = bench.training(max_steps=9, eval_steps=1 if patience else None, early_stopping_patience=patience)
    training.restore(bench.newest_state().taken_over(patient=patience is not None))
    before = {name: value.clone() for name, value in weights(training).items()}
    done = training.run()
    assert (done.step, done.best_step, done.stopped_early) == (steps, best_step, False)
    assert any(not torch.equal(before[name], value) for name, value in weights(training).items())


def test_another_run_goes_on_at_the_row_after_a_last_step_that_was_short(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Twelve rows in steps of eight: each pass has all of them, in the runs after it and in their later attempts."""
    seen: list[list[int]] = []

    def watched(*arguments: Any) -> Iterator[Rows]:
        for rows in step_rows(*arguments):
            seen.append(rows.tolist())
            yield rows

    monkeypatch.setattr(loop, "step_rows", watched)
    kept = Kept()
    bench.training(kept, epochs=1.0, max_steps=None, effective_batch_size=8).run()
    stop = Stop()
    kept = Kept(after=lambda step: setattr(stop, "requested", step == 3))
    training = bench.training(kept, stop, epochs=3.0, max_steps=None, effective_batch_size=8)
    training.restore(bench.newest_state().taken_over(patient=False))
    with pytest.raises(TerminatedError, match="after step 3 of 5 is saved"):
        training.run()
    training = bench.training(kept, epochs=3.0, max_steps=None, effective_batch_size=8)
    training.restore(bench.newest_state())
    assert training.run().step == 5
    assert [len(rows) for rows in seen] == [8, 4, 8, 8, 8]
    flat = [row for rows in seen for row in rows]
    assert [sorted(flat[start : start + 12]) for start in (0, 12, 24)] == [list(range(12))] * 3
    assert [(step.number, step.total) for step in kept.steps] == [(3, 5), (4, 5), (5, 5)]
    assert kept.steps[-1].epoch == 3.0


def test_patience_that_ends_at_the_last_step_stops_nothing_early(bench: Bench) -> None:
    """All steps were done."""
    bench.evaluate = falling([1.0, 1.2, 1.1])
    done = bench.training(max_steps=3, eval_steps=1, early_stopping_patience=2).run()
    assert (done.step, done.best_step, done.stopped_early) == (3, 1, False)


def test_an_evaluation_that_gave_no_number_is_never_the_best(bench: Bench) -> None:
    """No later one would be lower than it."""
    bench.evaluate = falling([math.nan, 1.0, 1.2])
    done = bench.training(max_steps=3, eval_steps=1, early_stopping_patience=2).run()
    assert (done.best_step, done.stopped_early) == (2, False)


def test_weights_of_another_shape_are_a_mismatch(bench: Bench) -> None:
    """With names and sizes."""
    bench.training().run()
    state = bench.newest_state()
    bench.lora = replace(bench.lora, rank=8)
    with pytest.raises(CheckpointError, match=r"has the shape \(4, 64\), this run's has \(8, 64\)") as refused:
        bench.training().restore(state)
    assert refused.value.reason is Reason.RESUME_MISMATCH
