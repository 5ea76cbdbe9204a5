"""What a run takes over of the state that it goes on from."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from lora_trainer.ranks.collectives import Ranks
from lora_trainer.ranks.reports import Reporter
from lora_trainer.recipe.train import _go_on
from lora_trainer.training.guards import LossGuard
from lora_trainer.training.state import Course, State


@pytest.mark.parametrize("own", [True, False])
def test_only_a_runs_own_early_stop_is_its_end(*, own: bool) -> None:
    """An attempt goes on from its own run's state as it is, and from another run's without that run's end."""
    restored: list[State] = []
    config = SimpleNamespace(early_stopping_patience=None)
    device = SimpleNamespace(torch_device=torch.device("cpu"))
    training: Any = SimpleNamespace(
        config=config, ranks=Ranks(), device=device, restore=lambda state, **_: restored.append(state)
    )
    nothing: dict[str, Any] = {"log_start": lambda **_: None, "warn_of_changes": lambda *_: None}
    record: Any = SimpleNamespace(resolved=None, versions={})
    course = Course(guard=LossGuard(), step=4, stopped_early=True)
    state = State(course=course, adapter={}, best=None, starts={}, optimizer={}, scaler={})
    saved: Any = SimpleNamespace(own=own, progress=lambda **_: {}, state=lambda: state, **nothing)
    _go_on(training, saved, record, Reporter(None), goes_on=True)
    assert [found.course.stopped_early for found in restored] == [own]
