"""The objects of one attempt, as plain dicts: ConfigMap, training Job, the Job before it, and the Service of several
nodes. Pure: the same resource gives the same bytes."""

from typing import Any

from lora_operator.rendering.environment import RENDEZVOUS_PORT
from lora_operator.rendering.pod_template import CONFIG_KEY, pod_spec
from lora_operator.views import names
from lora_operator.views.budget import Used, backoff_limit, seconds_left
from lora_operator.views.config import OperatorConfig
from lora_operator.views.model import FineTune
from lora_operator.views.names import Role
from lora_operator.views.request import PodRequest, Policy, Request
from lora_trainer.contract.config import TrainConfig
from lora_trainer.contract.exit_codes import FINAL, ExitCode
from lora_trainer.contract.manifest import API_VERSION, KIND

Manifest = dict[str, Any]
_NOTHING = Used()


def render_config_map(finetune: FineTune, train: TrainConfig) -> Manifest:
    """The run's configuration; immutable, so that a pod that is tried again reads what the first one read."""
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": _metadata(finetune, train.run.attempt),
        "immutable": True,
        "data": {CONFIG_KEY: train.to_json()},
    }


def render_service(finetune: FineTune, train: TrainConfig) -> Manifest:
    """Names for the pods of several nodes. They meet before they are ready, so unready ones have names too."""
    metadata = _metadata(finetune, train.run.attempt)
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": metadata,
        "spec": {
            "clusterIP": "None",
            "publishNotReadyAddresses": True,
            "selector": {"batch.kubernetes.io/job-name": metadata["name"]},
            "ports": [{"name": "rendezvous", "port": RENDEZVOUS_PORT}],
        },
    }


def render_job(
    finetune: FineTune, request: Request, train: TrainConfig, config: OperatorConfig, used: Used = _NOTHING
) -> Manifest:
    """The training Job of the attempt that `train` names. Indexed, so that names and hostnames are known beforehand.

    `used` is what the run used up before.
    """
    metadata = _metadata(finetune, train.run.attempt)
    nodes = request.pod.nodes
    kind: Manifest = {"completionMode": "Indexed", "completions": nodes, "parallelism": nodes}
    if nodes > 1:
        # Node 0 publishes. A node that was lost after the training finds nobody to train with: it need not come back.
        kind["successPolicy"] = {"rules": [{"succeededIndexes": "0"}]}
    template = pod_spec(Role.TRAIN, request.pod, train, metadata["name"], config)
    metadata["annotations"] = _remembered(used)
    return _job(request, metadata, kind | _limits(request.policy, used, nodes), template)


def render_prepare_job(
    finetune: FineTune, request: Request, train: TrainConfig, config: OperatorConfig, used: Used = _NOTHING
) -> Manifest:
    """The Job that fetches model and data into the cache before GPUs are asked for. It reads the same ConfigMap."""
    attempt = train.run.attempt
    metadata = _metadata(finetune, attempt, Role.PREPARE)
    config_map = metadata["name"]
    metadata["name"] = names.prepare_name(finetune.name, finetune.uid, attempt)
    kind: Manifest = {"completions": 1, "parallelism": 1}
    template = pod_spec(Role.PREPARE, request.pod, train, config_map, config)
    metadata["annotations"] = _remembered(used)
    return _job(request, metadata, kind | _limits(request.policy, used, 1), template)


def suspend_annotation(intent: bool) -> dict[str, str]:
    """Remembers the user's wish last applied, so that a queue's own suspension is not taken for a change of it."""
    return {names.SUSPEND_ANNOTATION: "true" if intent else "false"}


def pods_of(role: Role, pod: PodRequest) -> int:
    """How many pods a Job has at a time."""
    return pod.nodes if role is Role.TRAIN else 1


def _remembered(used: Used) -> dict[str, str]:
    """What a later change of `maxRetries` must know of the time before the Job."""
    return {names.RETRIES_ANNOTATION: str(used.retries)}


def _limits(policy: Policy, used: Used, pods: int) -> Manifest:
    deadline_s = seconds_left(policy, used)
    deadline = {} if deadline_s is None else {"activeDeadlineSeconds": deadline_s}
    return {"backoffLimit": backoff_limit(policy, used, pods), **deadline}


def _job(request: Request, metadata: Manifest, kind: Manifest, template: Manifest) -> Manifest:
    policy, pod = request.policy, request.pod
    labels = metadata["labels"]
    metadata["labels"] = {**labels, **pod.queue_labels}
    metadata["annotations"] |= suspend_annotation(policy.suspend)
    spec: Manifest = {
        **kind,
        # A queue admits the Job by lifting the suspension; without one nothing holds it but the user's own wish.
        "suspend": policy.suspend or names.QUEUE_LABEL in pod.queue_labels,
        # A new pod is made only when the old one has ended: two must never write the same output.
        "podReplacementPolicy": "Failed",
        "podFailurePolicy": _pod_failure_policy(),
        "template": {"metadata": {"labels": labels}, "spec": template},
    }
    return {"apiVersion": "batch/v1", "kind": "Job", "metadata": metadata, "spec": spec}


def _metadata(finetune: FineTune, attempt: int, role: Role = Role.TRAIN) -> Manifest:
    return {
        "name": names.child_name(finetune.name, finetune.uid, attempt),
        "namespace": finetune.namespace,
        "labels": names.child_labels(finetune.name, finetune.uid, attempt, role),
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
    codes = {"containerName": names.TRAINER_CONTAINER, "operator": "In"}
    final = {**codes, "values": [int(code) for code in FINAL]}
    told_to_stop = {**codes, "values": [int(ExitCode.TERMINATED)]}
    return {
        "rules": [
            {"action": "Ignore", "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]},
            {"action": "FailJob", "onExitCodes": final},
            # A pod that somebody deleted saves and ends so; what else sends it so far is counted by the operator.
            {"action": "Ignore", "onExitCodes": told_to_stop},
        ]
    }
