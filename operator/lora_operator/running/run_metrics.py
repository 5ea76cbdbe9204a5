"""The metrics of runs: counted from what statuses say for the first time."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Histogram

from lora_operator.decision.usage import Loss
from lora_operator.running.transitions import has_just_ended, restart_cause, run_s, used_since, waited_s
from lora_operator.views.conditions import result_of, state_of
from lora_operator.views.model import FineTune, Observed

_SECONDS = (1, 5, 15, 60, 300, 900, 3600, 4 * 3600, 12 * 3600, 24 * 3600, 3 * 86400, 7 * 86400)
_REST_S = 3600
"""How long a namespace without runs keeps its counters: the last of them are still scraped, and seen in the hour."""
FIRST_SCRAPE_S = 90.0
"""Within this time a new pod is found and scraped for the first time, at an interval of a minute too."""


class RunMetrics:
    """Counters and histograms of runs; those of a namespace begin at 0 with it."""

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
        self.gpu_seconds = Counter(
            "lorafinetune_gpu_seconds",
            "GPU seconds that pods of runs have used: useful is true up to a run's last checkpoint or its success, and "
            "false for what is to be done again. They are counted once that is certain.",
            ["namespace", "useful"],
            registry=registry,
        )
        self.lost_steps = Counter(
            "lorafinetune_steps_lost",
            "Optimizer steps that pods of runs had reported when they ended, and that no checkpoint holds, by cause as "
            "in status.usage.lostSteps.",
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
        self._held: list[tuple[Callable[[float], None], float]] | None = None
        for result in ("succeeded", "failed"):
            self.run_seconds.labels(result)

    def observe(self, before: FineTune, observed: Observed, status: Mapping[str, Any]) -> None:
        """Count what a status that was just written says for the first time."""
        self.begin_at_zero([before.namespace])
        used = used_since(before, status)
        self._add(self.gpu_seconds.labels(before.namespace, "true").inc, used.useful_gpu_s)
        self._add(self.gpu_seconds.labels(before.namespace, "false").inc, used.wasted_gpu_s)
        for loss, steps in used.lost_steps.items():
            self._add(self.lost_steps.labels(before.namespace, loss.value).inc, steps)
        if (wait_s := waited_s(before, observed, status)) is not None:
            self._add(self.wait_seconds.observe, wait_s)
        if cause := restart_cause(before, observed, status):
            self.restarts.labels(before.namespace, cause).inc()
        if has_just_ended(before, status):
            result = result_of(status)
            self.finished.labels(before.namespace, result, state_of(status)).inc()
            if (duration_s := run_s(status)) is not None:
                self._add(self.run_seconds.labels(result).observe, duration_s)

    def hold(self) -> None:
        """Show what is known beforehand as 0 until `release`, whatever is counted. `increase()` adds nothing for the
        first sample of a series, and a new pod has new ones: what had become certain while no operator ran is counted
        in its first second, before anybody scrapes it."""
        self._held = []

    def release(self) -> None:
        """Count what was held, and all that follows at once."""
        held, self._held = self._held or [], None
        for count, value in held:
            count(value)

    def _add(self, count: Callable[[float], None], value: float) -> None:
        if self._held is None:
            count(value)
        else:
            self._held.append((count, value))

    def begin_at_zero(self, namespaces: Iterable[str]) -> None:
        """Show, for these namespaces of runs, the counters whose other labels are known beforehand."""
        for namespace in namespaces:
            self._shown.add(namespace)
            for useful in ("true", "false"):
                self.gpu_seconds.labels(namespace, useful)
            for loss in Loss:
                self.lost_steps.labels(namespace, loss.value)

    def keep(self, namespaces: Iterable[str], now_s: float) -> None:
        """Drop the counters of namespaces that had no runs for an hour, which would pile up where namespaces come and
        go. `namespaces` are those that have some; what was shown since the last call counts as well."""
        self._in_use_s |= dict.fromkeys(self._shown.union(namespaces), now_s)
        self._shown.clear()
        for namespace in [name for name, at_s in self._in_use_s.items() if now_s - at_s > _REST_S]:
            del self._in_use_s[namespace]
            for counter in (self.finished, self.restarts, self.gpu_seconds, self.lost_steps):
                _drop(counter, namespace)


def _drop(counter: Counter, namespace: str) -> None:
    """Remove the series of a namespace."""
    samples = [sample for family in counter.collect() for sample in family.samples]
    for labels in {tuple(s.labels.values()) for s in samples if s.labels["namespace"] == namespace}:
        counter.remove(*labels)
