"""The pod that trains, or that fetches model and data beforehand: restricted, and alike but for what it asks for."""

from typing import Any

from lora_operator.rendering.environment import RENDEZVOUS_PORT, environment
from lora_operator.rendering.volumes import CONFIG_FOLDER, as_manifests, volumes
from lora_operator.views import names
from lora_operator.views.config import OperatorConfig
from lora_operator.views.names import Role
from lora_operator.views.request import PodRequest
from lora_trainer.contract.config import TrainConfig
from lora_trainer.contract.progress import PORT

CONFIG_KEY = "config.json"
USER_ID = 10001
_COMMANDS = {Role.TRAIN: "run", Role.PREPARE: "prepare"}

Manifest = dict[str, Any]


def pod_spec(role: Role, pod: PodRequest, train: TrainConfig, name: str, config: OperatorConfig) -> Manifest:
    """Spec of the pod. `name` is that of the attempt's ConfigMap, which its training Job and its Service share."""
    sources, mounts = as_manifests(volumes(role, pod, train, name, config))
    rendezvous = f"{name}-0.{name}:{RENDEZVOUS_PORT}" if role is Role.TRAIN and pod.nodes > 1 else ""
    variables = environment(role, pod, train, config, rendezvous)
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
        "containers": [_container(role, pod, variables, mounts, config)],
        "volumes": sources,
    }
    optional = {
        # Gives each pod the address HOSTNAME.SUBDOMAIN, under which its peers find it.
        "subdomain": name if role is Role.TRAIN and pod.nodes > 1 else None,
        # Fetching needs no GPU and so no node that has one, but storage and taints may be those of the training.
        "nodeSelector": dict(pod.node_selector) if role is Role.TRAIN else None,
        "tolerations": [dict(toleration) for toleration in pod.tolerations],
        "priorityClassName": pod.priority_class_name,
        "imagePullSecrets": [{"name": name} for name in config.image_pull_secrets],
        "serviceAccountName": config.trainer_service_account_name,
    }
    return {**spec, **{key: value for key, value in optional.items() if value}}


def _container(
    role: Role, pod: PodRequest, variables: list[Manifest], mounts: list[Manifest], config: OperatorConfig
) -> Manifest:
    listens: Manifest = {
        "ports": [{"name": "metrics", "containerPort": PORT}],
        "livenessProbe": _liveness_probe(),
    }
    return {
        "name": names.TRAINER_CONTAINER,
        "image": config.trainer_image,
        "imagePullPolicy": config.image_pull_policy,
        "args": [_COMMANDS[role], "--config", f"{CONFIG_FOLDER}/{CONFIG_KEY}"],
        "env": variables,
        "resources": _resources(pod, config) if role is Role.TRAIN else _small_resources(config),
        **(listens if role is Role.TRAIN else {}),
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        },
        "terminationMessagePolicy": "FallbackToLogsOnError",
        "volumeMounts": mounts,
    }


def _liveness_probe() -> Manifest:
    """The last resort against a trainer that hangs: it ends itself first, and says so, wherever it still can.

    Slow to judge, since a busy node starves the answer long before it starves the training.
    """
    return {
        "httpGet": {"path": "/healthz", "port": "metrics"},
        "initialDelaySeconds": 60,
        "periodSeconds": 30,
        "timeoutSeconds": 10,
        "failureThreshold": 4,
    }


def _resources(pod: PodRequest, config: OperatorConfig) -> Manifest:
    memory = pod.memory or config.default_memory
    gpus = {pod.gpu_resource_name: str(pod.gpus)} if pod.gpus else {}
    return {"requests": {"cpu": pod.cpu or config.default_cpu, "memory": memory}, "limits": {"memory": memory, **gpus}}


def _small_resources(config: OperatorConfig) -> Manifest:
    memory = config.prepare_memory
    return {"requests": {"cpu": config.prepare_cpu, "memory": memory}, "limits": {"memory": memory}}
