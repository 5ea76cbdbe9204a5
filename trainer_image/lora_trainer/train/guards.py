"""When a training is in vain: numbers that are no numbers, and a loss that went up for good."""

import logging
import math
from collections.abc import Callable
from dataclasses import dataclass

from lora_trainer.errors import NonFiniteLossError
from lora_trainer.spec.reasons import Reason

log = logging.getLogger(__name__)
BAD_STEPS = 3
"""So many steps in a row without finite loss and gradients end a run; single ones are left out of the training."""
_REMEDY = "lower training.learningRate, and use BF16 or FP32 instead of FP16"

SMOOTHING = 0.9
"""Weight of the past in the smoothed loss: about the last ten steps count."""

DIVERGED_MARGIN = 2.0
"""Nats per token that the smoothed loss must at least be above its lowest."""

DIVERGED_STEPS = 20
"""So many steps in a row above the threshold end a run."""


@dataclass(slots=True, kw_only=True)
class LossGuard:
    """What was seen so far; part of a checkpoint. `smoothed` is the exponential mean of the losses, `lowest` its lowest
    value, `above` the steps in a row for which it has been above the threshold.

    Diverged is a run whose smoothed loss stays above twice its lowest value, and `DIVERGED_MARGIN` above it, for
    `DIVERGED_STEPS` steps. The factor is of the kind that learning-rate finders stop at (fastai's at four times the
    best, after Smith, arXiv 1506.01186). The margin keeps runs that know their rows by heart, with losses near 0, from
    being stopped by hard rows, and the steps in a row those with a short spike, which most runs recover from.
    """

    bad_in_a_row: int = 0
    smoothed: float | None = None
    lowest: float | None = None
    above: int = 0

    @property
    def suspicious(self) -> bool:
        """Whether the last steps were bad or too high: not the time to replace a good checkpoint."""
        return self.bad_in_a_row > 0 or self.above > 0

    def may_take(self, step: int, loss: float, norm: float, scale: Callable[[], float] | None) -> bool:
        """Whether the step may change the weights. `scale` reads the factor on an fp16 loss, for which it waits for the
        device; None elsewhere.

        Raises `NonFiniteLossError` for the third step in a row that may not.
        """
        # With fp16 an infinite gradient mostly means that the scale was too high: the step is left out, and the scaler
        # lowers it. Below 1 it has nothing left to gain, and would have every step left out of a run that then ends as
        # if it had learned.
        if math.isfinite(loss) and (math.isfinite(norm) or (scale is not None and scale() >= 1)):
            self.bad_in_a_row = 0
            return True
        self.bad_in_a_row += 1
        what = f"loss is {loss}" if not math.isfinite(loss) else f"norm of the gradient is {norm}"
        if self.bad_in_a_row >= BAD_STEPS:
            raise NonFiniteLossError(
                f"the {what} at step {step}, the third step in a row without finite numbers: {_REMEDY}"
            )
        log.warning("the %s at step %d: the step is left out", what, step)
        return False

    def observe(self, step: int, loss: float) -> None:
        """Take the loss of a step that was taken. Raises `NonFiniteLossError` (`LossDiverged`)."""
        self.smoothed = loss if self.smoothed is None else SMOOTHING * self.smoothed + (1 - SMOOTHING) * loss
        self.lowest = self.smoothed if self.lowest is None else min(self.lowest, self.smoothed)
        height, threshold = self.smoothed - self.lowest, max(self.lowest, DIVERGED_MARGIN)
        self.above = self.above + 1 if height > threshold else 0
        if self.above >= DIVERGED_STEPS:
            raise NonFiniteLossError(
                f"the loss went from {self.lowest:.2f} up to {self.smoothed:.2f} and stayed up for {DIVERGED_STEPS} "
                f"steps, until step {step}: lower training.learningRate, set lora.alpha to lora.rank where it is "
                "larger, or raise training.warmupRatio; the last checkpoint is from before",
                Reason.LOSS_DIVERGED,
            )


def was_in_range(step: int, norm: float) -> bool:
    """Whether fp16 held the gradients of a step, the length of which is `norm`: it is left out otherwise."""
    if not math.isfinite(norm):
        log.info("step %d: beyond the range of fp16: left out, the loss is scaled by less", step)
    return math.isfinite(norm)


def check_trained(steps: int, taken: int) -> None:
    """Raise `NonFiniteLossError` where of all `steps` none was `taken`: the adapter is the one that the run began with.

    A run may be shorter than `BAD_STEPS`, or than the scaler of fp16 needs to find its factor.
    """
    if not taken:
        raise NonFiniteLossError(
            f"none of the {steps} steps had a finite loss and finite gradients, so that nothing was learned: {_REMEDY}"
        )


def check_evaluated(loss: float, *, trained: bool) -> None:
    """Raise `NonFiniteLossError` where an evaluation before the training, or after it with `trained`, gave no number.

    So steps that were left out at the end, with no third one to end the run, are forgiven to an adapter that computes.
    """
    if math.isfinite(loss):
        return
    if not trained:
        raise NonFiniteLossError(
            f"the loss before training is {loss}: the base model itself gives no number for a row; set "
            "training.precision to BF16 or FP32, or take another base model"
        )
    raise NonFiniteLossError(f"the loss after training is {loss}: {_REMEDY}")
