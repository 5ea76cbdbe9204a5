"""The operator and Kueue's Workloads on a real API server: their definition comes and goes, and Kueue is played."""

import uuid
from collections.abc import Iterator
from typing import Any

import pytest
from tests.component.documents import finetune, succeeded
from tests.component.patience import eventually
from tests.component.stage import Stage, gone, now
from tests.unit.reports import make_report

from lora_operator.controller.checks import RIGHTS
from lora_operator.model.names import PREFLIGHT, TRAIN

Object = dict[str, Any]
DEFINITION = "workloads.kueue.x-k8s.io"
GROUP = "/apis/kueue.x-k8s.io"
PATH = f"/apis/apiextensions.k8s.io/v1/customresourcedefinitions/{DEFINITION}"


class Workloads:
    """The definition of Kueue's Workloads, with nobody behind it."""

    def __init__(self, stage: Stage) -> None:
        self.api = stage.api
        self.prefix = f"/apis/kueue.x-k8s.io/v1beta1/namespaces/{stage.namespace}/workloads"

    def install(self) -> None:
        """As an old Kueue does, which serves v1beta1 alone; they are served a moment later."""
        schema = {"type": "object", "x-kubernetes-preserve-unknown-fields": True}
        version = {
            "name": "v1beta1",
            "served": True,
            "storage": True,
            "schema": {"openAPIV3Schema": schema},
            "subresources": {"status": {}},
        }
        spec = {
            "group": "kueue.x-k8s.io",
            "scope": "Namespaced",
            "names": {"kind": "Workload", "plural": "workloads", "singular": "workload", "listKind": "WorkloadList"},
            "versions": [version],
        }
        self.api.post(PATH.rpartition("/")[0], {"metadata": {"name": DEFINITION}, "spec": spec})
        eventually(lambda: not gone(self.api, self.prefix), "Workloads are served")

    def remove(self) -> None:
        """With all Workloads."""
        if not gone(self.api, PATH):
            self.api.delete(PATH)
        # Or the operator of the next test would be told that there is Kueue.
        eventually(lambda: gone(self.api, GROUP), "the API server tells of no Kueue any more")

    def make(self, job: Object) -> str:
        """What Kueue does about a Job with a queue; returns the Workload's name."""
        reference = {
            "apiVersion": "batch/v1",
            "kind": "Job",
            "name": job["metadata"]["name"],
            "uid": job["metadata"]["uid"],
            "controller": True,
        }
        name = f"job-{uuid.uuid4().hex[:8]}"
        template = {"metadata": {"labels": job["spec"]["template"]["metadata"]["labels"]}}
        manifest = {
            "apiVersion": "kueue.x-k8s.io/v1beta1",
            "kind": "Workload",
            "metadata": {"name": name, "ownerReferences": [reference]},
            "spec": {"active": True, "podSets": [{"name": "main", "template": template}]},
        }
        self.api.post(self.prefix, manifest)
        return name

    def say(self, name: str, status: str, reason: str, message: str) -> None:
        """Write the condition QuotaReserved."""
        condition = {
            "type": "QuotaReserved",
            "status": status,
            "reason": reason,
            "message": message,
            "lastTransitionTime": now(),
        }
        self.api.patch(f"{self.prefix}/{name}/status", {"status": {"conditions": [condition]}})

    def spec(self, name: str) -> Object:
        """The spec as it is now."""
        spec: Object = self.api.get(f"{self.prefix}/{name}")["spec"]
        return spec


@pytest.fixture
def workloads(stage: Stage) -> Iterator[Workloads]:
    """Not installed yet; afterwards removed."""
    workloads = Workloads(stage)
    yield workloads
    workloads.remove()


def test_kueue_that_is_installed_later_ends_the_process_and_is_followed_by_the_next(
    stage: Stage, workloads: Workloads
) -> None:
    """Until then a run in a queue says that there is no Kueue; afterwards it speaks, is held, and is let go by it."""
    first = stage.start(resyncIntervalSeconds=1)
    manifest = finetune()
    manifest["metadata"]["labels"] = {"kueue.x-k8s.io/queue-name": "gpus"}
    stage.api.post(stage.path("lorafinetunes"), manifest)
    quota = stage.wait_condition("QuotaReserved", status="False", reason="Queued")
    assert "this cluster has no Kueue" in quota["message"]
    job = stage.wait_job()
    assert job["spec"]["suspend"] is True

    workloads.install()
    eventually(lambda: first.process.poll() is not None, "the operator ends")
    assert first.process.returncode != 0
    assert "Kueue was installed, removed or exchanged: a restart takes note of it" in first.text()

    stage.start()
    name = workloads.make(job)
    workloads.say(name, "False", "Pending", "insufficient unused quota for nvidia.com/gpu, 1 more needed")
    eventually(
        lambda: "1 more needed" in stage.condition("QuotaReserved").get("message", ""), "Kueue's words are shown"
    )
    assert stage.condition("Suspended")["reason"] == "Queued"
    stage.change(suspend=True)
    stage.wait_condition("Suspended", status="True", reason="SuspendedByUser")
    eventually(lambda: workloads.spec(name)["active"] is False, "the Workload is deactivated")
    stage.change(suspend=False)
    eventually(lambda: workloads.spec(name)["active"] is True, "the Workload is active again")
    assert stage.wait_job()["spec"]["suspend"] is True
    workloads.say(name, "True", "QuotaReserved", "Quota reserved in ClusterQueue finetuning")
    stage.api.patch(stage.path("jobs", job["metadata"]["name"]), {"spec": {"suspend": False}})
    stage.wait_condition("QuotaReserved", status="True", reason="QuotaReserved")
    stage.wait_condition("Suspended", status="False")
    stage.run_pod(stage.wait_pod(job))
    stage.wait_condition("PodsReady", status="True")


def test_a_preflight_waits_in_the_queue_and_then_the_training_does(stage: Stage, workloads: Workloads) -> None:
    """Each Job has a Workload of its own: what the queue gave the first is given back before the second asks."""
    workloads.install()
    stage.start()
    manifest = finetune(preflight="Run")
    manifest["metadata"]["labels"] = {"kueue.x-k8s.io/queue-name": "gpus"}
    stage.api.post(stage.path("lorafinetunes"), manifest)
    _wait_and_work(stage, workloads, PREFLIGHT, make_report().to_message())
    _wait_and_work(stage, workloads, TRAIN, succeeded())
    stage.wait_condition("Complete", status="True")


def _wait_and_work(stage: Stage, workloads: Workloads, role: str, said: str) -> None:
    """The Job of a stage waits in its queue, is let go, and ends well."""
    job = stage.wait_job(stage=role)
    assert job["spec"]["suspend"] is True
    workload = workloads.make(job)
    workloads.say(workload, "False", "Pending", f"insufficient unused quota for the {role}")
    eventually(lambda: role in stage.condition("QuotaReserved").get("message", ""), "it waits for quota")
    assert stage.condition("Complete")["reason"] == "Queued"
    workloads.say(workload, "True", "QuotaReserved", "Quota reserved in ClusterQueue finetuning")
    stage.api.patch(stage.path("jobs", job["metadata"]["name"]), {"spec": {"suspend": False}})
    stage.wait_condition("Suspended", status="False")
    pod = stage.wait_pod(job)
    stage.run_pod(pod)
    stage.end_pod(pod, 0, said)


def test_a_missing_right_on_workloads_is_named_only_where_there_are_any(stage: Stage, workloads: Workloads) -> None:
    """A cluster without Kueue needs none of them."""
    rights = tuple(right for right in RIGHTS if right.resource.plural != "workloads")
    stage.start(rights=rights).stop()
    workloads.install()
    refused = stage.start(rights=rights, wait=False)
    eventually(lambda: refused.process.poll() is not None, "the operator ends")
    missing = "may not list workloads.kueue.x-k8s.io, watch workloads.kueue.x-k8s.io, patch workloads.kueue.x-k8s.io"
    assert missing in refused.text()
