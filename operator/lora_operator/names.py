"""Labels, annotations and names of what the operator makes: the same after every restart, so that a POST is atomic."""

from lora_trainer.contract.names import run_suffix

UID_LABEL = "lora-operator.io/uid"
NAME_LABEL = "lora-operator.io/name"
ATTEMPT_LABEL = "lora-operator.io/attempt"
MANAGED_BY_LABEL = "app.kubernetes.io/managed-by"
MANAGED_BY = "lora-operator"
SUSPEND_ANNOTATION = "lora-operator.io/suspend"
QUEUE_LABEL = "kueue.x-k8s.io/queue-name"
QUEUE_LABELS = (QUEUE_LABEL, "kueue.x-k8s.io/priority-class")
TRAINER_CONTAINER = "trainer"

_LONGEST = 63 - len("-0")


def child_name(name: str, uid: str, attempt: int) -> str:
    """Name of the Job and the ConfigMap of an attempt; its pod's hostname is two characters longer."""
    suffix = f"-{run_suffix(uid)}-{attempt}"
    return name[: _LONGEST - len(suffix)] + suffix


def child_labels(name: str, uid: str, attempt: int) -> dict[str, str]:
    """Labels of a ConfigMap, a Job and its pods; the uid is what the operator selects by."""
    return {
        "app.kubernetes.io/name": "lora-trainer",
        MANAGED_BY_LABEL: MANAGED_BY,
        UID_LABEL: uid,
        NAME_LABEL: name,
        ATTEMPT_LABEL: str(attempt),
    }
