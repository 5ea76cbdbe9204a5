"""Labels, annotations and names of what the operator makes: the same after every restart, so that a POST is atomic."""

import enum

from lora_trainer.contract.names import run_suffix

GROUP = "lora-operator.io"
UID_LABEL = "lora-operator.io/uid"
NAME_LABEL = "lora-operator.io/name"
ATTEMPT_LABEL = "lora-operator.io/attempt"
MANAGED_BY_LABEL = "app.kubernetes.io/managed-by"
MANAGED_BY = "lora-operator"
SUSPEND_ANNOTATION = "lora-operator.io/suspend"
RETRIES_ANNOTATION = "lora-operator.io/retries-before"
ROLE_LABEL = "lora-operator.io/role"
INDEX_LABEL = "batch.kubernetes.io/job-completion-index"
QUEUE_LABEL = "kueue.x-k8s.io/queue-name"
QUEUE_LABELS = (QUEUE_LABEL, "kueue.x-k8s.io/priority-class")
TRAINER_CONTAINER = "trainer"

_LONGEST = 63
_INDEX = len("-63")


class Role(enum.StrEnum):
    """What a Job of a run does: it trains, or it fetches model and data into the cache beforehand."""

    TRAIN = "train"
    PREPARE = "prepare"


def child_name(name: str, uid: str, attempt: int) -> str:
    """Name of the training Job, the ConfigMap and the Service of an attempt; a pod's hostname adds its index."""
    suffix = f"-{run_suffix(uid)}-{attempt}"
    return name[: _LONGEST - _INDEX - len(suffix)] + suffix


def attempt_of(job_name: str) -> int:
    """The attempt whose training Job has this name; 0 where the name is none of that kind."""
    number = job_name.rpartition("-")[2]
    return int(number) if number.isdecimal() and len(number) < 6 else 0


def prepare_name(name: str, uid: str, attempt: int) -> str:
    """Name of the Job that fetches model and data before that attempt."""
    suffix = f"-{run_suffix(uid)}-{attempt}-{Role.PREPARE.value}"
    return name[: _LONGEST - len(suffix)] + suffix


def child_labels(name: str, uid: str, attempt: int, role: Role = Role.TRAIN) -> dict[str, str]:
    """Labels of a ConfigMap, a Job and its pods; the uid is what the operator selects by."""
    return {
        "app.kubernetes.io/name": "lora-trainer",
        MANAGED_BY_LABEL: MANAGED_BY,
        UID_LABEL: uid,
        NAME_LABEL: name,
        ATTEMPT_LABEL: str(attempt),
        ROLE_LABEL: role.value,
    }
