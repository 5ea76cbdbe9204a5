"""Kueue's kind without Kueue: its definition is served, and tests write what its controller would."""

from collections.abc import Iterator, Mapping
from typing import Any

import pytest
from tests.component.documents import Object
from tests.component.patience import eventually
from tests.component.stage import Stage, gone, now

DEFINITIONS = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions"
GROUP = "/apis/kueue.x-k8s.io"
WORKLOADS = "workloads.kueue.x-k8s.io"
QUEUE = {"kueue.x-k8s.io/queue-name": "gpus"}
PREEMPTED = "Preempted to accommodate a workload (UID: 1, JobUID: 2) due to prioritization in the ClusterQueue"


@pytest.fixture
def kueue(stage: Stage) -> Iterator[None]:
    """Kueue's kind as far as the operator can see: served, and without a controller."""
    kept = {"type": "object", "x-kubernetes-preserve-unknown-fields": True}
    version = {
        "name": "v1beta2",
        "served": True,
        "storage": True,
        "schema": {"openAPIV3Schema": kept},
        "subresources": {"status": {}},
    }
    names = {"plural": "workloads", "singular": "workload", "kind": "Workload", "listKind": "WorkloadList"}
    spec = {"group": "kueue.x-k8s.io", "scope": "Namespaced", "names": names, "versions": [version]}
    # What the API server wants of definitions in groups of the Kubernetes project.
    approved = {"api-approved.kubernetes.io": "unapproved, for a test"}
    stage.api.post(DEFINITIONS, {"metadata": {"name": WORKLOADS, "annotations": approved}, "spec": spec})
    eventually(lambda: stage.api.exists(workload_path(stage)), "Workloads are served")
    yield
    # Another operator of this session must not take the cluster for one with Kueue.
    for operator in stage.operators:
        operator.kill()
    stage.api.delete(f"{DEFINITIONS}/{WORKLOADS}")
    eventually(lambda: gone(stage.api, workload_path(stage)), "Workloads are served no more")
    eventually(lambda: gone(stage.api, GROUP), "the API server tells of no Kueue any more")


def workload_path(stage: Stage, name: str = "") -> str:
    """Path of one Workload, or of all in the namespace."""
    path = f"/apis/kueue.x-k8s.io/v1beta2/namespaces/{stage.namespace}/workloads"
    return f"{path}/{name}" if name else path


def make_workload(stage: Stage, name: str, job: Object) -> None:
    """What Kueue makes for a Job in a queue."""
    owner = {"apiVersion": "batch/v1", "kind": "Job", "name": job["metadata"]["name"], "uid": job["metadata"]["uid"]}
    workload = {
        "apiVersion": "kueue.x-k8s.io/v1beta2",
        "kind": "Workload",
        "metadata": {"name": name, "ownerReferences": [{**owner, "controller": True}]},
        "spec": {"active": True, "podSets": [{"name": "main", "count": 1, "template": job["spec"]["template"]}]},
    }
    stage.api.post(workload_path(stage), workload)


def admit(stage: Stage, name: str, job: Object, *, admitted: bool) -> None:
    """Kueue gives a Job its quota and lets it run, or takes both away."""
    reason, message = ("QuotaReserved", "Quota reserved in ClusterQueue gpus") if admitted else ("Pending", "It waits")
    _say(stage, name, ("QuotaReserved", admitted, reason, message))
    _suspend(stage, job, suspended=not admitted)


def preempt(stage: Stage, name: str, job: Object, *, stopped: bool) -> None:
    """Kueue takes the quota back for a more important Job: it is free, and asked for again, when the pods `stopped`."""
    quota = (False, "Pending", PREEMPTED) if stopped else (True, "QuotaReserved", "Quota reserved in ClusterQueue gpus")
    _say(stage, name, ("Evicted", True, "Preempted", PREEMPTED), ("QuotaReserved", *quota))
    _suspend(stage, job, suspended=True)


def _say(stage: Stage, name: str, *conditions: tuple[str, bool, str, str]) -> None:
    """Write a Workload's conditions: type, status, reason and message of each."""
    written = [
        {"type": kind, "status": str(status), "reason": reason, "message": message, "lastTransitionTime": now()}
        for kind, status, reason, message in conditions
    ]
    stage.api.patch(f"{workload_path(stage, name)}/status", {"status": {"conditions": written}})


def _suspend(stage: Stage, job: Object, *, suspended: bool) -> None:
    stage.api.patch(stage.path("jobs", job["metadata"]["name"]), {"spec": {"suspend": suspended}})


class ServedObjects:
    """Jobs and Workloads of a stage, as `Queues` of the cluster in memory reads and writes them."""

    def __init__(self, stage: Stage) -> None:
        self._stage = stage

    def all(self, plural: str) -> Iterator[Object]:
        """All there are now. A Workload has a status here before its first one is written."""
        items: list[Object] = self._stage.api.get(self._path(plural))["items"]
        return iter([{"status": {}, **item} for item in items])

    def handle(self, method: str, path: str, body: Mapping[str, Any] | None = None) -> Object:
        """Create or delete one. Raises `ApiError` for a refusal."""
        if method == "DELETE":
            return self._stage.api.delete(path)
        assert method == "POST"
        head = {"apiVersion": "kueue.x-k8s.io/v1beta2", "kind": "Workload"}
        return {"status": {}, **self._stage.api.post(path, {**head, **(body or {})})}

    def write(self, document: Object, plural: str) -> Object:
        """Store what is changed of its spec and its status; `ApiError` 409 where others changed it meanwhile."""
        path = self._path(plural, document["metadata"]["name"])
        answer = {"status": {}, **self._stage.api.get(path)}
        lock = {"metadata": {"resourceVersion": document["metadata"]["resourceVersion"]}}
        for part, under in (("spec", ""), ("status", "/status")):
            was, wanted = answer[part], document[part]
            changed = {key: wanted.get(key) for key in was.keys() | wanted.keys() if was.get(key) != wanted.get(key)}
            if changed:
                answer = {"status": {}, **self._stage.api.patch(path + under, {**lock, part: changed})}
        return answer

    def _path(self, plural: str, name: str = "") -> str:
        return workload_path(self._stage, name) if plural == "workloads" else self._stage.path(plural, name)
