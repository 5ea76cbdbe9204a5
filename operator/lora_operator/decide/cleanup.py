"""After the end: a Job that still goes on is stopped, and one that has ended gets its time to live.

Kubernetes deletes it then. The resource, its status, the result and the checkpoints stay, and Services as long as the
resource. One on its way out is left to garbage collection, with what it owns.
"""

from lora_operator.decide.run import Run
from lora_operator.model.defaults import kept_ttl_s
from lora_operator.model.jobs import is_ending
from lora_operator.model.objects import ObjectRef, Patch, Plan
from lora_operator.model.request import read_policy


def stop_going_on(run: Run) -> Plan:
    """The plan for a resource that is being deleted. Its children have an owner reference, and go with it.

    While somebody else's finalizer keeps it nothing is collected, so Jobs that go on are stopped here. Without a
    controller they are orphans by now, as whoever deleted it may have wished.
    """
    if not run.finetune.lingers:
        return Plan(status=run.finetune.status)
    going = (job for job in run.jobs if job.owners is None and not job.deleting and not is_ending(job))
    delete = tuple(ObjectRef(kind="Job", name=job.name, uid=job.uid) for job in going)
    return Plan(status=run.finetune.status, delete=delete)


def clean_up(run: Run) -> Plan:
    """The patches that give Jobs their time to live, and the Jobs that are to be stopped. Only after the verdict.

    Not before: a Job that is gone confirms no success. Without a time to live Jobs keep the one that others gave them.
    """
    jobs = [job for job in run.jobs if not job.deleting]
    ttl_s = read_policy(run.finetune.manifest, kept_ttl_s(run.stored.resolved)).ttl_s
    late = (job for job in jobs if is_ending(job) and ttl_s is not None and job.ttl_s != ttl_s)
    wanted = (
        # The uid is a precondition.
        Patch(name=job.name, body={"metadata": {"uid": job.uid}, "spec": {"ttlSecondsAfterFinished": ttl_s}})
        for job in late
    )
    refused = [refusal.patch for refusal in run.observed.refusals]
    # The operator gave these up; pods that run on would hold their GPUs, and write what nobody looks at.
    given_up = (ObjectRef(kind="Job", name=job.name, uid=job.uid) for job in jobs if not is_ending(job))
    return Plan(patch=tuple(patch for patch in wanted if patch not in refused), delete=tuple(given_up))
