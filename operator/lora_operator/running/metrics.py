"""The metrics of the operator's process, and with them those of runs."""

import platform
from collections.abc import Iterable, Mapping
from types import SimpleNamespace

import aiohttp
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Info

from lora_operator.running.run_metrics import RunMetrics
from lora_trainer.contract.release import RELEASE

RESOURCES = ("lorafinetunes", "jobs", "pods")
OUTCOMES = ("success", "retry", "error")
VERBS = ("get", "watch", "create", "update", "patch", "delete")
_RECONCILE_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)


class Metrics:
    """What the process does, and `runs`; each series is there with 0 where its labels are known beforehand."""

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
            "1 for the process that holds the Lease and works on runs, 0 for one that stands by.",
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
        self.runs = RunMetrics(registry)
        self._start_at_zero()

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
