"""The metrics of runs: counted from what statuses say for the first time."""

from collections.abc import Iterable, Mapping
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Histogram

from lora_operator.running.transitions import has_just_ended, restart_cause, run_s, waited_s
from lora_operator.views.conditions import result_of, state_of
from lora_operator.views.model import FineTune, Observed

_SECONDS = (1, 5, 15, 60, 300, 900, 3600, 4 * 3600, 12 * 3600, 24 * 3600, 3 * 86400, 7 * 86400)
_REST_S = 3600
"""How long a namespace without runs keeps its counters: the last of them are still scraped, and seen in the hour."""


class RunMetrics:
    """Counters and histograms of runs."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.finished = Counter(
            "lorafinetune_finished",
            "Runs that ended while this operator was watching, by result (succeeded or failed) and reason.",
            ["namespace", "result", "reason"],
            registry=registry,
        )
        self.restarts = Counter(
            "lorafinetune_restarts",
            "Pods that took the place of an earlier one of the same run, by the reason for which that one ended.",
            ["namespace", "cause"],
            registry=registry,
        )
        self.run_seconds = Histogram(
            "lorafinetune_run_duration_seconds",
            "Time from the first start of a run to its end.",
            ["result"],
            buckets=_SECONDS,
            registry=registry,
        )
        self.wait_seconds = Histogram(
            "lorafinetune_queue_wait_seconds",
            "Time from the creation of a LoRAFineTune to its first pod that trains, which a queue, a quota, the "
            "preflight or spec.suspend delays; the pod's own wait for a node is added to it.",
            buckets=_SECONDS,
            registry=registry,
        )
        self._in_use_s: dict[str, float] = {}
        self._shown: set[str] = set()
        for result in ("succeeded", "failed"):
            self.run_seconds.labels(result)

    def observe(self, before: FineTune, observed: Observed, status: Mapping[str, Any]) -> None:
        """Count what a status that was just written says for the first time."""
        self._shown.add(before.namespace)
        if (wait_s := waited_s(before, observed, status)) is not None:
            self.wait_seconds.observe(wait_s)
        if cause := restart_cause(before, observed, status):
            self.restarts.labels(before.namespace, cause).inc()
        if has_just_ended(before, status):
            result = result_of(status)
            self.finished.labels(before.namespace, result, state_of(status)).inc()
            if (duration_s := run_s(status)) is not None:
                self.run_seconds.labels(result).observe(duration_s)

    def keep(self, namespaces: Iterable[str], now_s: float) -> None:
        """Drop the counters of namespaces that had no runs for an hour, which would pile up where namespaces come and
        go. `namespaces` are those that have some; what was shown since the last call counts as well."""
        self._in_use_s |= dict.fromkeys(self._shown.union(namespaces), now_s)
        self._shown.clear()
        for namespace in [name for name, at_s in self._in_use_s.items() if now_s - at_s > _REST_S]:
            del self._in_use_s[namespace]
            for counter in (self.finished, self.restarts):
                _drop(counter, namespace)


def _drop(counter: Counter, namespace: str) -> None:
    """Remove the series of a namespace."""
    samples = [sample for family in counter.collect() for sample in family.samples]
    for labels in {tuple(s.labels.values()) for s in samples if s.labels["namespace"] == namespace}:
        counter.remove(*labels)
