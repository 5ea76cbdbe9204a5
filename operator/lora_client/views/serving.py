"""Manifests that serve an adapter: vLLM as a Deployment, or below KServe."""

import shlex
from typing import Any

from lora_client.errors import ClientError
from lora_client.views.helper_pod import adapter_place
from lora_client.views.kept_pod import gpus, placement
from lora_client.views.resources import Object, name_of, namespace_of, part, text
from lora_trainer.contract.device_section import GPU_RESOURCE
from lora_trainer.contract.uri import ClaimUri

SERVERS = ("vllm", "kserve")
IMAGE = "vllm/vllm-openai:latest"
PORT = 8000
_MERGED = ("merged", "peft+merged")
_TEMPLATE = "chat_template.jinja"
_FOLDER = "/adapters"
_BASE = "/base"


def manifests(run: Object, kind: str) -> list[dict[str, Any]]:
    """What `kubectl apply` takes. Raises `ClientError` where vLLM cannot serve the result."""
    place = adapter_place(run)
    artifact = part(run, "status", "artifact")
    if artifact.get("servable") is False:
        raise ClientError(
            f"The adapter of {name_of(run)} cannot be served: {artifact.get('serving') or 'nobody looked'}"
        )
    container, volumes = _server(run, place)
    name = name_of(run)
    metadata = {"name": name, "namespace": namespace_of(run)}
    if kind == "kserve":
        served = [{**container, "name": "kserve-container"}]
        predictor = {"containers": served, "volumes": volumes, **placement(run)}
        head = {"apiVersion": "serving.kserve.io/v1beta1", "kind": "InferenceService"}
        return [{**head, "metadata": metadata, "spec": {"predictor": predictor}}]
    labels = {"app.kubernetes.io/name": "vllm", "app.kubernetes.io/instance": name}
    template = {
        "metadata": {"labels": labels},
        "spec": {"containers": [container], "volumes": volumes, **placement(run)},
    }
    spec = {"replicas": 1, "selector": {"matchLabels": labels}, "template": template}
    port = {"name": "http", "port": 80, "targetPort": PORT}
    return [
        {"apiVersion": "apps/v1", "kind": "Deployment", "metadata": metadata, "spec": spec},
        {"apiVersion": "v1", "kind": "Service", "metadata": metadata, "spec": {"selector": labels, "ports": [port]}},
    ]


def _server(run: Object, place: ClaimUri) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    artifact, name = part(run, "status", "artifact"), name_of(run)
    claims = {place.claim: _FOLDER}
    folder = f"{_FOLDER}/{place.path}"
    variables: list[dict[str, Any]] = []
    if artifact.get("format") in _MERGED:
        model = folder if artifact["format"] == "merged" else f"{folder}/merged"
        arguments = [f"--model={model}", f"--served-model-name={name}"]
    else:
        arguments = [*_base(run, claims), *_flags(str(artifact.get("serving", "")), folder)]
        arguments += ["--lora-modules", f"{name}={folder}"]
        if secret := text(run, "spec", "model", "secretRef", "name"):
            reference = {"secretKeyRef": {"name": secret, "key": "HF_TOKEN", "optional": True}}
            variables = [{"name": "HF_TOKEN", "valueFrom": reference}]
    resource, count = gpus(run)
    if count > 1:
        arguments.append(f"--tensor-parallel-size={count}")
    names = {claim: f"claim-{index}" for index, claim in enumerate(claims)}
    container = {
        "name": "vllm",
        "image": IMAGE,
        "args": arguments,
        **({"env": variables} if variables else {}),
        "ports": [{"name": "http", "containerPort": PORT}],
        "readinessProbe": {"httpGet": {"path": "/health", "port": PORT}, "periodSeconds": 10},
        "resources": {"limits": {resource or GPU_RESOURCE: str(max(1, count))}},
        "volumeMounts": [{"name": names[c], "mountPath": path, "readOnly": True} for c, path in claims.items()],
    }
    volumes = [{"name": names[c], "persistentVolumeClaim": {"claimName": c, "readOnly": True}} for c in claims]
    return container, volumes


def _base(run: Object, claims: dict[str, str]) -> list[str]:
    """Which base model the server loads; one on a claim is mounted, by the same volume where that is the adapter's."""
    address = text(run, "spec", "model", "uri")
    scheme, _, rest = address.partition("://")
    if scheme == "hf":
        revision = text(run, "status", "artifact", "baseRevision") or text(run, "status", "resolved", "modelRevision")
        return [f"--model={rest.partition('@')[0]}", *([f"--revision={revision}"] if revision else [])]
    if scheme == "pvc":
        claim, _, path = rest.partition("/")
        return [f"--model={claims.setdefault(claim, _BASE)}/{path}"]
    raise ClientError(
        f"The base model of {name_of(run)} is at {address}, from where vLLM loads none: copy it to a claim, and put "
        "its path into --model of a manifest of your own"
    )


def _flags(serving: str, folder: str) -> list[str]:
    """A path among the flags is relative to the adapter's folder."""
    return [f"{folder}/{flag}" if flag == _TEMPLATE else flag for flag in shlex.split(serving)]
