"""After the end: the time to live of a finished run's Job. The resource, its status and the adapter stay."""

from datetime import datetime, timedelta

from lora_operator.model import FineTune, ObjectRef, Observed
from lora_operator.names import child_name
from lora_operator.request import read_nodes, read_policy
from lora_operator.wording import parse_instant


def expired_objects(
    finetune: FineTune, observed: Observed, now: datetime
) -> tuple[tuple[ObjectRef, ...], float | None]:
    """What is to be deleted now, or the seconds until something is. Only where the verdict is stored already."""
    ttl_s = read_policy(finetune.manifest).ttl_s
    ended_at = parse_instant(finetune.status.get("completionTime"))
    jobs = [job for job in observed.jobs if job.owner_uid == finetune.uid and not job.deleting]
    if ttl_s is None or ended_at is None or not jobs:
        return (), None
    left_s = (ended_at + timedelta(seconds=ttl_s) - now).total_seconds()
    if left_s > 0:
        return (), left_s
    # ConfigMaps and Services first: they are not watched, and the Job is what reminds us of them.
    kinds = ("ConfigMap", "Service") if read_nodes(finetune.manifest) > 1 else ("ConfigMap",)
    attempts = range(1, max(job.attempt for job in jobs) + 1)
    unwatched = (
        ObjectRef(kind=kind, name=child_name(finetune.name, finetune.uid, n), uid="")
        for n in attempts
        for kind in kinds
    )
    return (*unwatched, *(ObjectRef(kind="Job", name=job.name, uid=job.uid) for job in jobs)), None
