"""A kubelet that dies and comes back leaves runs alone: containers live on without it."""

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


@pytest.fixture(scope="module")
def operator(cluster: Client) -> Iterator[None]:
    """The chart with a trainer that follows scripts; afterwards uninstalled, or as it was."""
    of_the_demo = demo_run.RELEASE in addons.releases(cluster)
    references = cluster.images("operator", "test-trainer")
    images = Images(operator=references["operator"], trainer=references["test-trainer"], hub=None)
    demo_run.install_chart(cluster, images, "", *_SETTINGS, timeout_s=180)
    yield
    command = "rollback" if of_the_demo else "uninstall"
    cluster.helm(command, demo_run.RELEASE, f"--namespace={demo_run.RELEASE_NAMESPACE}", "--wait")


@pytest.mark.fault("B8")
def test_a_kubelet_that_is_killed_and_started_again_costs_a_run_nothing(
    cluster: Client, namespace: str, operator: None
) -> None:
    """The same pod, its container not restarted, no retry counted; the run ends as it would have."""
    if client.uses_own_cluster():
        pytest.fail("This test kills a kubelet: run it without CLUSTER=current.")
    cluster.apply(_script(), _claim(), _finetune(), namespace=namespace)
    pod = eventually(lambda: _training_pod(cluster, namespace), "the run trains", deadline_s=300)
    before = _kubelet()
    assert before is not None
    os.kill(before, signal.SIGKILL)
    eventually(lambda: _kubelet() not in (None, before), "the kubelet is started again", deadline_s=300)
    name = pod["metadata"]["name"]
    eventually(lambda: _tell_end(cluster, namespace, name), "the new kubelet reaches the container", deadline_s=300)
    cluster.wait("lft/alone", "condition=Complete", namespace=namespace, timeout_s=300)
    status = cluster.get("lorafinetune", "alone", f"--namespace={namespace}")["status"]
    assert (status["podName"], status["attempt"], status.get("retries", {})) == (name, 1, {})
    ended = cluster.get("pod", name, f"--namespace={namespace}")
    assert ended["metadata"]["uid"] == pod["metadata"]["uid"]
    assert ended["status"]["containerStatuses"][0]["restartCount"] == 0


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


def _script() -> Object:
    data = {"script.json": json.dumps(_SCRIPT)}
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "script"}, "data": data}


def _claim() -> Object:
    spec = {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "16Mi"}}}
    return {"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": {"name": "adapters"}, "spec": spec}


def _finetune() -> Object:
    return {
        "apiVersion": "lora-operator.io/v1alpha1",
        "kind": "LoRAFineTune",
        "metadata": {"name": "alone"},
        "spec": {
            "model": {"uri": "hf://acme/base"},
            "dataset": {"uri": "configmap://script/script.json"},
            "output": {"uri": "pvc://adapters/alone"},
            "resources": {"gpus": 0, "cpu": "50m", "memory": "64Mi"},
        },
    }
