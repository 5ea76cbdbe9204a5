"""A run with an API server in memory, for tests of single turns."""

from collections.abc import Iterable, Sequence
from typing import Any

from prometheus_client import CollectorRegistry
from tests.unit.builders import (
    CONFIG,
    NAME,
    NAMESPACE,
    NOW,
    condition_object,
    make_job_object,
    make_manifest,
    make_pod_object,
)

from lora_operator.cluster.api import FINETUNES, JOBS, PODS, Api, ApiError
from lora_operator.cluster.child_events import ChildEvents
from lora_operator.cluster.kueue import Kueue
from lora_operator.cluster.post_events import EventPoster
from lora_operator.cluster.progress_poll import ProgressPoller
from lora_operator.cluster.store import Key, Stores
from lora_operator.controller.debounce import Debounce
from lora_operator.controller.metrics import Metrics
from lora_operator.controller.reconcile import Reconciler
from lora_operator.controller.refusals import Refusals
from lora_operator.model.names import TRAIN

KEY = Key(NAMESPACE, NAME)
Object = dict[str, Any]


class Server(Api):
    """Stores the resource and a Job, and answers patches of that as the test says."""

    def __init__(self, manifest: Object) -> None:
        self.finetune = manifest
        self.job: Object | None = None
        self.patched: Object | ApiError = ApiError(500, "InternalError", "no answer was put down")
        self.refused = ""
        self.conflict = False
        self.denied: ApiError | None = None  # what a webhook says to a Job
        self.unreadable: Exception | None = None
        self.unknown = ""  # a field of the status that its definition lacks
        self.pods: list[Object] = []  # those of the Job that is there, in no watch of ours
        self.asked: list[str] = []

    async def read(self, path: str, query: Any) -> tuple[dict[str, Any], int]:
        """The same."""
        return await self.request("GET", path, query), 1

    async def request(
        self, method: str, path: str, query: Any = None, body: Any = None, content_type: str = ""
    ) -> dict[str, Any]:
        """What the API server would answer."""
        self.asked.append(f"{method} {path}")
        if method == "PUT":
            version = str(int(self.finetune["metadata"].get("resourceVersion", "1")) + 1)
            metadata = {**self.finetune["metadata"], "resourceVersion": version}
            status = {key: part for key, part in body["status"].items() if key != self.unknown}
            self.finetune = {**self.finetune, "metadata": metadata, "status": status}
            return self.finetune
        if method == "PATCH":
            if isinstance(self.patched, ApiError):
                raise self.patched
            self.job = self.patched
            return self.patched
        if path == FINETUNES.path(NAMESPACE, NAME):
            if self.unreadable is not None:
                raise self.unreadable
            return self.finetune
        if method == "POST":
            if self.denied is not None and path.endswith(JOBS.plural):
                raise self.denied
            if self.refused and path.endswith(self.refused):
                raise ApiError(403, "Forbidden", f"{self.refused} is forbidden: exceeded quota")
            if self.conflict:
                raise ApiError(409, "AlreadyExists", "jobs already exists")
            return {**body, "metadata": {**body["metadata"], "uid": "new", "resourceVersion": "90"}}
        if path.startswith(JOBS.path(NAMESPACE) + "/"):
            if self.job is None or not path.endswith("/" + self.job["metadata"]["name"]):
                raise ApiError(404, "NotFound", "jobs not found")
            return self.job
        wanted = str((query or {}).get("labelSelector", "")) if path == PODS.path(NAMESPACE) else ""
        of_the_job = self.job is not None and self.job["metadata"]["uid"] in wanted
        pods = self.pods if of_the_job else []
        return {"items": pods, "metadata": {"resourceVersion": "81" if pods else "10"}}

    def patches(self) -> int:
        """How often a Job was to be changed."""
        return sum(line.startswith("PATCH") for line in self.asked)


class Poller(ProgressPoller):
    """Asks so many pods, and notes which it is to forget."""

    number = 1
    forgotten: Sequence[str] = ()

    def forget(self, uids: Iterable[str]) -> None:
        self.forgotten = [*self.forgotten, *uids]

    def __len__(self) -> int:
        return self.number


class World:
    """A run with its Job and its pod, and the reconciler that looks after it."""

    def __init__(self, *, spec: Object | None = None, status: Object | None = None, stage: str = TRAIN) -> None:
        manifest = make_manifest(spec=spec, status=status)
        self.registry = CollectorRegistry()
        self.now_s = 0.0
        self.woken: list[Key] = []
        self.poller = Poller(
            interval_s=lambda _: 15, timeout_s=1, most_per_s=18, wake=lambda _: None, clock=lambda: 0.0
        )
        self.server, self.stores, self.kueue = Server(manifest), Stores(), Kueue()
        self.stores.finetunes.put(manifest)
        self.tell_job(stage=stage)
        self.reconciler = Reconciler(
            api=self.server,
            stores=self.stores,
            kueue=self.kueue,
            config=CONFIG,
            poller=self.poller,
            events=ChildEvents(self.server, interval_s=10, wake=self.woken.append),
            poster=EventPoster(self.server, now=lambda: NOW, instance="test"),
            count=Metrics(self.registry).status_written,
            now=lambda: NOW,
            refusals=Refusals(lambda: self.now_s, pause_s=60, long_pause_s=300),
            debounce=Debounce(lambda: self.now_s, CONFIG.status_delay_s),
        )

    def tell_job(self, version: str = "20", **changes: Any) -> Object:
        """The watch brings the Job."""
        job = make_job_object(**changes)
        job["metadata"]["resourceVersion"] = version
        self.stores.jobs.put(job)
        self.server.job = job
        return job

    def tell_pod(self, message: str, version: str) -> None:
        """The watch brings the pod, which has no node, and what the scheduler says of that."""
        scheduled = condition_object("PodScheduled", "False", reason="Unschedulable", message=message)
        pod = make_pod_object(node="", conditions=(scheduled,))
        pod["metadata"]["resourceVersion"] = version
        self.stores.pods.put(pod)

    def condition(self, kind: str) -> Object:
        """As it is stored."""
        conditions: list[Object] = self.server.finetune["status"]["conditions"]
        return next(c for c in conditions if c["type"] == kind)

    async def turn(self) -> float | None:
        """One turn; the seconds until the next look."""
        return await self.reconciler.reconcile(KEY)


def pod_at(version: str, **changes: Any) -> Object:
    """A pod as the API server has it at that version."""
    pod = make_pod_object(**changes)
    pod["metadata"]["resourceVersion"] = version
    return pod
