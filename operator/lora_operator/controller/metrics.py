"""The metrics of the operator's process; those of each run are read from the cache (`object_metrics.py`)."""

import platform
from collections.abc import Iterable, Mapping
from types import SimpleNamespace
from typing import Any

import aiohttp
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Info

from lora_operator.model.conditions import has_just_ended, result_of
from lora_operator.model.names import TRAIN
from lora_operator.model.objects import FineTune, Observed
from lora_trainer.spec.release import RELEASE

_RECONCILE_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)
_WAIT_SECONDS = (1, 5, 15, 60, 300, 900, 3600, 4 * 3600, 12 * 3600, 24 * 3600, 3 * 86400, 7 * 86400)


class Metrics:
    """What the process does, and what it has written for the first time.

    No label is what a user wrote, but for the names of listed namespaces.
    """

    def __init__(self, registry: CollectorRegistry) -> None:
        self.reconciles = Counter(
            "lora_operator_reconcile",
            "Reconciles of a LoRAFineTune: success; retry if the API server was unreachable or in trouble; error if "
            "it refused a permission that the operator needs, or something unexpected happened.",
            ["result"],
            registry=registry,
        )
        self.reconcile_seconds = Histogram(
            "lora_operator_reconcile_duration_seconds",
            "Duration of a reconcile, its requests to the API server included.",
            buckets=_RECONCILE_SECONDS,
            registry=registry,
        )
        self.requests = Counter(
            "lora_operator_api_requests",
            "Requests to the API server, by verb (get includes lists) and HTTP status; code is error if no answer "
            "came.",
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
            "1 for each listed namespace that is not watched, because the permission to list or watch is missing.",
            ["namespace"],
            registry=registry,
        )
        self.watch_last_event = Gauge(
            "lora_operator_watch_last_event_timestamp_seconds",
            "When a watch last received an event, a bookmark or a list; the oldest of several namespaces, and 0 "
            "before the first.",
            ["resource"],
            registry=registry,
        )
        build = Info("lora_operator_build", "Version of the operator.", registry=registry)
        build.info({"version": RELEASE, "python": platform.python_version()})
        self.finished = Counter(
            "lorafinetune_finished",
            "Runs whose verdict this process wrote, by result (succeeded or failed).",
            ["result"],
            registry=registry,
        )
        self.wait_seconds = Histogram(
            "lorafinetune_queue_wait_seconds",
            "Time from the creation of a LoRAFineTune to the creation of its first training pod. The pod's own wait "
            "for a node is not included.",
            buckets=_WAIT_SECONDS,
            registry=registry,
        )
        # `increase()` leaves out the first sample of a series: one that began with its first event would hide it.
        for result in ("success", "retry", "error"):
            self.reconciles.labels(result)
        for result in ("succeeded", "failed"):
            self.finished.labels(result)

    def left_out(self, namespaces: Iterable[str]) -> None:
        """Show the namespaces that are not looked after, and no others."""
        self.left_out_namespaces.clear()
        for namespace in namespaces:
            self.left_out_namespaces.labels(namespace).set(1)

    def watch_heard(self, times: Mapping[str, float]) -> None:
        """Set when each resource's watch was last heard, in seconds since 1970."""
        for resource, timestamp_s in times.items():
            self.watch_last_event.labels(resource).set(timestamp_s)

    def status_written(self, before: FineTune, observed: Observed, status: Mapping[str, Any]) -> None:
        """Count what a status says that the one before did not."""
        if has_just_ended(before, status):
            self.finished.labels(result_of(status)).inc()
        if (seconds := waited_s(before, observed, status)) is not None:
            self.wait_seconds.observe(seconds)


def waited_s(before: FineTune, observed: Observed, status: Mapping[str, Any]) -> float | None:
    """Seconds from a run's creation to its first pod that trains; None unless the status is the first to name one.

    Not to a start of a Job: the preflight's comes before the wait for GPUs, and the training's is often known only
    after its pod.
    """
    created = before.created_at
    made = min((pod.created_at for pod in observed.pods if pod.stage == TRAIN), default=None)
    if before.status.get("podName") or not status.get("podName") or made is None or created is None:
        return None
    return max(0.0, (made - created).total_seconds())


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
