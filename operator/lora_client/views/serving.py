"""Manifests that serve an adapter: vLLM as a Deployment, or below KServe."""

import shlex
from collections.abc import Iterable
from typing import Any

from lora_client.errors import ClientError
from lora_client.views.helper_pod import adapter_place, claims_of, exclusive_mode
from lora_client.views.hub_access import HubAccess, hub_access, lost_access
from lora_client.views.kept_pod import CACHE, cpu_and_memory, gpus, placement
from lora_client.views.resources import Object, name_of, namespace_of, part, text
from lora_trainer.spec.device_section import GPU_RESOURCE
from lora_trainer.spec.quantity import at_least, size_of
from lora_trainer.spec.serving import lora_module
from lora_trainer.spec.uri import ClaimUri

_PODS = (("template", "spec"), ("predictor",))
"""Where a server's pod stands in a manifest."""
SERVERS = ("vllm", "kserve")
IMAGE = "vllm/vllm-openai:v0.32.0"
"""The oldest release that serves every adapter that is called servable (`HONOURS_PATTERNS`). A tag without a release
would start whatever was pushed last."""
PORT = 8000
_MERGED = ("merged", "peft+merged")
_TEMPLATE = "chat_template.jinja"
_FOLDER = "/adapters"
_BASE = "/base"
_COMMAND = ("vllm", "serve")
"""Older images begin with a program that takes no model's name as its first argument."""
_LENGTH = "--max-model-len=auto"
"""Without it vLLM wants room for the longest prompt that the model knows, which a small GPU lacks."""
_SHARED = "shared-memory"
_USER = 10001
"""As which runs train, whose files the server reads."""
_SECURITY_CONTEXT = {
    "runAsNonRoot": True,
    "runAsUser": _USER,
    "runAsGroup": _USER,
    "allowPrivilegeEscalation": False,
    "capabilities": {"drop": ["ALL"]},
    "seccompProfile": {"type": "RuntimeDefault"},
}
"""What the restricted Pod Security Standard wants, at the container, as Knative takes nothing of that at the pod."""
_HOME = ({"name": "HOME", "value": "/tmp"}, {"name": "USER", "value": "vllm"})  # noqa: S108 - of the container
"""What a user lacks that the image does not know."""
_NO_CACHE = (
    "The training was offline (HF_HUB_OFFLINE), and the server has no cache to load the model from: the variable is "
    "left out, so that the server asks the Hub; if it cannot, copy the model to a claim, mount that, and name its path "
    "as the model in args"
)
_LEAST_LIMIT = 20 * 2**30
"""Bytes of main memory that a server may take at least; vLLM's own guide for Kubernetes gives a 7B model 20 GB."""


def manifests(run: Object, kind: str, template: Object | None = None) -> list[dict[str, Any]]:
    """What `kubectl apply` takes. `template` is the pod template of the run's latest Job, empty where that is gone.
    Raises `ClientError` where vLLM cannot serve the result."""
    place = adapter_place(run)
    artifact = part(run, "status", "artifact")
    if artifact.get("servable") is False:
        raise ClientError(
            f"The adapter of {name_of(run)} cannot be served: {artifact.get('serving') or 'its status gives no reason'}"
        )
    container, volumes = _server(run, place, _access(run, kind, template))
    name = name_of(run)
    metadata = {"name": name, "namespace": namespace_of(run)}
    if kind == "kserve":
        # Knative takes no name of a port but h2c and http1.
        resources = _with_cpu_limit(container["resources"])
        own = {"name": "kserve-container", "ports": [{"containerPort": PORT}], "resources": resources}
        served = [{**container, **own}]
        predictor = {"containers": served, "volumes": volumes, **placement(run)}
        head = {"apiVersion": "serving.kserve.io/v1beta1", "kind": "InferenceService"}
        return [{**head, "metadata": metadata, "spec": {"predictor": predictor}}]
    labels = {"app.kubernetes.io/name": "vllm", "app.kubernetes.io/instance": name}
    pod = {
        "metadata": {"labels": labels},
        "spec": {
            "securityContext": {"fsGroup": _USER, "fsGroupChangePolicy": "OnRootMismatch"},
            "containers": [container],
            "volumes": volumes,
            **placement(run),
        },
    }
    # A second server beside the first would wait for another GPU, and on another node for a ReadWriteOnce claim.
    spec = {"replicas": 1, "strategy": {"type": "Recreate"}, "selector": {"matchLabels": labels}, "template": pod}
    port = {"name": "http", "port": 80, "targetPort": PORT}
    return [
        {"apiVersion": "apps/v1", "kind": "Deployment", "metadata": metadata, "spec": spec},
        {"apiVersion": "v1", "kind": "Service", "metadata": metadata, "spec": {"selector": labels, "ports": [port]}},
    ]


def claims(documents: Iterable[Object]) -> tuple[str, ...]:
    """The claims that the servers among the manifests mount."""
    specs = [part(document, "spec") for document in documents]
    return tuple(claim for spec in specs for key in _PODS for claim in claims_of(part(spec, *key)))


def note_of_claim(name: str, claim: Object | None) -> str:
    """What a server that mounts it means for runs; empty for a claim of many nodes. None is one that cannot be read."""
    mode = "" if claim is None else exclusive_mode(claim)
    if claim is not None and not mode:
        return ""
    which = f"The claim {name} ({mode})" if mode else f"Unless it is ReadWriteMany, the claim {name}"
    where = "with the server's pod" if mode == "ReadWriteOncePod" else "on the server's node"
    return (
        f"{which} stays {where} for as long as the server exists: runs that mount it wait elsewhere, with their GPUs "
        "idle; give them another claim, or copy what is served to a claim of its own"
    )


def notes(run: Object, template: Object | None = None, *, kind: str = "vllm", unread: str = "") -> list[str]:
    """What whoever applies them should know, a sentence each: of the model's heads and its length nothing is known.
    `unread` says why the run's Job cannot be read."""
    remedy = "add them to env and volumes before you apply this"
    lost = lost_access(run, template or {}, remedy, unread) if _by_the_hub(run) else ""
    found = [lost] if lost else []
    if _access(run, kind, template).lacks_cache:
        found.append(_NO_CACHE)
    resolved, count = _resolved(run), _gpus(run)
    held = str(resolved.get("quantization") or "None")
    if held != "None":
        found.append(
            f"The training held the base in {held}, vLLM holds it in 16 bits: where the GPU lacks that memory, add "
            "--quantization=bitsandbytes to args, which holds it in 4"
        )
    if count > 1:
        found.append(
            f"--tensor-parallel-size={count} needs a number of attention heads that {count} divides: for another "
            f"model, write --pipeline-parallel-size={count} in its place"
        )
    over = int((resolved.get("sharded") and resolved.get("shardedOver")) or 1)
    if over > count:
        found.append(
            f"The training divided the base over {over} GPUs of several nodes, this server has {count} of one: where "
            "the base does not fit, raise the GPUs in limits and args"
        )
    cpu, memory = _cpu_and_memory(run)
    if cpu and memory:
        found.append(
            f"The requests, CPU {cpu} and memory {memory}, are the training's for as many GPUs, in case a quota counts "
            "them: where the server is OOMKilled, raise the memory in limits"
        )
    found.append(
        f"{_LENGTH} takes prompts and answers as long as the GPU's memory allows, from vLLM 0.14 on: for a fixed "
        "length, write a number of tokens in place of auto"
    )
    found.append(f"The image is {IMAGE}: for a model that is newer, name a later release in its place")
    found.append(
        f"The server runs as user {_USER}, as the restricted Pod Security Standard requires, and vLLM's image has "
        "not been tested with it: where it does not start, remove securityContext, and on OpenShift only the ids in it"
    )
    return found


def _access(run: Object, kind: str, template: Object | None) -> HubAccess:
    # Knative mounts no claim that is written to, as the cache is.
    return hub_access(run, template or {}, cached=kind == "vllm") if _by_the_hub(run) else HubAccess()


def _by_the_hub(run: Object) -> bool:
    """Whether the server fetches the base model: one that was merged lies beside the adapter."""
    return text(run, "spec", "model", "uri").startswith("hf://") and not _is_merged(run)


def _is_merged(run: Object) -> bool:
    return text(run, "status", "artifact", "format") in _MERGED


def _server(run: Object, place: ClaimUri, access: HubAccess) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    artifact, name = part(run, "status", "artifact"), name_of(run)
    claims = {place.claim: _FOLDER}
    folder = f"{_FOLDER}/{place.path}"
    variables: list[dict[str, Any]] = []
    if _is_merged(run):
        model = folder if artifact["format"] == "merged" else f"{folder}/merged"
        arguments = [model, f"--served-model-name={name}"]
    else:
        arguments = [*_base(run, claims), *_flags(str(artifact.get("serving", "")), folder)]
        arguments += ["--lora-modules", lora_module(name, folder)]
        if secret := text(run, "spec", "model", "secretRef", "name"):
            reference = {"secretKeyRef": {"name": secret, "key": "HF_TOKEN", "optional": True}}
            variables = [{"name": "HF_TOKEN", "valueFrom": reference}]
    arguments.append(_LENGTH)
    count = _gpus(run)
    if count > 1:
        arguments.append(f"--tensor-parallel-size={count}")
    mounts, volumes = _volumes(claims, access, shared=count > 1)
    container = {
        "name": "vllm",
        "image": IMAGE,
        "command": list(_COMMAND),
        "args": arguments,
        "env": [*variables, *access.variables, *map(dict, _HOME)],
        "securityContext": _SECURITY_CONTEXT,
        "ports": [{"name": "http", "containerPort": PORT}],
        "readinessProbe": {"httpGet": {"path": "/health", "port": PORT}, "periodSeconds": 10},
        "resources": _resources(run, count),
        "volumeMounts": mounts,
    }
    return container, volumes


def _resources(run: Object, count: int) -> dict[str, dict[str, str]]:
    """What a quota counts is stated: Kubernetes refuses what does not, or gives it a default too small for vLLM."""
    cpu, memory = _cpu_and_memory(run)
    gpu = {gpus(run)[0] or GPU_RESOURCE: str(count)}
    limit = at_least(memory, _LEAST_LIMIT) if memory else ""
    found = {"requests": {"cpu": cpu, "memory": memory}, "limits": {"memory": limit, **gpu}}
    stated = {kind: {name: value for name, value in own.items() if value} for kind, own in found.items()}
    return {kind: own for kind, own in stated.items() if own}


def _cpu_and_memory(run: Object) -> tuple[str, str]:
    """The training's, for the server's share of its GPUs: what its pod had, and no less memory than was planned."""
    cpu, memory = cpu_and_memory(run)
    planned = text(run, "status", "plan", "podMemoryBytes")
    memory = at_least(memory or "0", int(planned)) if planned.isdecimal() else memory
    parts = max(1, gpus(run)[1] // _gpus(run))
    cores, size = size_of(cpu), size_of(memory)
    if parts == 1 or cores is None or size is None:
        return cpu, memory
    return str(-(-cores // parts)), at_least("0", -(-size // parts))


def _with_cpu_limit(resources: dict[str, dict[str, str]]) -> dict[str, dict[str, str]]:
    """KServe sets a limit of one CPU where none stands, and a request above its limit is invalid."""
    cpu = resources.get("requests", {}).get("cpu")
    return {**resources, "limits": {"cpu": cpu, **resources["limits"]}} if cpu else resources


def _gpus(run: Object) -> int:
    """One, which held the whole base in training, or as many as it was divided over in a pod."""
    return max(1, gpus(run)[1]) if _resolved(run).get("sharded") else 1


def _resolved(run: Object) -> dict[str, Any]:
    return part(run, "status", "resolved")


def _volumes(
    claims: dict[str, str], access: HubAccess, *, shared: bool
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Mounts and volumes. Processes that divide a model share memory, of which a container has 64 MiB by itself."""
    names = {claim: f"claim-{index}" for index, claim in enumerate(claims)}
    mounts: list[dict[str, Any]] = [
        {"name": names[claim], "mountPath": path, "readOnly": True} for claim, path in claims.items()
    ]
    if access.cache:
        # A claim that stands in two volumes of a pod may be waited for without end.
        mounts.append({"name": names.setdefault(access.cache, "cache"), "mountPath": CACHE})
    volumes: list[dict[str, Any]] = [
        {"name": name, "persistentVolumeClaim": {"claimName": claim, **_read_only(claim != access.cache)}}
        for claim, name in names.items()
    ]
    if shared:
        mounts.append({"name": _SHARED, "mountPath": "/dev/shm"})  # noqa: S108 - a volume of memory
        volumes.append({"name": _SHARED, "emptyDir": {"medium": "Memory"}})
    return [*mounts, *access.mounts], [*volumes, *access.volumes]


def _read_only(read: bool) -> dict[str, bool]:
    return {"readOnly": True} if read else {}


def _base(run: Object, claims: dict[str, str]) -> list[str]:
    """Which base model the server loads; one on a claim is mounted, by the same volume where that is the adapter's."""
    address = text(run, "spec", "model", "uri")
    scheme, _, rest = address.partition("://")
    if scheme == "hf":
        revision = text(run, "status", "artifact", "baseRevision") or text(run, "status", "resolved", "modelRevision")
        return [rest.partition("@")[0], *([f"--revision={revision}"] if revision else [])]
    if scheme == "pvc":
        claim, _, path = rest.partition("/")
        return [f"{claims.setdefault(claim, _BASE)}/{path}"]
    raise ClientError(
        f"The base model of {name_of(run)} is at {address}, from where vLLM loads none: copy it to a claim, and "
        "name its path as the model in a manifest of your own"
    )


def _flags(serving: str, folder: str) -> list[str]:
    """A path among the flags is relative to the adapter's folder."""
    return [f"{folder}/{flag}" if flag == _TEMPLATE else flag for flag in shlex.split(serving)]
