"""The metrics of a training pod, under `/metrics`.

A counter begins with 0; a quantity has no series before its first value, so that nobody takes a loss of 0 for one. Of
several nodes, the first one's pod has the run's numbers, and each has those of its own GPUs.
"""

import time
from collections.abc import Callable, Iterable

from prometheus_client import CollectorRegistry, Counter, Histogram, disable_created_metrics, generate_latest
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from lora_trainer.distributed.reports import Counters, GpuMemory
from lora_trainer.spec.progress import Phase, Progress

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_STEP_SECONDS = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 20, 30, 60, 120, 300, 600)
_GAUGES = {
    "loss": "Training loss of the last optimizer step, in nats per loss token.",
    "eval_loss": "Validation loss, in nats per loss token.",
    "learning_rate": "Learning rate of the last optimizer step.",
    "grad_norm": "Norm of the gradient before clipping.",
    "step": "Optimizer steps taken.",
    "steps": "Optimizer steps of the whole run.",
    "epoch": "Passes over the training data.",
    "tokens_per_second": "Training tokens per second over the last steps.",
    "micro_batch_fill": "Share of the last step's micro-batches that tokens filled, without padding.",
    "mfu_ratio": "Share of the GPUs' dense 16-bit peak that the training reaches, at 4N operations per token with N "
    "parameters per token; recomputation does not count. Absent for unknown GPUs and fp32.",
    "peak_memory_bytes": "Peak memory of the GPU or, on a CPU, of the process.",
    "heartbeat_timestamp_seconds": "When the pod last worked for the run, in any stage.",
    "checkpoint_interval_seconds": "Longest time between two checkpoints; absent without a checkpoint PVC and after "
    "the final evaluation.",
    "unsaved_seconds": "Seconds of optimizer steps since the last checkpoint, which are lost if the pod ends now. "
    "Absent like checkpoint_interval_seconds.",
    "checkpoint_last_success_timestamp_seconds": "When the last checkpoint was verified.",
}
_OF_THE_TRAINING = ("tokens_per_second", "mfu_ratio", "checkpoint_interval_seconds", "unsaved_seconds")
_GPU_GAUGES = {
    "allocated": "Memory of tensors on a GPU of this pod; gpu is its number in the pod.",
    "reserved": "Memory that PyTorch has reserved on a GPU of this pod.",
    "peak": "Peak memory of tensors on a GPU of this pod.",
}


class TrainingMetrics:
    """Holds registries of its own; `wall_clock` gives seconds since 1970. `leads`: this pod has the run's numbers."""

    def __init__(self, wall_clock: Callable[[], float] = time.time) -> None:
        disable_created_metrics()
        self.leads = False
        self.stirs: Callable[[], bool] = lambda: False
        """Whether a stage that reports nothing, such as one that loads a model, has worked since the last scrape."""
        self._wall_clock = wall_clock
        self.run, self.gpus = CollectorRegistry(), CollectorRegistry()
        self._values: dict[str, float] = {}
        self._phase = Phase.STARTING
        self._memory: dict[int, GpuMemory] = {}
        self.run.register(_Families(self._run_families))
        self.gpus.register(_Families(self._gpu_families))
        self._step_seconds = Histogram(
            "lora_training_step_duration_seconds",
            "Duration of an optimizer step.",
            buckets=_STEP_SECONDS,
            registry=self.run,
        )
        self._tokens = Counter("lora_training_tokens", "Tokens trained on, without padding.", registry=self.run)
        self._samples = Counter("lora_training_samples", "Rows trained on.", registry=self.run)
        self._saves = Counter(
            "lora_training_checkpoint_saves",
            "Checkpoints written, by result (ok, failed).",
            ["result"],
            registry=self.run,
        )
        for result in ("ok", "failed"):
            self._saves.labels(result)
        self._left_out = Counter(
            "lora_training_nonfinite_values",
            "Optimizer steps skipped because the loss or gradients were not finite, and a smaller FP16 loss scale "
            "could not help. The third in a row ends the run.",
            registry=self.run,
        )
        self._scaled_down = Counter(
            "lora_training_scaled_down_steps",
            "Optimizer steps skipped because gradients exceeded the range of FP16; the loss scale is then reduced. "
            "Several in a row are normal at the start.",
            registry=self.run,
        )
        self._halvings = Counter(
            "lora_training_micro_batch_halvings",
            "Times that micro-batches were halved because memory did not suffice.",
            registry=self.run,
        )
        self._seen = Counters()

    def beat(self) -> None:
        """Something was done for the run."""
        self._values["heartbeat_timestamp_seconds"] = self._wall_clock()

    def stage(self, name: str) -> None:
        """Another stage begins: what only a training has, and the memory of its processes, are gone."""
        self.beat()
        if name != "train":
            for quantity in _OF_THE_TRAINING:
                self._values.pop(quantity, None)
            self._memory = {}

    def checkpoint_interval(self, interval_s: float) -> None:
        """The training that begins saves so often."""
        self._set(checkpoint_interval_seconds=interval_s, unsaved_seconds=0.0)

    def memory(self, gpu: GpuMemory) -> None:
        """Take over a report of a process of this pod."""
        self._memory = {**self._memory, gpu.gpu: gpu}

    def update(self, progress: Progress, counters: Counters | None) -> None:
        """Take over a report of progress."""
        self.beat()
        self._phase = progress.phase
        total = progress.total_steps
        self._set(
            loss=progress.loss,
            eval_loss=progress.eval_loss,
            learning_rate=progress.learning_rate,
            step=None if total is None else progress.step,
            steps=total,
            epoch=progress.epoch,
            tokens_per_second=progress.tokens_per_second if progress.phase is Phase.TRAINING else None,
            peak_memory_bytes=progress.peak_memory_bytes,
        )
        if counters is not None:
            self._count(counters)

    def _set(self, **values: float | None) -> None:
        self._values |= {name: float(value) for name, value in values.items() if value is not None}

    def _count(self, counters: Counters) -> None:
        seen, self._seen = self._seen, counters
        self._tokens.inc(counters.tokens - seen.tokens)
        self._samples.inc(counters.rows - seen.rows)
        self._left_out.inc(counters.left_out - seen.left_out)
        self._scaled_down.inc(counters.scaled_down - seen.scaled_down)
        self._halvings.inc(counters.halvings - seen.halvings)
        self._saves.labels("ok").inc(counters.saves - seen.saves)
        self._saves.labels("failed").inc(counters.failed_saves - seen.failed_saves)
        saved = counters.saves > seen.saves
        self._set(
            checkpoint_last_success_timestamp_seconds=self._wall_clock() if saved else None,
            grad_norm=counters.gradient_norm,
            mfu_ratio=counters.mfu,
            micro_batch_fill=counters.fill,
        )
        if counters.step_seconds is not None:
            self._step_seconds.observe(counters.step_seconds)
        if "unsaved_seconds" in self._values:
            self._values["unsaved_seconds"] += counters.step_seconds or 0.0
            self._values["unsaved_seconds"] *= not saved

    def _run_families(self) -> Iterable[Metric]:
        phase = GaugeMetricFamily("lora_training_phase", "1 for the run's phase.", labels=["phase"])
        phase.add_metric([self._phase.value], 1.0)
        yield phase
        for name, text in _GAUGES.items():
            family = GaugeMetricFamily(f"lora_training_{name}", text)
            value = self._values.get(name)
            if value is not None:
                family.add_metric([], value)
            yield family

    def _gpu_families(self) -> Iterable[Metric]:
        memory = sorted(self._memory.items())
        for kind, text in _GPU_GAUGES.items():
            family = GaugeMetricFamily(f"lora_training_gpu_memory_{kind}_bytes", text, labels=["gpu"])
            for gpu, known in memory:
                family.add_metric([str(gpu)], float(getattr(known, f"{kind}_bytes")))
            yield family

    def text(self) -> bytes:
        """The exposition format."""
        if self.stirs():
            self.beat()
        return (generate_latest(self.run) if self.leads else b"") + generate_latest(self.gpus)


class _Families(Collector):
    """Families that are made at each scrape."""

    def __init__(self, families: Callable[[], Iterable[Metric]]) -> None:
        self._families = families

    def collect(self) -> Iterable[Metric]:
        """See `Collector`."""
        return self._families()
