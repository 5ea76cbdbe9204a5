"""What a training reports: every step to the supervisor and to the run's curves, twenty and one a minute to the log."""

import logging
import time
from collections.abc import Callable

from lora_trainer.distributed.logs import duration, fields
from lora_trainer.distributed.reports import Counters, Report, Reporter
from lora_trainer.model.device import Device
from lora_trainer.plan.hint_checks import LeftAlone
from lora_trainer.spec.progress import Phase
from lora_trainer.spec.summary import ResolvedRun
from lora_trainer.storage.curve_records import MetricsFile
from lora_trainer.train.batches import MicroBatchLimit
from lora_trainer.train.callbacks import Step, TrainerCallback
from lora_trainer.train.evaluate import Evaluation
from lora_trainer.train.state import TrainerState

log = logging.getLogger(__name__)
SIGN_OF_LIFE_S = 10.0
"""Micro-batches within a long step are reported so often at most."""
LONGEST_SILENCE_S = 60.0
"""After it the next step has a line in the log, too: a twentieth of a run may be hours."""


class ReportingCallback(TrainerCallback):
    """Reports to a supervisor, the curves and the log. `peak_share` is the share of the GPUs' peak that one token a
    second takes, where that is known."""

    def __init__(
        self,
        reporter: Reporter,
        device: Device,
        curves: MetricsFile | None = None,
        peak_share: float | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._reporter = reporter
        self._curves = curves or MetricsFile(None)
        self._device = device
        self._peak_share = peak_share
        self._clock = clock
        self._reported_at_s = self._logged_at_s = clock()
        self._weighed_at_s: float | None = None
        self._tokens = self._rows = self._left_out = self._scaled_down = 0
        self._saves = self._failed_saves = self._halvings = 0

    def adapted(self, resolved: ResolvedRun, left_alone: LeftAlone) -> None:
        """See `TrainerCallback`."""
        self._reporter.phase(Phase.EVALUATING, resolved)

    def begins(self, resolved: ResolvedRun, before: Evaluation, *, step: int) -> None:
        """See `TrainerCallback`."""
        self._reporter.progress(phase=Phase.TRAINING, eval_loss=before.loss)
        if step == 0:
            self._curves.evaluated(0, loss=before.loss, standard_error=before.standard_error)

    def stepped(self, step: Step) -> None:
        """See `TrainerCallback`."""
        self._tokens += step.tokens
        self._rows += step.rows
        self._reported_at_s = self._clock()
        self._reporter.progress(
            counters=self._counters(step),
            step=step.number,
            total_steps=step.total,
            epoch=step.epoch,
            loss=step.loss,
            learning_rate=step.learning_rate,
            tokens_per_second=step.tokens_per_second,
            estimated_remaining_seconds=round(step.remaining_seconds),
            peak_memory_bytes=self._device.peak_memory_bytes(),
        )
        self._weigh()
        self._curves.add(
            step.number,
            epoch=step.epoch,
            loss=step.loss,
            learning_rate=step.learning_rate,
            gradient_norm=step.gradient_norm,
            tokens=step.tokens,
            tokens_per_second=step.tokens_per_second,
            seconds=step.seconds,
        )
        silent = self._reported_at_s - self._logged_at_s >= LONGEST_SILENCE_S
        if silent or step.number in (1, step.total) or step.number % max(1, step.total // 20) == 0:
            self._logged_at_s = self._reported_at_s
            _log_step(step)

    def left_out(self, step: int, *, bad: bool) -> None:
        """See `TrainerCallback`."""
        self._left_out += bad
        self._scaled_down += not bad
        self._reporter.progress(counters=self._counters(), step=step)

    def evaluating(self, step: int) -> None:
        """See `TrainerCallback`."""
        self._reporter.phase(Phase.EVALUATING)

    def evaluated(self, step: int, result: Evaluation) -> None:
        """See `TrainerCallback`."""
        self._reporter.progress(phase=Phase.TRAINING, eval_loss=result.loss)
        self._curves.evaluated(step, loss=result.loss, standard_error=result.standard_error)

    def saving(self, step: int) -> None:
        """See `TrainerCallback`."""
        self._reporter.phase(Phase.CHECKPOINTING)

    def saved(self, step: int) -> None:
        """See `TrainerCallback`."""
        self._saves += 1
        self._reporter.progress(counters=self._counters(), phase=Phase.TRAINING, checkpoint_step=step)

    def not_saved(self, step: int) -> None:
        """See `TrainerCallback`."""
        self._failed_saves += 1
        self._reporter.progress(counters=self._counters())

    def ended(self, trainer_state: TrainerState, after: Evaluation) -> None:
        """See `TrainerCallback`."""
        self._reporter.progress(phase=Phase.PUBLISHING, eval_loss=after.loss)
        # Of these weights, which need not be the last ones.
        step = trainer_state.best_step or trainer_state.step
        self._curves.evaluated(step, loss=after.loss, standard_error=after.standard_error)

    def alive(self) -> None:
        """See `TrainerCallback`."""
        if self._clock() - self._reported_at_s >= SIGN_OF_LIFE_S:
            self._reported_at_s = self._clock()
            self._reporter.progress()

    def halved(self, limit: MicroBatchLimit, accumulation: int) -> None:
        """See `TrainerCallback`."""
        self._halvings += 1
        self._reporter.smaller_micro_batches(limit.rows, accumulation, self._counters())

    def _weigh(self) -> None:
        """Report the GPU's memory, now and then."""
        if self._weighed_at_s is not None and self._reported_at_s - self._weighed_at_s < SIGN_OF_LIFE_S:
            return
        self._weighed_at_s = self._reported_at_s
        if memory := self._device.gpu_memory():
            self._reporter.send(Report(memory=memory))

    def _counters(self, step: Step | None = None) -> Counters:
        return Counters(
            tokens=self._tokens,
            rows=self._rows,
            left_out=self._left_out,
            scaled_down=self._scaled_down,
            saves=self._saves,
            failed_saves=self._failed_saves,
            halvings=self._halvings,
            gradient_norm=None if step is None else step.gradient_norm,
            step_seconds=None if step is None else step.seconds,
            fill=None if step is None else step.fill,
            mfu=None if step is None or self._peak_share is None else step.tokens_per_second * self._peak_share,
        )


def _log_step(step: Step) -> None:
    log.info(
        "step %d/%d  loss %.4f  lr %.2e  %.0f tokens/s  %s left",
        step.number,
        step.total,
        step.loss,
        step.learning_rate,
        step.tokens_per_second,
        duration(step.remaining_seconds),
        extra=fields(
            step=step.number,
            total_steps=step.total,
            epoch=step.epoch,
            loss=step.loss,
            learning_rate=step.learning_rate,
            gradient_norm=step.gradient_norm,
            tokens_per_second=step.tokens_per_second,
            estimated_remaining_seconds=round(step.remaining_seconds),
        ),
    )
