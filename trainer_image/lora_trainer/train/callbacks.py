"""What a training reports of itself, and to whom."""

from collections.abc import Sequence
from dataclasses import dataclass

from lora_trainer.plan.hint_checks import LeftAlone
from lora_trainer.spec.summary import ResolvedRun
from lora_trainer.train.batches import MicroBatchLimit
from lora_trainer.train.evaluate import Evaluation
from lora_trainer.train.state import TrainerState

SPEED_WINDOW = 20
"""Over so many steps the speed is a mean."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One optimizer step that was taken; `number` counts from 1, `tokens` are the step's without padding, `fill` their
    share of what its micro-batches had room for."""

    number: int
    total: int
    epoch: float
    loss: float
    learning_rate: float
    gradient_norm: float
    tokens: int
    rows: int
    fill: float
    seconds: float
    tokens_per_second: float
    remaining_seconds: float


class TrainerCallback:
    """Is called for what happens in a training, on every process. This one does nothing."""

    def adapted(self, resolved: ResolvedRun, left_alone: LeftAlone) -> None:
        """The adapter is on the base, and how both compute is settled; the base is evaluated next."""

    def begins(self, resolved: ResolvedRun, before: Evaluation, *, step: int) -> None:
        """The training begins after `step`, 0 where it goes on from none; `before` is the evaluation of the base."""

    def stepped(self, step: Step) -> None:
        """A step was taken."""

    def left_out(self, step: int, *, bad: bool) -> None:
        """A step was left out: a bad one for its numbers, another since its loss is to be scaled by less in FP16."""

    def evaluating(self, step: int) -> None:
        """An evaluation begins."""

    def evaluated(self, step: int, result: Evaluation) -> None:
        """An evaluation ended."""

    def saving(self, step: int) -> None:
        """A checkpoint is about to be written."""

    def saved(self, step: int) -> None:
        """A checkpoint is on the volume, proven."""

    def not_saved(self, step: int) -> None:
        """A checkpoint could not be written; the training ends."""

    def halved(self, limit: MicroBatchLimit, accumulation: int) -> None:
        """The device's memory did not suffice: micro-batches hold less from now on, and a step has so many of them."""

    def ended(self, trainer_state: TrainerState, after: Evaluation) -> None:
        """The training ended, and was evaluated."""

    def alive(self) -> None:
        """Another micro-batch begins."""


def speed_and_rest(recent: Sequence[Step], tokens: int, seconds: float, left: int) -> tuple[float, float]:
    """Tokens per second over the last steps, and the seconds that the remaining ones will take at that pace."""
    # The first step of a process also warms caches and allocators up: it counts only until there is another.
    steady = list(recent)[1:] if len(recent) < SPEED_WINDOW else list(recent)
    counted = sum(step.tokens for step in steady) + tokens
    spent = sum(step.seconds for step in steady) + seconds
    return counted / max(spent, 1e-9), left * spent / (len(steady) + 1)
