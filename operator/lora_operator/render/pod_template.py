"""The pod of a stage: restricted, and alike but for what the stage asks for."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from lora_operator.model import names
from lora_operator.model.config import OperatorConfig
from lora_operator.model.request import PodRequest
from lora_operator.render.environment import RENDEZVOUS_PORT, environment
from lora_operator.render.placement import preflight_placement, training_placement
from lora_operator.render.volumes import CONFIG_FILE, CONFIG_FOLDER, Volume, as_manifests, volumes
from lora_trainer.spec.config import TrainConfig
from lora_trainer.spec.progress import PORT

Manifest = dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """What the pod of a stage is for: the trainer's `command`, and whether it trains.

    A pod that trains asks for GPUs, writes the output, answers for its progress, and meets those of other nodes. Any
    other looks and fetches, in the image and on what the operator's configuration gives it.
    """

    command: str
    trains: bool


TRAINING = Shape(command="run", trains=True)


def pod_template(
    shape: Shape, pod: PodRequest, train: TrainConfig, config: OperatorConfig, *, name: str, labels: Manifest
) -> Manifest:
    """The template of a Job's pods. `name` is that of the attempt's training Job, which its Service shares.

    The run's configuration is an annotation, which the pod reads as a file: a Job's template is immutable, so that a
    pod that is tried again reads what the first one read, and no object beside the Job can be missing.
    """
    annotations = {**config.pod_annotations, names.CONFIG_ANNOTATION: train.to_json(indent=None)}
    metadata = {"labels": labels, "annotations": annotations}
    return {"metadata": metadata, "spec": _pod_spec(shape, pod, train, name, config)}


def _pod_spec(shape: Shape, pod: PodRequest, train: TrainConfig, name: str, config: OperatorConfig) -> Manifest:
    several = shape.trains and pod.nodes > 1
    own = volumes(pod, train, config, writes=shape.trains)
    sources, mounts = as_manifests(own)
    rendezvous = f"{name}-0.{name}:{RENDEZVOUS_PORT}" if several else ""
    variables = environment(pod, train, config, trains=shape.trains, rendezvous=rendezvous)
    spec: Manifest = {
        "restartPolicy": "Never",
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "terminationGracePeriodSeconds": config.termination_grace_s,
        "securityContext": _security_context(config),
        "containers": [_container(shape, pod, variables, mounts, config)],
        "volumes": sources,
    }
    optional = {
        # Gives each pod the address HOSTNAME.SUBDOMAIN, under which its peers find it.
        "subdomain": name if several else None,
        **_placement(shape, pod, config, own),
        "priorityClassName": pod.priority_class_name,
        "runtimeClassName": pod.runtime_class_name if shape.trains else None,
        "imagePullSecrets": [{"name": name} for name in config.image_pull_secrets],
        "serviceAccountName": config.trainer_service_account_name,
    }
    return {**spec, **{key: value for key, value in optional.items() if value}}


def _security_context(config: OperatorConfig) -> Manifest:
    chosen = {"runAsUser": config.run_as_user, "runAsGroup": config.run_as_group, "fsGroup": config.fs_group}
    return {
        "runAsNonRoot": True,
        **{field: number for field, number in chosen.items() if number},
        "fsGroupChangePolicy": "OnRootMismatch",
        "seccompProfile": {"type": "RuntimeDefault"},
    }


def _placement(shape: Shape, pod: PodRequest, config: OperatorConfig, own: Iterable[Volume]) -> Manifest:
    if shape.trains:
        return training_placement(pod)
    mounts_claim = any("persistentVolumeClaim" in volume.source for volume in own)
    return preflight_placement(pod, config, mounts_claim=mounts_claim)


def _container(
    shape: Shape, pod: PodRequest, variables: list[Manifest], mounts: list[Manifest], config: OperatorConfig
) -> Manifest:
    # What looks at a run without a cache fetches no weights.
    fills = ["--fill-cache"] if pod.cache_claim and not shape.trains else []
    listens: Manifest = {
        "ports": [{"name": "metrics", "containerPort": PORT}],
        "livenessProbe": _liveness_probe(),
    }
    return {
        "name": names.TRAINER_CONTAINER,
        "image": config.trainer_image if shape.trains else config.preflight_image or config.trainer_image,
        "imagePullPolicy": config.image_pull_policy,
        "args": [shape.command, "--config", f"{CONFIG_FOLDER}/{CONFIG_FILE}", *fills],
        "env": variables,
        "resources": _resources(pod) if shape.trains else _small_resources(config),
        **(listens if shape.trains else {}),
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


def _resources(pod: PodRequest) -> Manifest:
    devices = {name: str(count) for name, count in pod.extended_resources.items()}
    if pod.gpus:
        devices = {pod.gpu_resource_name: str(pod.gpus), **devices}
    storage = {"ephemeral-storage": pod.ephemeral_storage} if pod.ephemeral_storage else {}
    return {
        "requests": {"cpu": pod.cpu, "memory": pod.memory, **storage},
        "limits": {"memory": pod.memory, **devices},
    }


def _small_resources(config: OperatorConfig) -> Manifest:
    memory = config.preflight_memory
    return {"requests": {"cpu": config.preflight_cpu, "memory": memory}, "limits": {"memory": memory}}
