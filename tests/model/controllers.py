"""The cluster's own life, in memory: Job controller, garbage collector and scheduler. Each acts when it is told to."""

from collections.abc import Callable
from datetime import datetime

from tests.model.job_controller import JobController
from tests.model.objects import Object
from tests.model.server import FOREGROUND, ORPHAN, Server
from tests.model.ttl import delete_expired

NODE = "node-1"


class Controllers(JobController):
    """What reacts to Jobs, pods and owners."""

    def __init__(self, server: Server, now: Callable[[], datetime]) -> None:
        super().__init__(server, now)
        self.sync_queues: Callable[[], None] = lambda: None

    def catch_up(self) -> None:
        """Act until nobody has anything left to do."""
        for _ in range(50):
            before = self._server.version
            self.sync_jobs()
            self.sync_queues()
            delete_expired(self._server, self._now())
            self.collect_garbage()
            if self._server.version == before:
                return
        raise AssertionError("the controllers do not come to rest")

    # -- the garbage collector

    def collect_garbage(self) -> None:
        """Delete what has lost its owners; finish deletions in the foreground and those that orphan."""
        server = self._server
        uids = {document["metadata"]["uid"] for document in server.objects.values()}
        for place, document in list(server.objects.items()):
            owners = document["metadata"].get("ownerReferences")
            if owners and not any(owner["uid"] in uids for owner in owners):
                self._collect(place.plural, document)
        for place, document in list(server.objects.items()):
            finalizers = document["metadata"].get("finalizers", [])
            if "deletionTimestamp" not in document["metadata"]:
                continue
            uid = document["metadata"]["uid"]
            dependents = [
                (other.plural, child)
                for other, child in server.objects.items()
                if any(owner["uid"] == uid for owner in child["metadata"].get("ownerReferences") or ())
            ]
            if ORPHAN in finalizers:
                for plural, child in dependents:
                    rest = [owner for owner in child["metadata"]["ownerReferences"] if owner["uid"] != uid]
                    server.write({**child, "metadata": {**child["metadata"], "ownerReferences": rest}}, plural)
                self._without_finalizer(place.plural, document, ORPHAN)
            elif FOREGROUND in finalizers:
                for plural, child in dependents:
                    self._collect(plural, child, "Foreground")
                if not dependents:
                    self._without_finalizer(place.plural, document, FOREGROUND)

    def _collect(self, plural: str, document: Object, policy: str = "Background") -> None:
        metadata = document["metadata"]
        if "deletionTimestamp" in metadata:
            return
        prefix = {"jobs": "/apis/batch/v1", "lorafinetunes": "/apis/lora-operator.io/v1alpha1"}.get(plural, "/api/v1")
        path = f"{prefix}/namespaces/{metadata['namespace']}/{plural}/{metadata['name']}"
        self._server.handle("DELETE", path, {"propagationPolicy": policy})
