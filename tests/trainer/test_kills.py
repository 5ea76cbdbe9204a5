"""Kill -9 at random moments: every attempt goes on, and the adapter is that of a run that nobody disturbed."""

import os
import random
import shutil
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from tests.trainer.runs import PATIENCE_S, Workplace
from tests.trainer.stages import Place, finish, start, warm_up

from lora_trainer.train.checkpoint import newest_of

ROUNDS = {"soak": 100}.get(os.environ.get("HYPOTHESIS_PROFILE", ""), 8)
INTERVAL = 3
STEPS = 40


def place_of(workplace: Workplace, name: str, steps: int = STEPS, interval: int = INTERVAL) -> Place:
    """A run with a folder of its own."""
    workspace = workplace.root / name
    workspace.mkdir()
    training = {"maxSteps": steps, "effectiveBatchSize": 4, "learningRate": "0.01", "evalSteps": 7}
    lora = {"rank": 4, "dropout": "0.1"}
    checkpoint = {"intervalSteps": interval}
    config = workplace.config_file(training=training, lora=lora, checkpoint=checkpoint)
    return Place(claims=workplace.claims, workspace=workspace, config=config)


@dataclass(frozen=True, slots=True, kw_only=True)
class Calm:
    """A run that nobody disturbed, and how long it took."""

    place: Place
    duration: float


@pytest.fixture(scope="module")
def calm(tmp_path_factory: pytest.TempPathFactory, tiny_folder: Path) -> Calm:
    """Tests read it only."""
    place = place_of(Workplace.make(tmp_path_factory.mktemp("calm"), tiny_folder), "calm")
    warm_up()
    began = time.monotonic()
    assert finish(place).process.exitcode == 0
    return Calm(place=place, duration=time.monotonic() - began)


def adapter(place: Place) -> bytes:
    """The weights of the result."""
    return (place.staged / "adapter_model.safetensors").read_bytes()


def until(condition: Callable[[], bool]) -> None:
    """Wait for a condition."""
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline, "the condition did not come"
        time.sleep(0.01)


def test_killed_at_random_moments_a_run_resumes_each_time_and_gives_the_same_adapter(
    workplace: Workplace, calm: Calm
) -> None:
    """At most the interval is lost, whatever the moment: loading, steps, saves, evaluations, export."""
    place = place_of(workplace, "killed")
    chance = random.Random(os.environ.get("KILL_SEED", "1"))  # noqa: S311 - moments, not secrets
    expected_step = rounds = 0
    # More of them where the machine has become slower since the calm run, and no attempt came far enough to save.
    while rounds < ROUNDS or (expected_step == 0 and rounds < 3 * ROUNDS):
        rounds += 1
        attempt = start(place)
        attempt.process.join(chance.uniform(0.1, 0.6) * calm.duration)
        attempt.process.kill()
        attempt.process.join()
        reached = attempt.last_step()
        assert attempt.resumed_step() in (0, expected_step), "the attempt did not go on from the newest checkpoint"
        found, _ = newest_of(place.workspace)
        saved = 0 if found is None else found.step
        assert max(reached, expected_step) - saved <= INTERVAL, f"step {reached} was reached, {saved} was saved"
        assert saved >= expected_step
        expected_step = saved
    assert expected_step > 0, "no attempt came far enough to save"
    last = finish(place)
    assert last.process.exitcode == 0
    assert last.resumed_step() == expected_step
    assert adapter(place) == adapter(calm.place)


def test_sigterm_loses_no_step(workplace: Workplace) -> None:
    """143 with the state after the last whole step saved, far from the next interval; the adapter is the same."""
    # So many that it does not end while the signal is on its way on a busy machine.
    steps = 4 * STEPS
    calm, place = (place_of(workplace, name, steps, interval=1000) for name in ("calm", "stopped"))
    assert finish(calm).process.exitcode == 0
    attempt = start(place)
    until(lambda: attempt.last_step() >= 5)
    assert attempt.process.pid is not None
    os.kill(attempt.process.pid, signal.SIGTERM)
    os.kill(attempt.process.pid, signal.SIGTERM)
    attempt.process.join(PATIENCE_S)
    assert attempt.process.exitcode == 143
    reached = attempt.last_step()
    assert place.checkpoint_steps() == [reached]
    assert attempt.failure()["reason"] == "Evicted"
    assert f"its state after step {reached} of {steps} is saved" in attempt.failure()["message"]
    last = finish(place)
    assert (last.process.exitcode, last.resumed_step()) == (0, reached)
    assert adapter(place) == adapter(calm)


def test_a_run_that_ended_its_training_does_not_train_again(workplace: Workplace, calm: Calm) -> None:
    """It failed after the last step: the next attempt only evaluates and exports."""
    place = place_of(workplace, "done")
    shutil.copytree(calm.place.workspace, place.workspace, dirs_exist_ok=True)
    again = finish(place)
    assert (again.process.exitcode, again.resumed_step()) == (0, STEPS)
    assert adapter(place) == adapter(calm.place)
