"""Labels, annotations and names of what the operator makes: the same after every restart, so that a POST is atomic.

A child is the run's by its controller reference. Its name says which stage of which attempt it is; labels are an index.
"""

import re

from lora_trainer.spec.names import SUFFIX_LENGTH, run_suffix

GROUP = "lora-operator.io"
UID_LABEL = "lora-operator.io/uid"
NAME_LABEL = "lora-operator.io/name"
ATTEMPT_LABEL = "lora-operator.io/attempt"
MANAGED_BY_LABEL = "app.kubernetes.io/managed-by"
MANAGED_BY = "lora-operator"
SUSPEND_ANNOTATION = "lora-operator.io/suspend"
RETRIES_ANNOTATION = "lora-operator.io/retries-before"
IMAGE_ANNOTATION = "lora-operator.io/image"
CONFIG_ANNOTATION = "lora-operator.io/config"
ROLE_LABEL = "lora-operator.io/role"
# A label and an annotation.
INDEX_LABEL = "batch.kubernetes.io/job-completion-index"
FAILURES_ANNOTATION = "batch.kubernetes.io/job-index-failure-count"
JOB_NAME_LABEL = "batch.kubernetes.io/job-name"
CONTROLLER_UID_LABEL = "batch.kubernetes.io/controller-uid"
GPU_MEMORY_LABEL = "nvidia.com/gpu.memory"
QUEUE_LABEL = "kueue.x-k8s.io/queue-name"
QUEUE_LABELS = (QUEUE_LABEL, "kueue.x-k8s.io/priority-class")
COLLECTING = ("orphan", "foregroundDeletion")
"""Finalizers of garbage collection's own: it is at work on the children of what has one."""
TRAINER_CONTAINER = "trainer"

_LONGEST = 63
_INDEX = len("-63")
_JOB_NAME = re.compile(r"-([1-9][0-9]{0,3})(?:-([a-z]+))?$")
_SUFFIX = re.compile(rf"-([a-z2-7]{{{SUFFIX_LENGTH}}}){_JOB_NAME.pattern}")


TRAIN = "train"
"""The last stage of every run, whose Job has the attempt's own name; that of another stage adds the stage's."""
PREFLIGHT = "preflight"
FIRST = 1
"""The attempt whose preflight is the run's, for all that follow."""


def child_name(name: str, uid: str, attempt: int) -> str:
    """Name of the training Job and the Service of an attempt; a pod's hostname adds its index."""
    suffix = f"-{run_suffix(uid)}-{attempt}"
    return name[: _LONGEST - _INDEX - len(suffix)] + suffix


def job_name(name: str, uid: str, attempt: int, stage: str = TRAIN) -> str:
    """Name of the Job of a stage of an attempt."""
    if stage == TRAIN:
        return child_name(name, uid, attempt)
    suffix = f"-{run_suffix(uid)}-{attempt}-{stage}"
    return name[: _LONGEST - len(suffix)] + suffix


def place_of(job_name: str) -> tuple[int, str]:
    """Attempt and stage of the Job with this name; 0 where the name is none of ours."""
    match = _JOB_NAME.search(job_name)
    return (int(match[1]), match[2] or TRAIN) if match else (0, TRAIN)


def is_of_another(job_name: str, uid: str) -> bool:
    """Whether the Job with this name is that of a run with another uid; not where the name is none of ours."""
    match = _SUFFIX.search(job_name)
    return match is not None and match[1] != run_suffix(uid)


def child_labels(name: str, uid: str, attempt: int, stage: str = TRAIN) -> dict[str, str]:
    """Labels of a Job, its pods and a Service, by which watches select them."""
    return {
        "app.kubernetes.io/name": "lora-trainer",
        MANAGED_BY_LABEL: MANAGED_BY,
        UID_LABEL: uid,
        NAME_LABEL: name,
        ATTEMPT_LABEL: str(attempt),
        ROLE_LABEL: stage,
    }
