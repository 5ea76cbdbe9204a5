"""The ConfigMap and the Job of one attempt, as plain dicts. Pure: the same resource gives the same bytes."""

from collections.abc import Mapping
from typing import Any

from lora_operator import names
from lora_operator.config import OperatorConfig
from lora_operator.model import FineTune
from lora_operator.request import PodRequest, Request
from lora_trainer.contract.config import TrainConfig
from lora_trainer.contract.exit_codes import FINAL
from lora_trainer.contract.manifest import API_VERSION, KIND
from lora_trainer.contract.progress import PORT
from lora_trainer.contract.uri import ClaimUri, ConfigMapUri, parse_uri

CONFIG_KEY = "config.json"
CONFIG_FOLDER = "/etc/lora"
CLAIMS_FOLDER = "/claims"
CONFIG_MAPS_FOLDER = "/configmaps"
CACHE_FOLDER = "/cache"
TOKEN_KEY = "HF_TOKEN"  # noqa: S105 - the name of a key in a Secret, not a token
USER_ID = 10001
SHARED_MEMORY = "1Gi"

Manifest = dict[str, Any]


def render_config_map(finetune: FineTune, train: TrainConfig) -> Manifest:
    """The run's configuration; immutable, so that a pod that is tried again reads what the first one read."""
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": _metadata(finetune, train.run.attempt),
        "immutable": True,
        "data": {CONFIG_KEY: train.to_json()},
    }


def render_job(finetune: FineTune, request: Request, train: TrainConfig, config: OperatorConfig) -> Manifest:
    """The Job of the attempt that `train` names. Indexed, so that the pod's name and hostname are known beforehand."""
    policy, pod = request.policy, request.pod
    metadata = _metadata(finetune, train.run.attempt)
    labels = metadata["labels"]
    metadata["labels"] = {**labels, **pod.queue_labels}
    metadata["annotations"] = suspend_annotation(policy.suspend)
    spec: Manifest = {
        "completionMode": "Indexed",
        "completions": 1,
        "parallelism": 1,
        "backoffLimit": policy.max_retries,
        # A queue admits the Job by lifting the suspension; without one nothing holds it but the user's own wish.
        "suspend": policy.suspend or names.QUEUE_LABEL in pod.queue_labels,
        # A new pod is made only when the old one has ended: two must never write the same output.
        "podReplacementPolicy": "Failed",
        "podFailurePolicy": _pod_failure_policy(),
        "template": {"metadata": {"labels": labels}, "spec": _pod_spec(pod, train, metadata["name"], config)},
    }
    if policy.active_deadline_s is not None:
        spec["activeDeadlineSeconds"] = policy.active_deadline_s
    return {"apiVersion": "batch/v1", "kind": "Job", "metadata": metadata, "spec": spec}


def suspend_annotation(intent: bool) -> dict[str, str]:
    """Remembers the user's wish last applied, so that a queue's own suspension is not taken for a change of it."""
    return {names.SUSPEND_ANNOTATION: "true" if intent else "false"}


def _metadata(finetune: FineTune, attempt: int) -> Manifest:
    return {
        "name": names.child_name(finetune.name, finetune.uid, attempt),
        "namespace": finetune.namespace,
        "labels": names.child_labels(finetune.name, finetune.uid, attempt),
        "ownerReferences": [
            {
                "apiVersion": API_VERSION,
                "kind": KIND,
                "name": finetune.name,
                "uid": finetune.uid,
                "controller": True,
                "blockOwnerDeletion": True,
            }
        ],
    }


def _pod_failure_policy() -> Manifest:
    final = {"containerName": names.TRAINER_CONTAINER, "operator": "In", "values": [int(code) for code in FINAL]}
    return {
        "rules": [
            {"action": "Ignore", "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]},
            {"action": "FailJob", "onExitCodes": final},
        ]
    }


def _pod_spec(pod: PodRequest, train: TrainConfig, config_map: str, config: OperatorConfig) -> Manifest:
    volumes, mounts = _volumes(train, config_map)
    spec: Manifest = {
        "restartPolicy": "Never",
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "terminationGracePeriodSeconds": config.termination_grace_s,
        "securityContext": {
            "runAsNonRoot": True,
            "runAsUser": USER_ID,
            "runAsGroup": USER_ID,
            "fsGroup": USER_ID,
            "fsGroupChangePolicy": "OnRootMismatch",
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "containers": [_container(pod, mounts, config)],
        "volumes": volumes,
    }
    optional = {
        "nodeSelector": dict(pod.node_selector),
        "tolerations": [dict(toleration) for toleration in pod.tolerations],
        "priorityClassName": pod.priority_class_name,
        "imagePullSecrets": [{"name": name} for name in config.image_pull_secrets],
        "serviceAccountName": config.trainer_service_account_name,
    }
    return {**spec, **{key: value for key, value in optional.items() if value}}


def _container(pod: PodRequest, mounts: list[Manifest], config: OperatorConfig) -> Manifest:
    return {
        "name": names.TRAINER_CONTAINER,
        "image": config.trainer_image,
        "imagePullPolicy": config.image_pull_policy,
        "args": ["run", "--config", f"{CONFIG_FOLDER}/{CONFIG_KEY}"],
        "env": _environment(pod, config),
        "ports": [{"name": "metrics", "containerPort": PORT}],
        "resources": _resources(pod, config),
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        },
        "terminationMessagePolicy": "FallbackToLogsOnError",
        "volumeMounts": mounts,
    }


def _environment(pod: PodRequest, config: OperatorConfig) -> list[Manifest]:
    plain = {"HOME": "/tmp", "HF_HOME": CACHE_FOLDER, "HF_HUB_DISABLE_TELEMETRY": "1"}  # noqa: S108 - an emptyDir
    if config.hub_endpoint:
        # The Hub's chunk store is another host, which a mirror of the Hub does not stand in for.
        plain |= {"HF_ENDPOINT": config.hub_endpoint, "HF_HUB_DISABLE_XET": "1"}
    secrets = {"MODEL_HF_TOKEN": pod.model_secret, "DATASET_HF_TOKEN": pod.dataset_secret}
    return [{"name": name, "value": value} for name, value in plain.items()] + [
        {"name": name, "valueFrom": {"secretKeyRef": {"name": secret, "key": TOKEN_KEY}}}
        for name, secret in secrets.items()
        if secret
    ]


def _resources(pod: PodRequest, config: OperatorConfig) -> Manifest:
    memory = pod.memory or config.default_memory
    gpus = {pod.gpu_resource_name: str(pod.gpus)} if pod.gpus else {}
    return {"requests": {"cpu": pod.cpu or config.default_cpu, "memory": memory}, "limits": {"memory": memory, **gpus}}


def _volumes(train: TrainConfig, config_map: str) -> tuple[list[Manifest], list[Manifest]]:
    volumes: list[Manifest] = [
        {"name": "config", "configMap": {"name": config_map}},
        {"name": "tmp", "emptyDir": {}},
        {"name": "cache", "emptyDir": {}},
        {"name": "shared-memory", "emptyDir": {"medium": "Memory", "sizeLimit": SHARED_MEMORY}},
    ]
    mounts: list[Manifest] = [
        {"name": "config", "mountPath": CONFIG_FOLDER, "readOnly": True},
        {"name": "tmp", "mountPath": "/tmp"},  # noqa: S108 - an emptyDir
        {"name": "cache", "mountPath": CACHE_FOLDER},
        {"name": "shared-memory", "mountPath": "/dev/shm"},  # noqa: S108 - an emptyDir
    ]
    for index, (claim, writable) in enumerate(_claims(train).items()):
        volumes.append({"name": f"claim-{index}", "persistentVolumeClaim": {"claimName": claim}})
        mount = {"name": f"claim-{index}", "mountPath": f"{CLAIMS_FOLDER}/{claim}"}
        mounts.append(mount if writable else {**mount, "readOnly": True})
    dataset = parse_uri(train.dataset.uri)
    if isinstance(dataset, ConfigMapUri):
        items = [{"key": dataset.key, "path": dataset.key}]
        volumes.append({"name": "dataset", "configMap": {"name": dataset.name, "items": items}})
        mounts.append({"name": "dataset", "mountPath": f"{CONFIG_MAPS_FOLDER}/{dataset.name}", "readOnly": True})
    return volumes, mounts


def _claims(train: TrainConfig) -> Mapping[str, bool]:
    """Claims of the run, each once, in the order model, data set, output; True where the run may write."""
    claims: dict[str, bool] = {}
    for address, writable in ((train.model.uri, False), (train.dataset.uri, False), (train.output.uri, True)):
        uri = parse_uri(address)
        if isinstance(uri, ClaimUri):
            claims[uri.claim] = writable  # the output comes last, so that its claim ends up writable
    return claims
