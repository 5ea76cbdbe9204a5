"""What a Job says of itself: whether it has ended, is about to, or holds its pods back."""

from lora_operator.model import names
from lora_operator.model.objects import ConditionView, FineTune, JobView

FAILED_CREATE = "FailedCreate"
"""Reason of the Event by which the Job controller says that the cluster refuses a pod."""

_ENDED = ("Complete", "Failed")
_ENDING = (*_ENDED, "SuccessCriteriaMet", "FailureTarget")


def is_of(finetune: FineTune, job: JobView) -> bool:
    """Whether the Job is the run's, and has the name that the operator gives."""
    name = names.job_name(finetune.name, finetune.uid, job.attempt, job.stage)
    return job.owner_uid == finetune.uid and job.name == name


def ending_of(job: JobView) -> ConditionView | None:
    """The condition by which the Job says that it has ended, well or badly, with all its pods."""
    return _true(job, _ENDED)


def failing_of(job: JobView) -> ConditionView | None:
    """The condition by which the Job says that it has failed or will, once it has stopped the pods that still run."""
    return _true(job, ("Failed", "FailureTarget"))


def is_ending(job: JobView) -> bool:
    """Whether the Job has ended or will do so by itself, once it has stopped the pods that still run."""
    return _true(job, _ENDING) is not None


def is_succeeding(job: JobView) -> bool:
    """Whether the Job has counted a pod that did its work, or has met what counts as its success."""
    return job.succeeded > 0 or _true(job, ("Complete", "SuccessCriteriaMet")) is not None


def suspension_of(job: JobView) -> ConditionView | None:
    """The condition by which the Job says that it was suspended and has its pods stopped.

    `JobView.suspended` is the wish; this is its fulfilment, which comes a moment later and has a time.
    """
    return _true(job, ("Suspended",))


def _true(job: JobView, kinds: tuple[str, ...]) -> ConditionView | None:
    return next((c for c in job.conditions if c.type in kinds and c.status == "True"), None)
