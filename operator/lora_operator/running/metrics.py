"""The operator's own metrics: their registry, their names, and how they are counted."""

import platform
from collections.abc import Callable, Iterable, Mapping
from types import SimpleNamespace
from typing import Any

import aiohttp
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Info

from lora_operator.decision.usage import Loss
from lora_operator.running.transitions import has_just_ended, restart_cause, run_s, used_since, waited_s
from lora_operator.views.conditions import result_of, state_of
from lora_operator.views.model import FineTune, Observed
from lora_trainer.contract.release import RELEASE

RESOURCES = ("lorafinetunes", "jobs", "pods")
OUTCOMES = ("success", "retry", "error")
VERBS = ("get", "watch", "create", "update", "patch", "delete")
_SECONDS = (1, 5, 15, 60, 300, 900, 3600, 4 * 3600, 12 * 3600, 24 * 3600, 3 * 86400, 7 * 86400)
_REST_S = 3600
"""How long a namespace without runs keeps its counters: the last of them are still scraped, and seen in the hour."""
FIRST_SCRAPE_S = 90.0
"""Within this time a new pod is found and scraped for the first time, at an interval of a minute too."""
_RECONCILE_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)


class Metrics:
    """Counters, gauges and histograms; each series is there with 0 where its labels are known beforehand."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.reconciles = Counter(
            "lora_operator_reconcile",
            "Turns of a LoRAFineTune: success; retry where the API server could not be reached, was in trouble or in "
            "the middle of something; error where it refused what the operator must be able to do, or something "
            "unexpected happened.",
            ["result"],
            registry=registry,
        )
        self.reconcile_seconds = Histogram(
            "lora_operator_reconcile_duration_seconds",
            "Duration of a turn of a LoRAFineTune, its requests to the API server included.",
            buckets=_RECONCILE_SECONDS,
            registry=registry,
        )
        self.requests = Counter(
            "lora_operator_api_requests",
            "Requests to the API server by what they do (get includes lists) and HTTP status; "
            "code is error where no answer came.",
            ["verb", "code"],
            registry=registry,
        )
        self.queue_depth = Gauge(
            "lora_operator_queue_depth", "LoRAFineTunes that wait for a worker.", registry=registry
        )
        self.leader = Gauge(
            "lora_operator_leader",
            "1 for the process that works on runs: with leader election one of several, without it each that is ready.",
            registry=registry,
        )
        self.left_out_namespaces = Gauge(
            "lora_operator_left_out_namespace",
            "1 for each listed namespace that is not watched, because a right to list or watch is missing there.",
            ["namespace"],
            registry=registry,
        )
        self.watch_last_event = Gauge(
            "lora_operator_watch_last_event_timestamp_seconds",
            "When a watch last brought an event or a bookmark; of several namespaces the longest ago, and 0 before the "
            "first.",
            ["resource"],
            registry=registry,
        )
        build = Info("lora_operator_build", "Version of the operator.", registry=registry)
        build.info({"version": RELEASE, "python": platform.python_version()})
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
        self._start_at_zero()

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

    def left_out(self, namespaces: Iterable[str]) -> None:
        """Show the namespaces that are not looked after, and no others."""
        self.left_out_namespaces.clear()
        for namespace in namespaces:
            self.left_out_namespaces.labels(namespace).set(1)

    def watch_heard(self, times: Mapping[str, float]) -> None:
        """Set when each resource's watch was last heard, in seconds since 1970."""
        for resource, timestamp_s in times.items():
            self.watch_last_event.labels(resource).set(timestamp_s)

    def _start_at_zero(self) -> None:
        for outcome in OUTCOMES:
            self.reconciles.labels(outcome)
        for verb in VERBS:
            self.requests.labels(verb, "201" if verb == "create" else "200")
            self.requests.labels(verb, "error")
        for resource in RESOURCES:
            self.watch_last_event.labels(resource)
        for result in ("succeeded", "failed"):
            self.run_seconds.labels(result)


def _drop(counter: Counter, namespace: str) -> None:
    """Remove the series of a namespace."""
    samples = [sample for family in counter.collect() for sample in family.samples]
    for labels in {tuple(s.labels.values()) for s in samples if s.labels["namespace"] == namespace}:
        counter.remove(*labels)


def count_requests(metrics: Metrics) -> aiohttp.TraceConfig:
    """Counts every request of a session."""

    async def answered(_: aiohttp.ClientSession, __: SimpleNamespace, end: aiohttp.TraceRequestEndParams) -> None:
        metrics.requests.labels(_verb(end.method, end.url.query_string), str(end.response.status)).inc()

    async def unanswered(
        _: aiohttp.ClientSession, __: SimpleNamespace, end: aiohttp.TraceRequestExceptionParams
    ) -> None:
        metrics.requests.labels(_verb(end.method, end.url.query_string), "error").inc()

    trace = aiohttp.TraceConfig()
    trace.on_request_end.append(answered)
    trace.on_request_exception.append(unanswered)
    return trace


def _verb(method: str, query: str) -> str:
    if "watch=true" in query:
        return "watch"
    return {"POST": "create", "PUT": "update", "PATCH": "patch", "DELETE": "delete"}.get(method.upper(), "get")
