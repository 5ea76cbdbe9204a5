"""After the end: a Job that still goes on is stopped, and one that has ended gets its time to live.

Kubernetes deletes it then. The resource, its status, the result and the checkpoints stay, and Services as long as the
resource. One on its way out is left to garbage collection, with what it owns.
"""

from datetime import datetime, timedelta

from lora_operator.decision.case import Case
from lora_operator.decision.stages.order import job_names
from lora_operator.decision.stages.preflight import FIRST
from lora_operator.views.conditions import Type, previous_condition, result_of
from lora_operator.views.defaults import kept_ttl_s
from lora_operator.views.jobs import is_ending, is_of
from lora_operator.views.model import FineTune, ObjectRef, Observed, Patch, Plan
from lora_operator.views.names import PREFLIGHT, child_name, job_name
from lora_operator.views.request import read_policy
from lora_operator.views.wording import integer_of, parse_instant

_LATELY = timedelta(days=1)


def on_the_way_out(case: Case) -> Plan:
    """The plan for a resource that is being deleted. Its children have an owner reference, and go with it.

    While somebody else's finalizer keeps it nothing is collected, so Jobs that go on are stopped here, those that have
    lost their labels included. Without a controller they are orphans by now, as whoever deleted it may have wished.
    """
    status = case.finetune.status
    if not case.finetune.lingers:
        return Plan(status=status)
    jobs = (job for job in case.children.jobs if job.owners is None)
    going = (job for job in jobs if not job.deleting and not is_ending(job))
    delete = tuple(ObjectRef(kind="Job", name=job.name, uid=job.uid) for job in going)
    return Plan(status=status, delete=delete, read_first=True, job_names=job_names(case))


def clean_up(finetune: FineTune, observed: Observed) -> tuple[tuple[Patch, ...], tuple[ObjectRef, ...]]:
    """The patches that give Jobs their time to live, and the Jobs that are to be stopped. Only after the verdict.

    Not before: a Job that is gone confirms no success. Without a time to live Jobs keep the one that others gave them.
    """
    jobs = [job for job in observed.jobs if is_of(finetune, job) and not job.deleting]
    ttl_s = read_policy(finetune.manifest, kept_ttl_s(finetune.status)).ttl_s
    late = [job for job in jobs if is_ending(job) and ttl_s is not None and job.ttl_s != ttl_s]
    left_out = observed.undone if observed.rejection is None else (*observed.undone, *observed.refused)
    wanted = (
        # The uid is a precondition.
        Patch(name=job.name, body={"metadata": {"uid": job.uid}, "spec": {"ttlSecondsAfterFinished": ttl_s}})
        for job in late
    )
    # The operator gave these up; pods that run on would hold their GPUs, and write what nobody looks at.
    given_up = (ObjectRef(kind="Job", name=job.name, uid=job.uid) for job in jobs if not is_ending(job))
    return tuple(patch for patch in wanted if patch not in left_out), tuple(given_up)


def may_go_on_unseen(finetune: FineTune, now: datetime) -> tuple[str, ...]:
    """The Job of a run that failed lately: it was given up, perhaps, and lost its labels, by which a watch shows it."""
    ended_at = parse_instant(finetune.status.get("completionTime"))
    if result_of(finetune.status) != "failed" or ended_at is None or now - ended_at > _LATELY:
        return ()
    attempt = integer_of(finetune.status.get("attempt")) or 0
    if 0 < attempt < 10_000:
        return (child_name(finetune.name, finetune.uid, attempt),)
    looked = previous_condition(finetune, Type.PREFLIGHT_PASSED)
    return (job_name(finetune.name, finetune.uid, FIRST, PREFLIGHT),) if looked else ()
