"""What a watch may not have brought yet: which plans are not to be carried out before a live read."""

from lora_operator.decision.case import Case
from lora_operator.decision.stages.order import latest_job
from lora_operator.decision.stages.preflight import is_lost, is_unread
from lora_operator.views.conditions import result_of
from lora_operator.views.jobs import ending_of
from lora_operator.views.model import Plan
from lora_operator.views.pods import has_ended, ignored_by_job
from lora_operator.views.wording import text_of

_UNSEEN_PODS_S = 30.0


def rests_on_unseen(case: Case, plan: Plan) -> bool:
    """Whether the plan rests on something that the cache may not have seen, or cannot be taken back."""
    children = case.children
    missing = children.job is None and (children.expected or bool(children.orphans))
    # Its name was free once. Whoever deleted it may know more of the run than the cache, such as its deletion.
    again = {job.name for job in children.former} & {manifest["metadata"]["name"] for manifest in plan.create}
    hidden = not all(job.is_indexed for job in children.jobs) or not all(pod.is_indexed for pod in children.pods)
    fails = result_of(plan.status) == "failed"
    cannot_be_undone = fails or bool(plan.patch or plan.delete)
    unseen = is_lost(case) or is_unread(case) or _has_unseen_pods(case)
    return cannot_be_undone or missing or bool(again) or hidden or unseen


def misses_pod(case: Case) -> bool:
    """Whether the status names a pod of a Job that goes on, and none of that Job is known: it may have lost its labels.

    A Job does not count it as active once it is being deleted.
    """
    job = latest_job(case)
    if job is None or ending_of(job) is not None or case.pods_of(job):
        return False
    return text_of(case.finetune.status.get("podName")).startswith(f"{job.name}-")


def _has_unseen_pods(case: Case) -> bool:
    """Whether a Job has said for long that pods of it are active, of which none is known: they lost their labels."""
    job = latest_job(case)
    if job is None or not job.active or job.suspended or job.deleting or job.started_at is None:
        return False
    pods = case.pods_of(job)
    # A busy controller counts the end of a pod minutes late, and until then takes the pod for an active one.
    uncounted = sum(not ignored_by_job(pod) for pod in pods) - job.succeeded - job.failed
    if uncounted >= job.active:
        return False
    last = max(job.started_at, *(pod.trainer.finished_at or pod.created_at for pod in pods), job.started_at)
    return all(map(has_ended, pods)) and (case.now - last).total_seconds() > _UNSEEN_PODS_S
