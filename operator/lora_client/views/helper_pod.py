"""The pods of `pull` and `ask`, as restricted as those that train: where they run, what they mount, what they know."""

import re
import shlex
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from lora_client.errors import ClientError
from lora_client.views.kept_pod import CACHE, TRAINER, gpus, kept_pod
from lora_client.views.resources import Object, name_of, part, result, state, text
from lora_trainer.spec.quantity import at_least
from lora_trainer.spec.uri import ClaimUri, Uri, UriError, parse_uri

CONTAINER = "lora"
LABEL = "lora-operator.io/client"
CLAIMS = "/claims"
LONGEST_S = 3600
"""Then the cluster ends the pod, if the client was killed before it could."""
_DAY_S = 86_400
_SLOWEST = 2_000_000
"""Bytes per second at which the API server still hands a result out."""
_SECURITY_CONTEXT = {
    "runAsNonRoot": True,
    **dict.fromkeys(("runAsUser", "runAsGroup", "fsGroup"), 10001),
    "fsGroupChangePolicy": "OnRootMismatch",
    "seccompProfile": {"type": "RuntimeDefault"},
}
_HOLD = "import signal, sys, time; signal.signal(signal.SIGTERM, lambda *_: sys.exit(0)); time.sleep({})"
# Without its priority, which is for training: a helper must not evict anybody.
_TAKEN = ("nodeSelector", "tolerations", "affinity", "imagePullSecrets", "runtimeClassName")
_NOT_FOR_THE_MODEL = ("OUTPUT_", "DATASET_", "LORA_", "MLFLOW_", "WANDB_")
_MOUNTS_OF_A_MODEL = (f"{CLAIMS}/", CACHE, "/compiled", "/etc/lora-ca", "/dev/shm")  # noqa: S108 - mounts of the pod
_PULLS = ("ErrImagePull", "ImagePullBackOff")
_NO_LOGIN = re.compile(r"\b40[13]\b|unauthorized|authorization|denied|forbidden|no basic auth", re.IGNORECASE)
_USER_REFUSED = ("runAsUser", "security context constraint")
_PLAIN = ("cpu", "memory", "ephemeral-storage")
_LIBRARIES = 2 * 2**30
_WITHOUT_GPU = {"requests": {"cpu": "50m", "memory": "128Mi"}, "limits": {"memory": "512Mi"}}


@dataclass(frozen=True, slots=True, kw_only=True)
class Need:
    """What a helper is for: `verb` names it; with `model` it gets what the training pod had to reach the base model,
    and with `gpu` one of its GPUs. `whole` is for a copy of the whole result."""

    verb: str
    whole: bool = False
    model: bool = False
    gpu: bool = False
    memory: str = ""


def adapter_place(run: Object) -> ClaimUri:
    """Where a run's result lies on a claim. Raises `ClientError` where it is elsewhere, or is not yet."""
    address, name = text(run, "status", "artifact", "uri"), name_of(run)
    if not address and result(run) == "failed":
        raise ClientError(f"{name} failed ({state(run)}) and has no adapter: lora status {name} says why")
    if not address:
        raise ClientError(f"{name} has no adapter yet: lora status {name} shows its state")
    try:
        uri: Uri | None = parse_uri(address)
    except UriError as error:
        # Other places' addresses name what was published, too, which those of the spec do not: a tag's digest.
        if address.startswith("pvc://"):
            raise ClientError(f"The adapter's address {address} cannot be read: {error}") from error
        uri = None
    if not isinstance(uri, ClaimUri):
        raise ClientError(f"The adapter of {name} is at {address}, not on a claim: {fetching(address)}")
    return uri


def fetching(address: str) -> str:
    """The command that copies a result from a place that is no claim."""
    scheme, _, rest = address.partition("://")
    repository, _, commit = rest.partition("@")
    revision = f" --revision {shlex.quote(commit)}" if commit else ""
    return {
        "s3": f"aws s3 cp --recursive {shlex.quote(address)} ./adapter copies it",
        "hf": f"hf download {shlex.quote(repository)}{revision} --local-dir adapter copies it",
        "oci": f"oras pull {shlex.quote(rest)} -o adapter copies it",
    }.get(scheme, "fetch it from there")


def folder_of(place: ClaimUri) -> str:
    """Where the helper sees the result."""
    return f"{CLAIMS}/{place.claim}/{place.path}"


def pod(run: Object, template: Object, place: ClaimUri, need: Need, node: str = "") -> dict[str, Any]:
    """The helper. `template` is the pod template of the run's latest Job, empty where that is gone; `node` the only one
    that it can run on, empty for any."""
    given = part(template, "spec") or kept_pod(run)
    trainer: Object = next((c for c in given.get("containers") or () if c.get("name") == TRAINER), {})
    image = text(run, "status", "resolved", "image") or str(trainer.get("image") or "")
    if not image:
        raise ClientError(
            f"It is not known which image trained {name_of(run)}: its status names none, and its Job is gone"
        )
    volumes, mounts = _volumes(run, given, trainer, place, need)
    longest_s = _longest_s(run, need)
    spec = {
        "restartPolicy": "Never",
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "activeDeadlineSeconds": longest_s,
        "terminationGracePeriodSeconds": 1,
        # The very user whose result it is, where the run's Job still tells.
        "securityContext": given.get("securityContext") or _SECURITY_CONTEXT,
        "containers": [
            {
                "name": CONTAINER,
                "image": image,
                "imagePullPolicy": str(trainer.get("imagePullPolicy") or "IfNotPresent"),
                "command": ["python3", "-c", _HOLD.format(longest_s)],
                "env": _environment(trainer) if need.model else [],
                "resources": _resources(run, trainer, need),
                "securityContext": {
                    "allowPrivilegeEscalation": False,
                    "readOnlyRootFilesystem": True,
                    "capabilities": {"drop": ["ALL"]},
                },
                "volumeMounts": mounts,
            }
        ],
        "volumes": volumes,
        **_placement(given, node),
    }
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "generateName": f"{name_of(run)[:40]}-{need.verb}-",
            "labels": {LABEL: need.verb, "app.kubernetes.io/name": "lora-client"},
            "ownerReferences": [_owner(run)],
        },
        "spec": spec,
    }


def _longest_s(run: Object, need: Need) -> int:
    """More for the copy of a large result."""
    size = text(run, "status", "artifact", "sizeBytes")
    more_s = int(size) // _SLOWEST if need.whole and size.isdecimal() else 0
    return min(LONGEST_S + more_s, _DAY_S)


def _owner(run: Object) -> dict[str, Any]:
    """It goes with the run at the latest; not as a controller, by which the operator knows its own."""
    keys = ("apiVersion", "kind")
    return {**{key: run[key] for key in keys}, "name": name_of(run), "uid": text(run, "metadata", "uid")}


def _placement(given: Mapping[str, Any], node: str) -> dict[str, Any]:
    taken = {key: given[key] for key in _TAKEN if given.get(key)}
    if node:
        term = {"matchFields": [{"key": "metadata.name", "operator": "In", "values": [node]}]}
        required = {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": [term]}}
        taken = {**taken, "affinity": {"nodeAffinity": required}}
    return taken


def _environment(trainer: Mapping[str, Any]) -> list[dict[str, Any]]:
    """What the training pod had to reach the Hub and its model; secrets as references, never read. Not the output's."""
    given = [dict(variable) for variable in trainer.get("env") or ()]
    return [variable for variable in given if not str(variable.get("name", "")).startswith(_NOT_FOR_THE_MODEL)]


def _resources(run: Object, trainer: Mapping[str, Any], need: Need) -> dict[str, Any]:
    if not need.model:
        return _WITHOUT_GPU
    given = {kind: dict(part(trainer, "resources", kind)) for kind in ("requests", "limits")}
    wanted = _one_gpu(run, given["limits"]) if need.gpu else {}
    given = {kind: {key: value for key, value in own.items() if key in _PLAIN} for kind, own in given.items()}
    given["limits"] |= wanted
    if need.memory:
        given = {kind: {**own, "memory": need.memory} for kind, own in given.items()}
    elif not need.gpu:
        given = {kind: _with_room(own, memory_on_cpu(run)) for kind, own in given.items()}
    return {kind: own for kind, own in given.items() if own}


def _one_gpu(run: Object, limits: Mapping[str, Any]) -> dict[str, str]:
    """As a limit. Raises `ClientError` where the training had none."""
    resource, count = gpus(run)
    others = {*_PLAIN, *part(run, "spec", "resources", "extendedResources")}
    named = resource if resource in limits else next((key for key in sorted(limits) if key not in others), "")
    if not count or not named:
        why = "its status and its Job name no GPU" if count else "it trained without one"
        raise ClientError(f"--gpu is not available for {name_of(run)} ({why}): leave it out")
    return {named: "1"}


def memory_on_cpu(run: Object) -> int:
    """What `ask` takes of main memory there, in bytes: the weights in fp32, and libraries; 0 where the status does not
    say how many they are."""
    parameters = text(run, "status", "resolved", "totalParameters")
    return 4 * int(parameters) + _LIBRARIES if parameters.isdecimal() else 0


def _with_room(own: Mapping[str, str], size_bytes: int) -> dict[str, str]:
    return {**own, "memory": at_least(own["memory"], size_bytes)} if own.get("memory") else dict(own)


def _volumes(
    run: Object, given: Mapping[str, Any], trainer: Mapping[str, Any], place: ClaimUri, need: Need
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """The claim with the adapter, read-only; for a model also the training pod's cache and other claims."""
    volumes: dict[str, dict[str, Any]] = {"tmp": {"emptyDir": {}}}
    mounts: dict[str, tuple[str, bool]] = {"/tmp": ("tmp", False)}  # noqa: S108 - an emptyDir
    if need.model:
        paths = {str(mount.get("name")): str(mount.get("mountPath")) for mount in trainer.get("volumeMounts") or ()}
        for volume in given.get("volumes") or ():
            name, path = str(volume.get("name")), paths.get(str(volume.get("name")), "")
            if path.startswith(_MOUNTS_OF_A_MODEL):
                volumes[name] = {key: value for key, value in volume.items() if key != "name"}
                mounts[path] = (name, path.startswith((CLAIMS, "/etc/")))
        if CACHE not in mounts:
            volumes["cache"], mounts[CACHE] = {"emptyDir": {}}, ("cache", False)
    wanted = [place.claim]
    model = text(run, "spec", "model", "uri")
    if need.model and model.startswith("pvc://"):
        wanted.append(model.removeprefix("pvc://").partition("/")[0])
    for claim in dict.fromkeys(wanted):
        # A claim that stands in two volumes of a pod may be waited for without end.
        known = (n for n, v in volumes.items() if text(v, "persistentVolumeClaim", "claimName") == claim)
        name = next(known, "") or f"claim-{len(volumes)}"
        volumes.setdefault(name, {"persistentVolumeClaim": {"claimName": claim}})
        mounts.setdefault(f"{CLAIMS}/{claim}", (name, True))
    listed = [
        {"name": name, "mountPath": path, **({"readOnly": True} if read else {})}
        for path, (name, read) in mounts.items()
    ]
    return [{"name": name, **source} for name, source in volumes.items()], listed


def exclusive_mode(claim: Object) -> str:
    """ReadWriteOnce, with which a claim serves one node at a time, or ReadWriteOncePod, one pod; empty for others."""
    modes = set(part(claim, "spec").get("accessModes") or ())
    if not modes or modes & {"ReadWriteMany", "ReadOnlyMany"}:
        return ""
    return "ReadWriteOncePod" if modes == {"ReadWriteOncePod"} else "ReadWriteOnce"


def holder(claim: Object, pods: Iterable[Object]) -> tuple[str, str, bool]:
    """Pod and node that use a claim now, and whether that keeps every other pod out; empty where none does."""
    mode, name = exclusive_mode(claim), name_of(claim)
    for other in pods if mode else ():
        used = claims_of(part(other, "spec"))
        node = text(other, "spec", "nodeName")
        if name in used and node and text(other, "status", "phase") not in ("Succeeded", "Failed"):
            return name_of(other), node, mode == "ReadWriteOncePod"
    return "", "", False


def claims_of(spec: Mapping[str, Any]) -> tuple[str, ...]:
    """The claims that a pod mounts, by its specification."""
    found = (text(volume, "persistentVolumeClaim", "claimName") for volume in spec.get("volumes") or ())
    return tuple(filter(None, found))


def trouble(state: Object) -> str:
    """Why a helper does not start, in the cluster's own words; empty while nothing is wrong."""
    for found in part(state, "status").get("conditions") or ():
        if found.get("type") == "PodScheduled" and found.get("status") == "False" and found.get("message"):
            return str(found["message"])
    for container in part(state, "status").get("containerStatuses") or ():
        waiting = part(container, "state", "waiting")
        if waiting.get("reason") not in (None, "", "ContainerCreating", "PodInitializing"):
            return " ".join(filter(None, (str(waiting["reason"]), str(waiting.get("message") or ""))))
    return ""


def mount_trouble(events: Iterable[Object]) -> str:
    """Of a pod's Events, the last one about a volume that cannot be mounted; empty where there is none."""
    found = [event for event in events if event.get("reason") in ("FailedAttachVolume", "FailedMount")]
    last = max(found, key=lambda event: text(event, "lastTimestamp") or text(event, "eventTime"), default={})
    return " ".join(filter(None, (text(last, "reason"), text(last, "message"))))


def lost_with_job(why: str, template: Object, namespace: str) -> str:
    """What to do about a trouble or a refusal that the run's Job would have spared, since it names pull secrets and
    user; empty for another one, and where the Job is there."""
    if template:
        return ""
    if why.startswith(_PULLS) and _NO_LOGIN.search(why):
        patch = '{"imagePullSecrets":[{"name":"SECRET"}]}'
        return (
            "the run's Job, which named the registry's login, is gone: name it at the service account, and try again: "
            f"kubectl patch serviceaccount default -n {namespace} -p '{patch}'"
        )
    if any(said in why for said in _USER_REFUSED):
        return "the run's Job, which named the user, is gone: leave ttlSecondsAfterFinished unset in further runs"
    return ""


def end(state: Object) -> str:
    """Why a helper ended that ran, as a sentence; empty while it runs, and where the cluster gives no reason."""
    name, reason = name_of(state), text(state, "status", "reason")
    if reason == "DeadlineExceeded":
        minutes = int(text(state, "spec", "activeDeadlineSeconds") or LONGEST_S) // 60
        return f"Pod {name} ended after {minutes} minutes, the longest that a conversation lasts: begin another one"
    if reason:
        why = ": ".join(filter(None, (reason, text(state, "status", "message").strip(" ."))))
        return f"Pod {name} ended ({why}): ask again"
    for container in part(state, "status").get("containerStatuses") or ():
        if text(container, "state", "terminated", "reason") == "OOMKilled":
            limits = (part(c, "resources", "limits") for c in part(state, "spec").get("containers") or ())
            memory = next((str(own["memory"]) for own in limits if own.get("memory")), "The amount")
            return f"{memory} of memory did not suffice for pod {name} (OOMKilled): name more with --memory"
    return ""
