"""Kubernetes' TTL-after-finished controller, in memory."""

from datetime import datetime, timedelta

from tests.model.server import Object, Server

from lora_operator.model.wording import parse_instant


def delete_expired(server: Server, now: datetime) -> None:
    """Delete the Jobs whose time to live is over since they ended, as pkg/controller/ttlafterfinished of 1.34 does."""
    for job in list(server.all("jobs")):
        metadata, ttl_s, ended_at = job["metadata"], job["spec"].get("ttlSecondsAfterFinished"), _ended_at(job)
        if ttl_s is None or ended_at is None or "deletionTimestamp" in metadata:
            continue
        if ended_at + timedelta(seconds=ttl_s) <= now:
            path = f"/apis/batch/v1/namespaces/{metadata['namespace']}/jobs/{metadata['name']}"
            body = {"propagationPolicy": "Foreground", "preconditions": {"uid": metadata["uid"]}}
            server.handle("DELETE", path, body)


def _ended_at(job: Object) -> datetime | None:
    ends = [c for c in job["status"].get("conditions", ()) if c["type"] in {"Complete", "Failed"}]
    return next((parse_instant(c["lastTransitionTime"]) for c in ends if c["status"] == "True"), None)
