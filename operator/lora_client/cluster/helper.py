"""A pod for as long as a command needs it: made, waited for, and gone afterwards, however the command ends."""

import secrets
import signal
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import Any

from lora_client.cluster.connection import ApiError, Cluster, Object, UnreachableError
from lora_client.errors import ClientError
from lora_client.output import note
from lora_client.views.helper_pod import (
    LABEL,
    Need,
    adapter_place,
    claims_of,
    end,
    holder,
    lost_with_job,
    mount_trouble,
    pod,
    trouble,
)
from lora_client.views.hub_access import lost_access
from lora_client.views.resources import name_of, text
from lora_operator.model.names import TRAIN, UID_LABEL, place_of

START_S = 1200.0
"""For a node of a pool that was scaled to zero, and an image of gigabytes on it."""
UNSEEN_S = 60.0
"""Without an answer about a pod that has not started: it may have waited for its GPU for minutes."""
GONE_S = 30.0
TRIED_S = 10.0
MADE_S = 1.0
"""Within which a pod may still appear whose making was not answered."""
_POLL_S = 1.0
_LOOK_AT_EVENTS_S = 10.0
_LOOKS = 3


@contextmanager
def helper(cluster: Cluster, run: Object, need: Need, *, start_s: float = START_S) -> Iterator[str]:
    """The name of a running pod that sees the run's adapter. Raises `ClientError` where it does not start in time."""
    place = adapter_place(run)
    template = template_of(cluster, run)
    manifest = pod(run, template, place, need)
    if node := _node(cluster, claims_of(manifest["spec"])):
        manifest = pod(run, template, place, need, node)
    keep = (
        f"lora pull {run['metadata']['name']} copies the adapter, and a longer ttlSecondsAfterFinished keeps the Jobs"
    )
    if need.model and (lost := lost_access(run, template, f"{keep} of further runs")):
        note(lost)
    _sweep(cluster)
    # Chosen here: whoever is interrupted before the answer comes has to know what to delete.
    name = manifest["metadata"].pop("generateName") + secrets.token_hex(4)
    manifest["metadata"]["name"] = name
    uid, refused = "", False
    try:
        try:
            made = cluster.request("POST", cluster.path("pods"), query={"fieldManager": "lora"}, body=manifest)
        except ApiError as error:
            refused = True
            if remedy := lost_with_job(error.refusal.message, template, cluster.namespace):
                raise ClientError(f"{error}; {remedy}") from error
            raise
        uid = text(made, "metadata", "uid")
        _wait(cluster, name, template, start_s)
        yield name
    finally:
        if not refused:
            _delete(cluster, name, uid)


def _node(cluster: Cluster, claims: Sequence[str]) -> str:
    """The one where the pod can mount them all, as other pods use them; empty for any. Raises `ClientError` where there
    is none."""
    pods = cluster.items("pods")
    found: dict[str, str] = {}
    for claim in claims:
        user, node, alone = holder(cluster.get("persistentvolumeclaims", claim), pods)
        if alone:
            raise ClientError(
                f"The claim {claim} (ReadWriteOncePod) is in use by pod {user}: try again when that has ended"
            )
        if node:
            found.setdefault(node, f"claim {claim} by pod {user} on node {node}")
            note(f"The claim {claim} (ReadWriteOnce) is in use by pod {user} on node {node}: only there it can be read")
    if len(found) > 1:
        raise ClientError(
            f"ReadWriteOnce claims are in use on several nodes ({', '.join(found.values())}), and a pod needs them on "
            "one: try again when one of the pods has ended"
        )
    return next(iter(found), "")


def template_of(cluster: Cluster, run: Mapping[str, Any]) -> Object:
    """The pod template of the latest training Job; empty where none is left. Raises `ApiError`."""
    jobs = cluster.items("jobs", {"labelSelector": f"{UID_LABEL}={text(run, 'metadata', 'uid')}"})
    training = [job for job in jobs if place_of(name_of(job))[1] == TRAIN]
    latest = max(training, key=lambda job: place_of(name_of(job))[0], default=None)
    template: Object = latest["spec"]["template"] if latest else {}
    return template


def _wait(cluster: Cluster, name: str, template: Object, start_s: float) -> None:
    """Until it runs. Raises `ClientError` where it ends or takes too long, or the server is away for `UNSEEN_S`."""
    begun = answered = looked = time.monotonic()
    phase, reported, unmounted = "", "", ""
    while True:
        try:
            state = cluster.get("pods", name)
            answered = time.monotonic()
            phase, why = text(state, "status", "phase"), trouble(state)
        except (ApiError, UnreachableError) as error:
            lasting = isinstance(error, ApiError) and error.code < 500
            if lasting or time.monotonic() - answered > UNSEEN_S:
                raise
            why = str(error)
        else:
            if phase == "Running":
                return
            if phase in ("Succeeded", "Failed"):
                raise ClientError(
                    f"Pod {name} ended before it was used ({text(state, 'status', 'message') or phase}): try again"
                )
        if not why and time.monotonic() - looked > _LOOK_AT_EVENTS_S:
            looked = time.monotonic()
            unmounted = _unmounted(cluster, name)
        why = why or unmounted
        remedy = lost_with_job(why, template, cluster.namespace)
        if why and why != reported:
            reported = why
            note(f"Waiting for pod {name}: {why}{f': {remedy}' if remedy else ''}")
        if time.monotonic() - begun > start_s:
            remedy = remedy or "ask the cluster's administrator"
            raise ClientError(f"Pod {name} did not start within {start_s:.0f} s ({why or phase}): {remedy}")
        time.sleep(_POLL_S)


def _unmounted(cluster: Cluster, name: str) -> str:
    """Why its volumes cannot be mounted, which Events alone say; empty where they say nothing or cannot be read."""
    with suppress(ClientError):
        return mount_trouble(cluster.items("events", {"fieldSelector": f"involvedObject.name={name}"}))
    return ""


def why_ended(cluster: Cluster, name: str) -> str:
    """Why a helper ended that ran, as a sentence, for which its node may need a moment; empty where nobody says."""
    for _ in range(_LOOKS):
        with suppress(ClientError):
            if why := end(cluster.get("pods", name)):
                return why
        time.sleep(_POLL_S)
    return ""


def _delete(cluster: Cluster, name: str, uid: str) -> None:
    """Until it is gone; nobody interrupts that. Without a `uid` the server has not answered yet that it is made."""
    before = signal.getsignal(signal.SIGINT)
    with suppress(ValueError):  # not the main thread, which alone hears of signals
        signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        _deleted(cluster, name, uid)
    except ClientError as error:
        command = f"kubectl delete pod {name} -n {cluster.namespace}"
        note(f"Pod {name} could not be deleted ({error}): {command}")
    finally:
        with suppress(ValueError):
            signal.signal(signal.SIGINT, before)


def _deleted(cluster: Cluster, name: str, uid: str) -> None:
    """Raises `ApiError` where it may not be deleted, `UnreachableError` where nobody answers for `TRIED_S`."""
    path = cluster.path("pods", name)
    body = {"preconditions": {"uid": uid}} if uid else None
    begun = time.monotonic()
    while True:
        passed_s = time.monotonic() - begun
        try:
            cluster.request("DELETE", path, body=body)
            deadline = time.monotonic() + GONE_S
            while time.monotonic() < deadline:
                cluster.request("GET", path)
                time.sleep(_POLL_S / 4)
            return
        except UnreachableError:
            if passed_s > TRIED_S:
                raise
        except ApiError as error:
            if error.code not in (404, 409):
                raise
            if uid or passed_s > MADE_S:
                return
        time.sleep(_POLL_S)


def _sweep(cluster: Cluster) -> None:
    """Delete helpers that ended and were left by a client that was killed."""
    for left in cluster.items("pods", {"labelSelector": LABEL}):
        if text(left, "status", "phase") in ("Succeeded", "Failed"):
            body: dict[str, Any] = {"preconditions": {"uid": left["metadata"]["uid"]}}
            with suppress(ApiError):
                cluster.request("DELETE", cluster.path("pods", name_of(left)), body=body)
