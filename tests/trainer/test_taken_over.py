"""What a run takes over of the state that it goes on from."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from lora_trainer.distributed.collectives import Ranks
from lora_trainer.train.guards import LossGuard
from lora_trainer.train.resume import Saved
from lora_trainer.train.state import BestSoFar, State, TrainerState, put_back


@pytest.mark.parametrize("own", [True, False])
def test_only_a_runs_own_early_stop_is_its_end(*, own: bool) -> None:
    """An attempt goes on from its own run's state as it is, and from another run's without that run's end."""
    restored: list[State] = []
    config = SimpleNamespace(early_stopping_patience=None)
    device = SimpleNamespace(torch_device=torch.device("cpu"))
    training: Any = SimpleNamespace(
        config=config, ranks=Ranks(), device=device, restore=lambda state, **_: restored.append(state)
    )
    trainer_state = TrainerState(guard=LossGuard(), step=4, stopped_early=True)
    state = State(trainer_state=trainer_state, adapter={}, best=None, starts={}, optimizer={}, scaler={})
    saved: Any = SimpleNamespace(own=own, goes_on=True, state=lambda: state)
    Saved.restore(saved, training)
    assert [found.trainer_state.stopped_early for found in restored] == [own]


@pytest.mark.parametrize(("goes_on", "patience", "first"), [(True, 2, 4.0), (False, 2, 2.0), (False, None, 2.0)])
def test_a_new_start_begins_with_the_weights_that_the_other_run_publishes(
    *, goes_on: bool, patience: int | None, first: float
) -> None:
    """The best that it found, as in its result and in an export; at its step one goes on from the last."""
    parameters = {"a": torch.nn.Parameter(torch.zeros(1))}
    training: Any = SimpleNamespace(
        config=SimpleNamespace(early_stopping_patience=patience),
        ranks=Ranks(),
        device=SimpleNamespace(torch_device=torch.device("cpu")),
        restore=lambda state, **_: put_back(parameters, state.adapter),
    )
    trainer_state = TrainerState(guard=LossGuard(), step=4, best=BestSoFar(step=2, loss=1.0, waited=2))
    last, best = ({"a": torch.tensor([value])} for value in (4.0, 2.0))
    state = State(trainer_state=trainer_state, adapter=last, best=best, starts={}, optimizer={}, scaler={})
    saved: Any = SimpleNamespace(own=False, goes_on=goes_on, state=lambda: state)
    Saved.restore(saved, training)
    assert parameters["a"].item() == first
