"""Kueue's kind without Kueue: its definition is served, and tests write what its controller would."""

from collections.abc import Iterator

import pytest
from tests.component.documents import Object
from tests.component.patience import eventually
from tests.component.stage import Stage, gone, now

DEFINITIONS = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions"
WORKLOADS = "workloads.kueue.x-k8s.io"
QUEUE = {"kueue.x-k8s.io/queue-name": "gpus"}


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
    condition = {"type": "QuotaReserved", "status": str(admitted), "reason": reason, "message": message}
    status = {"conditions": [{**condition, "lastTransitionTime": now()}]}
    stage.api.patch(f"{workload_path(stage, name)}/status", {"status": status})
    stage.api.patch(stage.path("jobs", job["metadata"]["name"]), {"spec": {"suspend": not admitted}})
