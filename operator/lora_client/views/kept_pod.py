"""What the training pods of a run were given, by its spec and status alone: its Job may be gone."""

from typing import Any

from lora_client.views.resources import Object, part, text
from lora_operator.model.gpu_nodes import gpu_labels, with_labels

TRAINER = "trainer"
CACHE = "/cache"
_PLACEMENT = ("nodeSelector", "tolerations", "affinity", "runtimeClassName")
_KEYS = {"hf": ("HF_TOKEN",), "s3": ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN")}


def placement(run: Object) -> dict[str, Any]:
    """Where it trained, as fields of a pod; its GPUs as the operator asks for them."""
    found = {**part(run, "spec", "scheduling"), **_kept(run)}
    asked = part(run, "spec", "resources")
    wanted = gpu_labels(gpus(run)[1], asked.get("gpuMinMemoryGiB"), asked.get("gpuProducts") or ())
    found["affinity"] = with_labels(found.get("affinity") or {}, wanted)
    return {key: found[key] for key in _PLACEMENT if found.get(key)}


def gpus(run: Object) -> tuple[str, int]:
    """Under which name the cluster offers its GPUs, empty where nothing tells it; how many each pod had."""
    count = int(text(run, "spec", "resources", "gpus") or 1)
    return text(run, "spec", "resources", "gpuResourceName") or text(_kept(run), "gpuResourceName"), count


def cpu_and_memory(run: Object) -> tuple[str, str]:
    """What each pod requested, as quantities; empty where nothing tells it."""
    asked, kept = part(run, "spec", "resources"), _kept(run)
    return text(kept, "cpu") or text(asked, "cpu"), text(kept, "memory") or text(asked, "memory")


def kept_pod(run: Object) -> dict[str, Any]:
    """Placement, resources, environment and cache, as the specification of a pod."""
    claim = text(_kept(run), "cacheClaim")
    trainer = {"name": TRAINER, "env": _environment(run), "resources": _resources(run)}
    if not claim:
        return {**placement(run), "containers": [trainer]}
    mounts = [{"name": "cache", "mountPath": CACHE}]
    volumes = [{"name": "cache", "persistentVolumeClaim": {"claimName": claim}}]
    return {**placement(run), "containers": [{**trainer, "volumeMounts": mounts}], "volumes": volumes}


def _kept(run: Object) -> dict[str, Any]:
    return part(run, "status", "resolved", "pod")


def _resources(run: Object) -> dict[str, Any]:
    cpu, memory = cpu_and_memory(run)
    resource, count = gpus(run)
    disk = text(run, "spec", "resources", "ephemeralStorage")
    requests = {"cpu": cpu, "memory": memory, "ephemeral-storage": disk}
    limits = {"memory": memory, **({resource: str(count)} if count else {})}
    return {
        kind: {name: value for name, value in given.items() if name and value}
        for kind, given in (("requests", requests), ("limits", limits))
    }


def _environment(run: Object) -> list[dict[str, Any]]:
    """Secrets as references, never read. Of the operator's own configuration, such as a mirror, nothing is known."""
    plain = {"HOME": "/tmp", "HF_HOME": CACHE, "HF_HUB_DISABLE_TELEMETRY": "1"}  # noqa: S108 - an emptyDir
    for name, value in part(_kept(run), "environment").items():
        # Of a proxy some libraries look for the one spelling only, some for the other.
        plain |= {name: str(value), **({name.lower(): str(value)} if name.endswith("_PROXY") else {})}
    variables: list[dict[str, Any]] = [{"name": name, "value": value} for name, value in plain.items()]
    secret = text(run, "spec", "model", "secretRef", "name")
    scheme = text(run, "spec", "model", "uri").partition("://")[0]
    for key in _KEYS.get(scheme, ()) if secret else ():
        reference = {"secretKeyRef": {"name": secret, "key": key, "optional": True}}
        variables.append({"name": f"MODEL_{key}", "valueFrom": reference})
    return variables
