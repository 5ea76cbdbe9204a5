"""What kubelets, the scheduler and controllers write when something goes wrong, played on a stage.

The texts are those of Kubernetes 1.34, so that what the operator reads in them is tested on the real thing.
"""

import uuid
from datetime import UTC, datetime, timedelta
from typing import Any

from tests.component.documents import Object
from tests.component.stage import Stage

from lora_operator.model.wording import instant


def post_event(stage: Stage, about: Object, reason: str, message: str, *, in_s: int = 0) -> None:
    """A Warning about an object, as kubelets and controllers post it; with `in_s` it is newer than any real one."""
    metadata = about["metadata"]
    at = instant(datetime.now(UTC) + timedelta(seconds=in_s))
    kind = about.get("kind") or ("Pod" if "containers" in about["spec"] else "Job")
    body = {
        "metadata": {"name": f"{metadata['name']}.{uuid.uuid4().hex[:12]}", "namespace": stage.namespace},
        "involvedObject": {
            "kind": kind,
            "name": metadata["name"],
            "namespace": stage.namespace,
            "uid": metadata["uid"],
        },
        "type": "Warning",
        "reason": reason,
        "message": message,
        "firstTimestamp": at,
        "lastTimestamp": at,
        "count": 1,
        "source": {"component": "played"},
    }
    stage.api.post(stage.path("events"), body)


def set_condition(
    stage: Stage, pod: Object, kind: str, status: str, *, reason: str = "", message: str = "", ago_s: int = 0
) -> None:
    """Write one condition of a pod and leave the others; it has been so for `ago_s`."""
    path = stage.path("pods", pod["metadata"]["name"])
    before = stage.api.get(path)["status"].get("conditions", [])
    since = instant(datetime.now(UTC) - timedelta(seconds=ago_s))
    written = {"type": kind, "status": status, "lastTransitionTime": since}
    written |= {key: value for key, value in (("reason", reason), ("message", message)) if value}
    conditions = [*(c for c in before if c["type"] != kind), written]
    stage.api.patch(f"{path}/status", {"status": {"conditions": conditions}})


def lose_node(stage: Stage, pod: Object, *, ago_s: int = 0) -> None:
    """The node lifecycle controller marks the pods of a silent node: Ready turns False, and nothing else changes."""
    set_condition(stage, pod, "Ready", "False", ago_s=ago_s)


def find_node(stage: Stage, pod: Object) -> None:
    """The node answers again, and its kubelet says that the pod is ready."""
    set_condition(stage, pod, "Ready", "True")


def evict(stage: Stage, pod: Object) -> None:
    """What `kubectl drain` does."""
    name = pod["metadata"]["name"]
    body = {"apiVersion": "policy/v1", "kind": "Eviction", "metadata": {"name": name, "namespace": stage.namespace}}
    stage.api.post(stage.path("pods", name, "eviction"), body)


def disrupt(stage: Stage, pod: Object, reason: str, message: str) -> None:
    """A controller says why it takes a pod away, and deletes it."""
    set_condition(stage, pod, "DisruptionTarget", "True", reason=reason, message=message)
    stage.api.delete(stage.path("pods", pod["metadata"]["name"]))


def finish_deletion(stage: Stage, pod: Object, exit_code: int = 143, message: str = "", *, reason: str = "") -> None:
    """The container of a pod that is being deleted has ended: the kubelet says so and lets the object go."""
    stage.end_pod(pod, exit_code, message, reason=reason)
    stage.api.delete(stage.path("pods", pod["metadata"]["name"]) + "?gracePeriodSeconds=0")


def make_claim(stage: Stage, name: str, **spec: Any) -> None:
    """A PersistentVolumeClaim."""
    resources = {"requests": {"storage": "1Gi"}}
    body = {"metadata": {"name": name}, "spec": {"accessModes": ["ReadWriteOnce"], "resources": resources, **spec}}
    stage.api.post(stage.path("persistentvolumeclaims"), body)
