"""The metrics of a training pod, under `/metrics`. Every series exists with 0 before its first event."""

import time
from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, generate_latest

from lora_trainer.contract.progress import Progress
from lora_trainer.ranks.reports import Counters

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"


class TrainingMetrics:
    """Holds a registry of its own; `wall_clock` gives seconds since 1970."""

    def __init__(self, wall_clock: Callable[[], float] = time.time) -> None:
        self._wall_clock = wall_clock
        self.registry = CollectorRegistry()
        self._loss = self._gauge("loss", "Training loss of the last optimizer step, in nats per learned token.")
        self._eval_loss = self._gauge("eval_loss", "Loss on the held-out rows, in nats per learned token.")
        self._learning_rate = self._gauge("learning_rate", "Learning rate of the last optimizer step.")
        self._gradient_norm = self._gauge("grad_norm", "Norm of the gradient before clipping.")
        self._step = self._gauge("step", "Optimizer steps taken.")
        self._steps = self._gauge("steps", "Optimizer steps of the whole run.")
        self._epoch = self._gauge("epoch", "Passes over the training data.")
        self._speed = self._gauge("tokens_per_second", "Training tokens per second over the last steps.")
        self._step_duration = self._gauge("step_duration_seconds", "Duration of the last optimizer step.")
        self._fill = self._gauge(
            "micro_batch_fill", "Share of the room of the last step's micro-batches that its tokens took, padding not."
        )
        self._peak = self._gauge("peak_memory_bytes", "Most memory used: of the GPU, or of the process on a CPU.")
        self._heartbeat = self._gauge("heartbeat_timestamp_seconds", "When the trainer last made progress.")
        self._tokens = Counter("lora_training_tokens", "Tokens trained on, without padding.", registry=self.registry)
        self._samples = Counter("lora_training_samples", "Rows trained on.", registry=self.registry)
        self._saves = Counter(
            "lora_training_checkpoint_saves",
            "Checkpoints written, by result (ok, failed).",
            ["result"],
            registry=self.registry,
        )
        for result in ("ok", "failed"):
            self._saves.labels(result)
        self._saved = self._gauge("checkpoint_last_success_timestamp_seconds", "When the last checkpoint was proven.")
        self._left_out = Counter(
            "lora_training_nonfinite_values",
            "Optimizer steps left out because loss or gradients were not finite.",
            registry=self.registry,
        )
        self._halvings = Counter(
            "lora_training_micro_batch_halvings",
            "Times that memory did not suffice and micro-batches were halved.",
            registry=self.registry,
        )
        self._seen = Counters()

    def _gauge(self, name: str, text: str) -> Gauge:
        return Gauge(f"lora_training_{name}", text, registry=self.registry)

    def update(self, progress: Progress, counters: Counters | None) -> None:
        """Take over a report of progress."""
        pairs = (
            (self._loss, progress.loss),
            (self._eval_loss, progress.eval_loss),
            (self._learning_rate, progress.learning_rate),
            (self._step, progress.step),
            (self._steps, progress.total_steps),
            (self._epoch, progress.epoch),
            (self._speed, progress.tokens_per_second),
            (self._peak, progress.peak_memory_bytes),
        )
        for gauge, value in pairs:
            if value is not None:
                gauge.set(value)
        if counters is not None:
            self._count(counters)
        self._heartbeat.set(self._wall_clock())

    def _count(self, counters: Counters) -> None:
        seen, self._seen = self._seen, counters
        self._tokens.inc(counters.tokens - seen.tokens)
        self._samples.inc(counters.rows - seen.rows)
        self._left_out.inc(counters.left_out - seen.left_out)
        self._halvings.inc(counters.halvings - seen.halvings)
        self._saves.labels("ok").inc(counters.saves - seen.saves)
        self._saves.labels("failed").inc(counters.failed_saves - seen.failed_saves)
        if counters.saves > seen.saves:
            self._saved.set(self._wall_clock())
        if counters.gradient_norm is not None:
            self._gradient_norm.set(counters.gradient_norm)
        if counters.step_seconds is not None:
            self._step_duration.set(counters.step_seconds)
        if counters.fill is not None:
            self._fill.set(counters.fill)

    def text(self) -> bytes:
        """The exposition format."""
        return generate_latest(self.registry)
