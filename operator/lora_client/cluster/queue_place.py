"""A run's place in Kueue's queue, where the cluster has it and the user may read it."""

import time
from collections.abc import Mapping
from typing import Any
from urllib.parse import quote

from lora_client.cluster.connection import ApiError, Cluster
from lora_client.errors import ClientError
from lora_client.views.resources import Object, part, text
from lora_operator.model.names import QUEUE_LABEL

INTERVAL_S = 10.0
_VERSIONS = ("v1beta2", "v1beta1")


class QueuePlace:
    """Asks for it every `INTERVAL_S` at most, and never again where the cluster has no such place or hides it."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster
        self._versions = list(_VERSIONS)
        self._due_at = 0.0
        self._known = ""

    def of(self, resource: Object) -> str:
        """As in `2 ahead in queue team-a`; empty for a run that is in no queue, or where none is known."""
        name = text(resource, "metadata", "labels", QUEUE_LABEL) or text(resource, "status", "resolved", "pod", "queue")
        job = text(resource, "status", "jobName")
        reserved: Object = next(
            (c for c in part(resource, "status").get("conditions") or () if c["type"] == "QuotaReserved"), {}
        )
        if not name or not job or reserved.get("status") != "False":
            return ""
        if self._versions and time.monotonic() >= self._due_at:
            self._due_at = time.monotonic() + INTERVAL_S
            self._known = self._ask(name, job)
        return self._known

    def _ask(self, queue: str, job: str) -> str:
        version = self._versions[0]
        namespace = quote(self._cluster.namespace, safe="")
        path = f"/apis/visibility.kueue.x-k8s.io/{version}/namespaces/{namespace}/localqueues/{quote(queue, safe='')}"
        try:
            answer = self._cluster.request("GET", f"{path}/pendingworkloads")
        except ApiError as error:
            if _is_final(error):
                self._versions.pop(0)
            return ""
        except ClientError:
            return ""
        ours = next((item for item in answer.get("items") or () if _belongs(item, job)), None)
        return "" if ours is None else f"{ours.get('positionInLocalQueue', 0)} ahead in queue {queue}"


def _is_final(error: ApiError) -> bool:
    """Whether this version is not served or not for this user, rather than its server down or busy.

    A 404 that names a queue is of one that does not exist yet.
    """
    return error.code == 403 or (error.code == 404 and error.refusal.kind != "localqueue")


def _belongs(item: Mapping[str, Any], job: str) -> bool:
    owners = part(item, "metadata").get("ownerReferences") or ()
    return any(owner.get("kind") == "Job" and owner.get("name") == job for owner in owners)
