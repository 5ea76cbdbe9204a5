"""After the end: a Job that still goes on is stopped, and one that is old enough is removed.

The resource, its status, the result and the checkpoints stay. A resource on its way out is left to garbage collection.
"""

from collections.abc import Iterator, Sequence
from datetime import datetime, timedelta

from lora_operator.decision.case import Case
from lora_operator.decision.stages.order import job_names
from lora_operator.decision.stages.preflight import FIRST
from lora_operator.views.conditions import Type, previous_condition, result_of
from lora_operator.views.defaults import kept_ttl_s
from lora_operator.views.jobs import is_ending, is_of
from lora_operator.views.model import FineTune, JobView, ObjectRef, Observed, Plan
from lora_operator.views.names import PREFLIGHT, child_name, job_name
from lora_operator.views.request import read_nodes, read_policy
from lora_operator.views.wording import integer_of, parse_instant

# Of the last attempts: anyone who may create Jobs can give one the name of attempt 9999.
_MOST_SERVICES = 16
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


def expired_objects(
    finetune: FineTune, observed: Observed, now: datetime
) -> tuple[tuple[ObjectRef, ...], float | None]:
    """What is to be deleted now, or the seconds until something is. Only where the verdict is stored already."""
    jobs = [job for job in observed.jobs if is_of(finetune, job) and not job.deleting]
    ttl_s = read_policy(finetune.manifest, kept_ttl_s(finetune.status)).ttl_s
    ended_at = parse_instant(finetune.status.get("completionTime"))
    left_s = None
    if ttl_s is not None and ended_at is not None and jobs:
        left_s = (ended_at + timedelta(seconds=ttl_s) - now).total_seconds()
    if left_s is not None and left_s <= 0:
        return tuple(_with_services(finetune, jobs)), None
    # The operator gave these up; pods that run on would hold their GPUs, and write what nobody looks at.
    return tuple(_with_services(finetune, [job for job in jobs if not is_ending(job)])), left_s


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


def _with_services(finetune: FineTune, jobs: Sequence[JobView]) -> Iterator[ObjectRef]:
    """These Jobs and, before them, their Services: those are not watched, and a Job is what reminds us of them."""
    if read_nodes(finetune.manifest) > 1:
        last = max((job.attempt for job in jobs), default=0)
        for attempt in range(max(1, last + 1 - _MOST_SERVICES), last + 1):
            yield ObjectRef(kind="Service", name=child_name(finetune.name, finetune.uid, attempt), uid="")
    for job in jobs:
        yield ObjectRef(kind="Job", name=job.name, uid=job.uid)
