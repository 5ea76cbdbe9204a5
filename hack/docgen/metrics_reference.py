"""docs/metrics.md: every metric of the operator and of a training pod, from the registries themselves."""

from collections.abc import Iterable

from prometheus_client import CollectorRegistry, Metric

from docgen.text import code, table
from lora_operator.controller.metrics import Metrics
from lora_operator.controller.object_metrics import ObjectCollector
from lora_operator.model.observe import parse_finetune
from lora_trainer.host.metrics import TrainingMetrics

_HEAD = """\
<!-- Generated from the metrics' own registries by hack/docs: edit them, then run `make docs`. -->
# Metrics

The operator and every training pod serve metrics in the format of Prometheus and OpenMetrics. Units are seconds, bytes
and ratios from 0 to 1. A histogram has `_bucket`, `_count` and `_sum`. No metric carries an error text, an address with
credentials or a secret. [Monitoring](monitoring.md) explains how to scrape them, with dashboards and alerts.

## Operator

`/metrics` on `httpPort` (8080).

"""
_FLEET = """
## All runs

Counters reset when the operator restarts, and a restart counts nothing twice. If a run ends while no operator runs, the
next one counts it, often before its first scrape: `increase()` misses it then. To count by namespace and reason, use
`lorafinetune_state` and `lorafinetune_completed_timestamp_seconds` below.

"""
_OBJECTS = """
## Each LoRAFineTune

The leading operator reads these series from the resource at each scrape. They end with the resource. A value that is
not known has no series. A run has at most 10 series while it is active and 8 after its end, plus one for each piece of
advice and those of `lorafinetune_retries_total`. `config.runMetrics: false` turns them off.

"""
_TRAINER = """
## Training pods

`/metrics` on port 9090. The series end with the pod. The chart's PodMonitor adds the labels `name` (of the
LoRAFineTune), `uid`, `attempt`, `role` and `completion_index`, so that they join with `lorafinetune_*` by `namespace`
and `name`. With several nodes the first node's pod has the run's numbers, and each pod the memory of its own GPUs.

"""
_EXAMPLE = {
    "metadata": {"name": "x", "namespace": "x", "creationTimestamp": "2026-01-01T00:00:00Z"},
    "status": {
        "conditions": [{"type": "Complete", "status": "Unknown", "reason": "Training"}],
        "advice": [{"code": "NodePressure", "severity": "Warning"}],
        "retries": {"error": 1},
        "startTime": "2026-01-01T00:00:00Z",
        "completionTime": "2026-01-01T00:00:00Z",
        "activeUntil": "2026-01-01T00:00:00Z",
        "plan": {"peakBytes": 1},
        "progress": {"step": 1, "totalSteps": 1, "peakMemoryBytes": 1},
        "results": {"trainLoss": "1", "evalLossBefore": "1", "evalLossAfter": "1"},
        "checkpoint": {"step": 1},
    },
}
"""It has every series: final numbers are read whether or not a run has ended."""


def render() -> str:
    """The whole page."""
    own, objects, trainer = _families()
    parts = (
        ("", [metric for metric in own if metric.name.startswith("lora_operator_")]),
        (_FLEET, [metric for metric in own if not metric.name.startswith("lora_operator_")]),
        (_OBJECTS, objects),
        (_TRAINER, trainer),
    )
    return _HEAD + "".join(text + _table(metrics) for text, metrics in parts)


def operator_series() -> dict[str, tuple[str, ...]]:
    """The labels of each series of the operator, by its name."""
    own, objects, _ = _families()
    return _series([*own, *objects])


def trainer_series() -> dict[str, tuple[str, ...]]:
    """The labels of each series of a training pod, by its name."""
    return _series(_families()[2])


def _families() -> tuple[list[Metric], list[Metric], list[Metric]]:
    """The operator's own metrics, those of LoRAFineTunes, and those of a training pod."""
    registry = CollectorRegistry()
    Metrics(registry)
    trainer = TrainingMetrics()
    objects = ObjectCollector([parse_finetune(_EXAMPLE)]).collect()
    return list(registry.collect()), list(objects), [*trainer.run.collect(), *trainer.gpus.collect()]


def _series(metrics: Iterable[Metric]) -> dict[str, tuple[str, ...]]:
    found: dict[str, tuple[str, ...]] = {}
    for metric in metrics:
        labels = tuple(_label_names(metric))
        if metric.type == "histogram":
            found |= {f"{metric.name}_bucket": (*labels, "le"), f"{metric.name}_count": labels}
            found |= {f"{metric.name}_sum": labels}
        else:
            found[_name(metric)] = labels
    return found


def _table(metrics: Iterable[Metric]) -> str:
    header = ("Metric", "Type", "Labels", "Meaning")
    return table(header, ([code(_name(m)), m.type, _labels(m), m.documentation] for m in metrics))


def _name(metric: Metric) -> str:
    return metric.name + {"counter": "_total", "info": "_info"}.get(metric.type, "")


def _labels(metric: Metric) -> str:
    return ", ".join(code(label) for label in _label_names(metric))


def _label_names(metric: Metric) -> Iterable[str]:
    # A child exists only where its labels are known beforehand; the declaration is the same for all.
    return _LABELS.get(metric.name) or dict.fromkeys(
        label for sample in metric.samples for label in sample.labels if label != "le"
    )


_LABELS = {
    "lora_operator_api_requests": ("verb", "code"),
    "lora_operator_left_out_namespace": ("namespace",),
    "lora_operator_watch_last_event_timestamp_seconds": ("resource",),
    **{f"lora_training_gpu_memory_{kind}_bytes": ("gpu",) for kind in ("allocated", "reserved", "peak")},
}
"""Of metrics whose first series appears with the first event."""
