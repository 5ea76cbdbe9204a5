"""Containers live on: when a kubelet dies and comes back, and when their pod is gone and another one follows."""

import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.component.patience import eventually

from demoflow import run as demo_run
from demoflow.cluster import Images
from localcluster import addons, client, lifecycle, processes, settings
from localcluster.client import Client, CommandError

Object = dict[str, Any]
_SETTINGS = ("--set=config.progressIntervalSeconds=1", "--set=config.pendingCheckSeconds=1")
_SCRIPT = [
    {"progress": {"phase": "Training", "step": 3, "total_steps": 10}},
    {"wait_for": "end"},
    {"succeed": {"steps": 10}},
]
# By start of the run: the one that lives on, one that finds the folder locked, and one that waits for it.
_LOCKED = [
    [{"lock": 60}, {"wait_for": "end"}, {"exit": 0}],
    [{"lock": 2}],
    [{"lock": 120}, {"succeed": {"steps": 10}}],
]


@pytest.fixture(scope="module")
def operator(cluster: Client) -> Iterator[None]:
    """The chart with a trainer that follows scripts; afterwards uninstalled, or as it was."""
    of_the_demo = demo_run.RELEASE in addons.releases(cluster)
    references = cluster.images("operator", "test-trainer")
    images = Images(operator=references["operator"], trainer=references["test-trainer"], hub=None)
    demo_run.install_chart(cluster, images, "", *_SETTINGS, timeout_s=900)
    yield
    command = "rollback" if of_the_demo else "uninstall"
    cluster.helm(command, demo_run.RELEASE, f"--namespace={demo_run.RELEASE_NAMESPACE}", "--wait")


def test_a_kubelet_that_is_killed_and_started_again_costs_a_run_nothing(
    cluster: Client, namespace: str, operator: None
) -> None:
    """The same pod, its container not restarted, no retry counted; the run ends as it would have."""
    if client.uses_own_cluster():
        pytest.fail("This test kills a kubelet: run it without CLUSTER=current.")
    cluster.apply(_script(_SCRIPT), _claim(), _finetune("alone"), namespace=namespace)
    pod = eventually(lambda: _training_pod(cluster, namespace), "the run trains", deadline_s=900)
    before = _kubelet()
    assert before is not None
    os.kill(before, signal.SIGKILL)
    eventually(lambda: _kubelet() not in (None, before), "the kubelet is started again", deadline_s=900)
    name = pod["metadata"]["name"]
    eventually(lambda: _tell_end(cluster, namespace, name), "the new kubelet reaches the container", deadline_s=900)
    cluster.wait("lft/alone", "condition=Complete", namespace=namespace, timeout_s=900)
    status = cluster.get("lorafinetune", "alone", f"--namespace={namespace}")["status"]
    assert (status["podName"], status["attempt"], status.get("retries", {})) == (name, 1, {})
    ended = cluster.get("pod", name, f"--namespace={namespace}")
    assert ended["metadata"]["uid"] == pod["metadata"]["uid"]
    assert ended["status"]["containerStatuses"][0]["restartCount"] == 0


def test_a_trainer_whose_folder_another_still_writes_to_is_tried_again_until_it_may(
    cluster: Client, namespace: str, operator: None
) -> None:
    """A container that belongs to no Job any more holds the lock on the claim; the run's own pod ends with 75."""
    cluster.apply(_script(_LOCKED), _claim(), _finetune("locked", suspend=True), namespace=namespace)
    job = eventually(lambda: _job(cluster, namespace, "locked"), "the run has its Job")
    cluster.apply(_left_over(job), namespace=namespace)
    cluster.wait("pod/left-over", "jsonpath={.status.phase}=Running", namespace=namespace, timeout_s=900)
    cluster.kubectl(
        "patch", "lft/locked", "--type=merge", '--patch={"spec":{"suspend":false}}', f"--namespace={namespace}"
    )
    said = eventually(lambda: _told(cluster, namespace, "locked"), "the run is tried again", deadline_s=900)
    assert "OutputLocked" in said
    assert "on left-over" in said
    assert _tell_end(cluster, namespace, "left-over")
    cluster.wait("lft/locked", "condition=Complete", namespace=namespace, timeout_s=900)
    status = cluster.get("lorafinetune", "locked", f"--namespace={namespace}")["status"]
    assert status["attempt"] == 1
    assert status["retries"]["used"] >= 1


def _job(cluster: Client, namespace: str, name: str) -> Object | None:
    jobs: list[Object] = cluster.get("jobs", f"--namespace={namespace}")["items"]
    return next((job for job in jobs if job["metadata"]["name"].startswith(f"{name}-")), None)


def _left_over(job: Object) -> Object:
    """A pod as the Job's own, which nobody looks after: the container of one that was deleted by force."""
    template = job["spec"]["template"]
    annotations = {**template["metadata"].get("annotations", {}), "batch.kubernetes.io/job-completion-index": "0"}
    metadata = {"name": "left-over", "annotations": annotations}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": template["spec"]}


def _told(cluster: Client, namespace: str, name: str) -> str | None:
    """What the Event says of a retry; the state is another one once the next pod is there."""
    events: list[Object] = cluster.get("events", f"--namespace={namespace}")["items"]
    found = (event for event in events if (event["involvedObject"]["name"], event["reason"]) == (name, "Restarting"))
    return next((str(event["message"]) for event in found), None)


def _kubelet() -> int | None:
    """Process id of the kubelet as this process sees it, which is not in the cluster's namespaces; None while there is
    none."""
    supervisor = processes.load(lifecycle.supervisor_file(settings.places(settings.DEFAULT_NAME)))
    assert supervisor is not None
    within = [inner for outer in processes.children(supervisor.pid) for inner in processes.children(outer.pid)]
    components = [component.pid for parent in within for component in processes.children(parent.pid)]
    return next((pid for pid in components if _command(pid) == "kubelet"), None)


def _tell_end(cluster: Client, namespace: str, pod: str) -> bool:
    try:
        cluster.kubectl("exec", pod, f"--namespace={namespace}", "--", "touch", "/tmp/end")  # noqa: S108
    except CommandError:
        return False
    return True


def _command(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/comm").read_text().strip()
    except OSError:
        return ""


def _training_pod(cluster: Client, namespace: str) -> Object | None:
    status = cluster.get("lorafinetune", "alone", f"--namespace={namespace}").get("status", {})
    trains = any(c["type"] == "Complete" and c["reason"] == "Training" for c in status.get("conditions", []))
    return cluster.get("pod", status["podName"], f"--namespace={namespace}") if trains else None


def _script(script: list[Any]) -> Object:
    data = {"script.json": json.dumps(script)}
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "script"}, "data": data}


def _claim() -> Object:
    spec = {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "16Mi"}}}
    return {"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": {"name": "adapters"}, "spec": spec}


def _finetune(name: str, **spec: Any) -> Object:
    return {
        "apiVersion": "lora-operator.io/v1alpha1",
        "kind": "LoRAFineTune",
        "metadata": {"name": name},
        "spec": {
            "model": {"uri": "hf://acme/base"},
            "dataset": {"uri": "configmap://script/script.json"},
            "output": {"uri": f"pvc://adapters/{name}"},
            "preflight": "Skip",
            "resources": {"gpus": 0, "cpu": "50m", "memory": "64Mi"},
            **spec,
        },
    }
