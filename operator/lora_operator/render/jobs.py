"""The objects of one attempt, as plain dicts: the Job of a stage, and the Service of several nodes.

Pure: the same resource gives the same bytes.
"""

from typing import Any

from lora_operator.model import names
from lora_operator.model.budget import Used, backoff_limit, seconds_left
from lora_operator.model.config import OperatorConfig
from lora_operator.model.objects import FineTune
from lora_operator.model.request import Policy, Request
from lora_operator.render.environment import RENDEZVOUS_PORT
from lora_operator.render.pod_template import TRAINING, Shape, pod_template
from lora_trainer.spec.config import TrainConfig
from lora_trainer.spec.exit_codes import FINAL, ExitCode
from lora_trainer.spec.manifest import API_VERSION, KIND

Manifest = dict[str, Any]
_NOTHING = Used()
_UNLIMITED = 2**31 - 1


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
            "selector": {names.JOB_NAME_LABEL: metadata["name"]},
            "ports": [{"name": "rendezvous", "port": RENDEZVOUS_PORT}],
        },
    }


def render_job(
    finetune: FineTune,
    request: Request,
    train: TrainConfig,
    config: OperatorConfig,
    used: Used = _NOTHING,
    *,
    stage: str = names.TRAIN,
    shape: Shape = TRAINING,
) -> Manifest:
    """The Job of a stage of the attempt that `train` names; `used` is what the run used up before.

    That of the training is Indexed, so that names and hostnames are known beforehand.
    """
    policy, pod, nodes = request.policy, request.pod, request.pod.nodes if shape.trains else 1
    metadata = _metadata(finetune, train.run.attempt, stage)
    labels = metadata["labels"]
    metadata["labels"] = {**labels, **pod.queue_labels}
    name = names.child_name(finetune.name, finetune.uid, train.run.attempt)
    template = pod_template(shape, pod, train, config, name=name, labels=labels)
    metadata["annotations"] = _remembered(used, template) | suspend_annotation(policy.suspend)
    spec: Manifest = {
        **({"completionMode": "Indexed"} if shape.trains else {}),
        "completions": nodes,
        "parallelism": nodes,
        # Node 0 publishes. A node that was lost after the training finds nobody to train with: it need not come back.
        **({"successPolicy": {"rules": [{"succeededIndexes": "0"}]}} if nodes > 1 else {}),
        **_limits(policy, used, nodes),
        # A queue admits the Job by lifting the suspension; without one nothing holds it but the user's own wish.
        "suspend": policy.suspend or names.QUEUE_LABEL in pod.queue_labels,
        # A new pod is made only when the old one has ended: two must never write the same output.
        "podReplacementPolicy": "Failed",
        "podFailurePolicy": _pod_failure_policy(),
        "template": template,
    }
    return {"apiVersion": "batch/v1", "kind": "Job", "metadata": metadata, "spec": spec}


def suspend_annotation(intent: bool) -> dict[str, str]:
    """Remembers the user's wish last applied, so that a queue's own suspension is not taken for a change of it."""
    return {names.SUSPEND_ANNOTATION: "true" if intent else "false"}


def _remembered(used: Used, template: Manifest) -> dict[str, str]:
    """What a later change of `maxRetries` must know of the time before the Job, and the image, which admission may
    change in the template, and a crash may keep from the status."""
    (container,) = template["spec"]["containers"]
    return {names.RETRIES_ANNOTATION: str(used.retries), names.IMAGE_ANNOTATION: container["image"]}


def _limits(policy: Policy, used: Used, pods: int) -> Manifest:
    deadline_s = seconds_left(policy, used)
    deadline = {} if deadline_s is None else {"activeDeadlineSeconds": deadline_s}
    # Each node waits 10 s, 20 s, 40 s with its own rounds for its next pod. By the count of the Job, which each round
    # raises by all its pods, those of eight nodes would wait ten minutes after the first one.
    by_index = {"backoffLimitPerIndex": _UNLIMITED} if pods > 1 else {}
    return {"backoffLimit": backoff_limit(policy, used, pods), **by_index, **deadline}


def _metadata(finetune: FineTune, attempt: int, stage: str = names.TRAIN) -> Manifest:
    return {
        "name": names.job_name(finetune.name, finetune.uid, attempt, stage),
        "namespace": finetune.namespace,
        **marks_of(finetune, attempt, stage),
    }


def marks_of(finetune: FineTune, attempt: int, stage: str = names.TRAIN) -> Manifest:
    """The metadata by which a child is the run's, and is found."""
    return {
        "labels": names.child_labels(finetune.name, finetune.uid, attempt, stage),
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
    followed = {**codes, "values": [int(ExitCode.PEER_FAILED)]}
    return {
        "rules": [
            {"action": "Ignore", "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]},
            {"action": "FailJob", "onExitCodes": final},
            # So ends a pod that another one asked to, or that waited for it in vain: what became of that counts.
            {"action": "Ignore", "onExitCodes": followed},
        ]
    }
