"""Two pods that train one adapter: they find each other, share the steps, and go on together when one is lost."""

from typing import Any

from tests.e2e.conftest import Installed
from tests.e2e.support import PATIENCE_S, SLOW, finetune, long_rows, pods, rows, verdict, wait_end, wait_reason

from localcluster.client import Client

SHARED = {
    "apiVersion": "v1",
    "kind": "PersistentVolumeClaim",
    "metadata": {"name": "adapters"},
    "spec": {"accessModes": ["ReadWriteMany"], "resources": {"requests": {"storage": "1Gi"}}},
}
NODES = {"gpus": 0, "nodes": 2, "cpu": "500m", "memory": "3Gi"}
"""Each of the two pods on one machine; what is not tested here is a network between machines."""


def by_index(client: Client, namespace: str) -> dict[str, dict[str, Any]]:
    """The newest pod of each node, by its number in the Job."""
    key = "batch.kubernetes.io/job-completion-index"
    ordered = sorted(pods(client, namespace), key=lambda pod: pod["metadata"]["creationTimestamp"])
    return {pod["metadata"]["labels"][key]: pod for pod in ordered}


def test_two_pods_train_one_adapter(installed: Installed, namespace: str) -> None:
    """The first publishes, the other takes part; both have ended, and the status tells of two processes."""
    client = installed.client
    client.apply(SHARED, rows(), finetune("pair", resources=NODES), namespace=namespace)
    ended = wait_end(client, namespace, "pair", timeout_s=1200)
    assert verdict(ended)[:2] == ("True", "Succeeded")
    assert ended["resolved"]["processes"] == 2
    assert ended["artifact"]["uri"] == "pvc://adapters/pair"
    nodes = by_index(client, namespace)
    assert sorted(nodes) == ["0", "1"]
    logs = {
        index: client.kubectl("logs", pod["metadata"]["name"], f"--namespace={namespace}")
        for index, pod in nodes.items()
    }
    assert "verified" in logs["0"]
    assert "verified" not in logs["1"]
    assert "Traceback" not in logs["0"] + logs["1"]


def test_two_pods_go_on_from_the_checkpoint_when_one_is_lost(installed: Installed, namespace: str) -> None:
    """Both end, since one alone cannot go on; both come back, and the run ends well without having begun again."""
    client = installed.client
    # Long enough for the pod to be taken from it on a fast machine, too: a sixth of a second a step.
    training = {**SLOW, "maxSteps": 100}
    spec: dict[str, Any] = {
        "resources": NODES,
        "training": training,
        "checkpoint": {"intervalSteps": 2},
        "maxRetries": 2,
    }
    client.apply(SHARED, long_rows(), finetune("torn", **spec), namespace=namespace)
    wait_reason(client, namespace, "torn", "Complete", "Training")
    client.wait("lft/torn", "jsonpath={.status.progress.checkpointStep}", namespace=namespace, timeout_s=PATIENCE_S)
    first = by_index(client, namespace)
    lost = first["1"]["metadata"]["name"]
    client.kubectl("delete", "pod", lost, "--grace-period=0", "--force", f"--namespace={namespace}")
    ended = wait_end(client, namespace, "torn", timeout_s=1200)
    assert verdict(ended)[:2] == ("True", "Succeeded")
    assert ended["results"]["steps"] == training["maxSteps"]
    assert ended["results"]["resumedStep"] >= 2
    again = by_index(client, namespace)
    assert {pod["metadata"]["uid"] for pod in again.values()}.isdisjoint(
        {pod["metadata"]["uid"] for pod in first.values()}
    )
