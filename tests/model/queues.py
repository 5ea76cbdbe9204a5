"""Kueue, played: Workloads for Jobs in a queue, quota for so many of them, preemption. It acts when it is told to.

It does what a real one does in `tests/cluster/test_kueue.py`: a Job runs while its Workload has quota and is suspended
otherwise, whatever anybody else does to the Job.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from typing import Any, Protocol

from tests.model.life import Chance
from tests.model.objects import (
    Object,
    condition_of,
    controller_reference,
    controller_uid,
    ending_of,
    with_condition,
)
from tests.model.server import labels_of

from lora_operator.model.names import QUEUE_LABEL, SUSPEND_ANNOTATION

GROUP = "/apis/kueue.x-k8s.io"
DISCOVERY = {
    GROUP: {"versions": [{"version": "v1beta2"}]},
    f"{GROUP}/v1beta2": {"resources": [{"name": "workloads"}]},
}
_SHORT = "couldn't assign flavors to pod set main: insufficient unused quota for nvidia.com/gpu in flavor any-node"
_EVICTIONS = (
    ("Preempted", "Preempted to accommodate a workload (UID: 1, JobUID: 2) due to prioritization in the ClusterQueue"),
    ("PodsReadyTimeout", "Exceeded the PodsReady timeout team-a/tone"),
)


class Storage(Protocol):
    """What Kueue's controller asks of an API server, in memory or real."""

    def all(self, plural: str) -> Iterator[Object]:
        """The stored documents of a kind; each has a status."""
        ...

    def handle(self, method: str, path: str, body: Mapping[str, Any] | None = None) -> Object:
        """Create or delete one."""
        ...

    def write(self, document: Object, plural: str) -> Object:
        """Store a changed copy; as it is stored."""
        ...


class Queues:
    """All LocalQueues of the cluster, which share a quota for so many Workloads."""

    def __init__(self, server: Storage, now: Callable[[], datetime]) -> None:
        self._server = server
        self._now = now
        self.quota = 1

    # -- what befalls Workloads

    def share(self, chance: Chance) -> None:
        """Others of the cohort take quota, or give it back."""
        self.quota = chance.number(0, 2)

    def evict(self, chance: Chance) -> None:
        """A Workload loses its quota: its Job is suspended, and waits again once the pods have stopped."""
        for workload in _some(chance, [w for w in self._workloads() if _has_quota(w)]):
            reason, message = chance.pick(_EVICTIONS)
            self._state(workload, "Evicted", "True", reason, message)

    def deactivate(self, chance: Chance) -> None:
        """An administrator takes a Workload that no user holds out of its queue, or puts it back."""
        for workload in _some(chance, [w for w in self._workloads() if not is_held(w)]):
            self._activate(workload, active=not workload["spec"]["active"])

    def delete(self, chance: Chance) -> None:
        """Somebody deletes a Workload: Kueue stops its Job, and makes another."""
        for workload in _some(chance, list(self._workloads())):
            self._server.handle("DELETE", _path(workload, workload["metadata"]["name"]))

    def open(self) -> None:
        """There is quota for all, and no administrator holds anything."""
        self.quota = 1000
        for workload in self._workloads():
            if not is_held(workload):
                self._activate(workload, active=True)

    # -- the controller

    def sync(self) -> None:
        """One look at each Job in a queue; the first that wait get what is free."""
        for job in self._server.all("jobs"):
            if QUEUE_LABEL in labels_of(job) and "deletionTimestamp" not in job["metadata"]:
                workload = workload_of(job, self._server.all("workloads"))
                if workload is None:
                    self._stop(job)
                    self._record(job)
                else:
                    self._follow(job, workload)

    def _follow(self, job: Object, workload: Object) -> None:
        if ending_of(job):
            self._state(workload, "Finished", "True", "JobFinished", "Job finished")
            return
        if not workload["spec"]["active"] and not _holds(workload, "Evicted"):
            workload = self._state(workload, "Evicted", "True", "Deactivated", "The workload is deactivated")
        if _has_quota(workload):
            self._suspend(job, suspend=False)
            return
        self._stop(job)
        if not job["status"].get("active"):  # those that are stopping may run yet
            self._queue(workload)

    def _queue(self, workload: Object) -> None:
        name = workload["metadata"]["name"]
        taken = sum(_holds(w, "QuotaReserved") and w["metadata"]["name"] != name for w in self._workloads())
        if not workload["spec"]["active"] or taken >= self.quota:
            self._state(workload, "QuotaReserved", "False", "Pending", _SHORT)
            return
        if _holds(workload, "Evicted"):
            workload = self._state(workload, "Evicted", "False", "QuotaReserved", "Previously: evicted")
        self._state(workload, "QuotaReserved", "True", "QuotaReserved", "Quota reserved in ClusterQueue finetuning")

    def _workloads(self) -> Iterator[Object]:
        """Those whose Job goes on."""
        return (workload for workload in self._server.all("workloads") if not _holds(workload, "Finished"))

    def _record(self, job: Object) -> None:
        metadata, spec = job["metadata"], job["spec"]
        name = {
            "name": f"job-{metadata['name']}-{metadata['uid'][-4:]}",
            "ownerReferences": [controller_reference(job)],
        }
        pod_set = {"name": "main", "count": spec["parallelism"], "template": spec["template"]}
        workload = {"metadata": name, "spec": {"active": True, "podSets": [pod_set]}, "status": {}}
        self._server.handle("POST", _path(job), workload)

    def _stop(self, job: Object) -> None:
        """Kueue takes the Job's start away, too, unless it has ended meanwhile."""
        job = self._suspend(job, suspend=True)
        if "startTime" in job["status"] and not ending_of(job):
            status = {key: value for key, value in job["status"].items() if key != "startTime"}
            self._server.write({**job, "status": status}, "jobs")

    def _suspend(self, job: Object, *, suspend: bool) -> Object:
        return self._server.write(_with(job, suspend=suspend), "jobs")

    def _activate(self, workload: Object, *, active: bool) -> None:
        self._server.write(_with(workload, active=active), "workloads")

    def _state(self, workload: Object, kind: str, value: str, reason: str, message: str) -> Object:
        known = condition_of(workload["status"], kind)
        if (known.get("status"), known.get("reason")) == (value, reason):
            return workload
        status = with_condition(workload["status"], kind, value, reason, self._now(), message=message)
        return self._server.write({**workload, "status": status}, "workloads")


def workload_of(job: Mapping[str, Any], workloads: Iterable[Object]) -> Object | None:
    """Kueue's record of a Job."""
    return next((w for w in workloads if controller_uid(w) == job["metadata"]["uid"]), None)


def is_held(workload: Object) -> bool:
    """Whether the operator has marked it as held by its user."""
    return (workload["metadata"].get("annotations") or {}).get(SUSPEND_ANNOTATION) == "true"


def _has_quota(workload: Object) -> bool:
    return _holds(workload, "QuotaReserved") and not _holds(workload, "Evicted")


def _holds(workload: Object, kind: str) -> bool:
    return condition_of(workload["status"], kind).get("status") == "True"


def _with(document: Object, **spec: bool) -> Object:
    return {**document, "spec": {**document["spec"], **spec}}


def _path(document: Object, name: str = "") -> str:
    path = f"{GROUP}/v1beta2/namespaces/{document['metadata']['namespace']}/workloads"
    return f"{path}/{name}" if name else path


def _some(chance: Chance, workloads: Sequence[Object]) -> list[Object]:
    """One of them, or none where there is none."""
    return [chance.pick(workloads)] if workloads else []


QUEUE_ACTS = (Queues.share, Queues.evict, Queues.evict, Queues.deactivate, Queues.delete)
