"""Prometheus's own linter accepts what the operator and a training pod expose."""

import subprocess

from prometheus_client import CollectorRegistry, generate_latest
from tests.unit.builders import make_finetune
from tests.unit.test_metrics import full_status
from tests.unit.test_scrape import HOSTILE, hostile

from lora_operator.controller.metrics import Metrics
from lora_operator.controller.object_metrics import ObjectCollector
from lora_trainer.distributed.reports import Counters, GpuMemory
from lora_trainer.host.metrics import TrainingMetrics
from lora_trainer.spec.progress import Phase, Progress


def check(text: bytes) -> None:
    """Raise with the linter's words."""
    checked = subprocess.run(["promtool", "check", "metrics"], input=text, capture_output=True, check=False)
    assert checked.returncode == 0, (checked.stdout + checked.stderr).decode()


def test_every_metric_of_the_operator_is_accepted() -> None:
    """With runs of all kinds, and texts that mean to break the format."""
    registry = CollectorRegistry()
    Metrics(registry)
    runs = [make_finetune(status=full_status(kind), metadata={"name": kind}) for kind in ("going", "ended")]
    registry.register(ObjectCollector([*runs, *map(hostile, HOSTILE)]))
    check(generate_latest(registry))


def test_every_metric_of_a_training_pod_is_accepted() -> None:
    """Before its first step, and in the middle."""
    metrics = TrainingMetrics()
    metrics.leads = True
    check(metrics.text())
    metrics.checkpoint_interval(600)
    metrics.memory(GpuMemory(gpu=0, allocated_bytes=1, reserved_bytes=1, peak_bytes=1))
    progress = Progress(
        phase=Phase.TRAINING,
        step=1,
        total_steps=2,
        epoch=0.5,
        loss=1.0,
        eval_loss=1.0,
        learning_rate=1.0,
        tokens_per_second=1.0,
        peak_memory_bytes=1,
    )
    metrics.update(progress, Counters(saves=1, gradient_norm=1.0, step_seconds=1.0, mfu=0.5))
    check(metrics.text())
