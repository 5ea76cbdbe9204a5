"""When the state of a training is saved, and what is written with it."""

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from lora_trainer.spec.config import CheckpointConfig
from lora_trainer.train.checkpoint import Checkpoints
from lora_trainer.train.state import RunRecord, State

log = logging.getLogger(__name__)


@dataclass(slots=True, kw_only=True)
class CheckpointPolicy:
    """Saves by time and by steps, whichever comes first. `saved_step` is that of the state on the volume."""

    checkpoints: Checkpoints
    config: CheckpointConfig
    record: RunRecord
    clock: Callable[[], float] = time.monotonic
    saved_step: int = 0
    saved_at_s: float = field(init=False)

    def __post_init__(self) -> None:
        self.saved_at_s = self.clock()

    def begin(self, step: int) -> None:
        """Count time and steps from now on; the state after `step` is on the volume."""
        self.saved_step, self.saved_at_s = step, self.clock()

    def is_due(self, step: int) -> bool:
        """Whether the state after `step` is to be saved."""
        steps = self.config.interval_steps
        return self.clock() - self.saved_at_s >= self.config.interval_s or (
            steps is not None and step - self.saved_step >= steps
        )

    def save(self, state: State) -> None:
        """Write a checkpoint. Raises `StorageError`."""
        started = self.clock()
        self.checkpoints.save(state.trainer_state.step, state.files(self.record), state.size_bytes)
        log.info("saved the state after step %d in %.1f s", state.trainer_state.step, self.clock() - started)
        self.begin(state.trainer_state.step)
