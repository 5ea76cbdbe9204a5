"""Pods on the local cluster: volumes, names, the registry."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from localcluster.client import Client

_CLAIM = {
    "apiVersion": "v1",
    "kind": "PersistentVolumeClaim",
    "metadata": {"name": "data"},
    "spec": {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}}},
}


@pytest.fixture(scope="session")
def python_image(cluster: Client) -> str:
    """An image that has Python and nothing to do with what is tested."""
    return cluster.images("test-trainer")["test-trainer"]


def _pod(image: str, program: str, *, claim: str | None = None, group: int | None = None) -> dict[str, Any]:
    """A restricted pod of user 10001 that runs a Python program once; a claim is mounted at /data."""
    mounted = claim is not None
    identity = {"runAsUser": 10001, "runAsGroup": 10001, "runAsNonRoot": True}
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": "probe"},
        "spec": {
            "restartPolicy": "Never",
            "securityContext": identity if group is None else {**identity, "fsGroup": group},
            "volumes": [{"name": "data", "persistentVolumeClaim": {"claimName": claim}}] if mounted else [],
            "containers": [
                {
                    "name": "probe",
                    "image": image,
                    "command": ["python3", "-c", program],
                    "volumeMounts": [{"name": "data", "mountPath": "/data"}] if mounted else [],
                }
            ],
        },
    }


def _run(cluster: Client, namespace: str, pod: dict[str, Any], phase: str = "Succeeded") -> str:
    cluster.apply(pod, namespace=namespace)
    cluster.wait("pod/probe", f"jsonpath={{.status.phase}}={phase}", namespace=namespace)
    return cluster.kubectl("logs", "probe", f"--namespace={namespace}")


def test_a_claim_is_bound_without_a_pod(cluster: Client, namespace: str) -> None:
    """The default class binds at once, with the size that was asked for."""
    cluster.apply(_CLAIM, namespace=namespace)
    cluster.wait("pvc/data", "jsonpath={.status.phase}=Bound", namespace=namespace)
    assert cluster.get("pvc", "data", f"--namespace={namespace}")["status"]["capacity"] == {"storage": "1Gi"}


def test_a_pod_that_is_not_root_writes_to_its_claim_through_its_group(
    cluster: Client, namespace: str, python_image: str
) -> None:
    """The kubelet hands the volume to the pod's fsGroup."""
    program = "import os; open('/data/x', 'w').write('hello'); s = os.stat('/data/x'); print(s.st_uid, s.st_gid)"
    cluster.apply(_CLAIM, namespace=namespace)
    assert _run(cluster, namespace, _pod(python_image, program, claim="data", group=10001)) == "10001 10001\n"


def test_a_pod_without_a_group_may_not_write_to_a_volume_of_root(
    cluster: Client, namespace: str, python_image: str
) -> None:
    """A volume starts as a fresh disk does; otherwise the test above would prove nothing."""
    cluster.apply(_CLAIM, namespace=namespace)
    log = _run(cluster, namespace, _pod(python_image, "open('/data/x', 'w')", claim="data"), phase="Failed")
    assert "Permission denied" in log


def test_a_claim_that_comes_back_under_its_name_is_empty(cluster: Client, namespace: str, python_image: str) -> None:
    """Data of a deleted claim never shows up in another one."""
    cluster.apply(_CLAIM, namespace=namespace)
    _run(cluster, namespace, _pod(python_image, "open('/data/x', 'w')", claim="data", group=10001))
    cluster.kubectl("delete", "pod/probe", "pvc/data", f"--namespace={namespace}", "--wait=true")
    cluster.apply(_CLAIM, namespace=namespace)
    program = "import os; print(os.listdir('/data'))"
    assert _run(cluster, namespace, _pod(python_image, program, claim="data", group=10001)) == "[]\n"


def test_names_of_services_resolve_and_others_do_not_exist(cluster: Client, namespace: str, python_image: str) -> None:
    """DNS answers for Services by short and full name; nothing outside of the cluster is reachable."""
    program = """
import socket
print(socket.gethostbyname('kubernetes.default'))
print(socket.gethostbyname('kubernetes.default.svc.cluster.local'))
try:
    socket.gethostbyname('example.com')
except socket.gaierror as error:
    print(error.errno == socket.EAI_NONAME)
"""
    address = cluster.get("service", "kubernetes", "--namespace=default")["spec"]["clusterIP"]
    assert _run(cluster, namespace, _pod(python_image, program)) == f"{address}\n{address}\nTrue\n"
