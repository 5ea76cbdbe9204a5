"""Which Job is this run's, which attempt is it, and which pods belong to it."""

from dataclasses import dataclass

from lora_operator.views.jobs import ending_of
from lora_operator.views.model import FineTune, JobView, Observed, PodView
from lora_operator.views.names import Role, child_name
from lora_operator.views.pods import has_ended, newest_first


@dataclass(frozen=True, slots=True, kw_only=True)
class Children:
    """`attempt` is the present one, 0 before the first. `job` is its Job; None where it is not there (any more).

    `expected`: a Job was made before, so a missing one was deleted. `orphans` are living pods whose Job is gone.
    `foreign`: the next attempt's name is taken by a Job that belongs to someone else. All of these train; `preparing`
    is the Job that fetches model and data for the next attempt, or did so for the present one. `jobs` are all of the
    run that are there, of both kinds. `superseded` are Jobs of earlier attempts that have not ended: a request of an
    operator that was cut off, say, may make one long after another operator has gone on.
    """

    attempt: int
    job: JobView | None
    pods: tuple[PodView, ...]
    expected: bool
    orphans: tuple[PodView, ...]
    foreign: bool
    preparing: JobView | None = None
    preparing_pods: tuple[PodView, ...] = ()
    jobs: tuple[JobView, ...] = ()
    superseded: tuple[JobView, ...] = ()

    @property
    def next_attempt(self) -> int:
        """The attempt that a new Job would be."""
        return self.attempt + 1


def find_children(finetune: FineTune, observed: Observed) -> Children:
    """Sort out what was observed. The count of attempts survives in the status and in the Jobs: the larger holds."""
    mine = [job for job in observed.jobs if job.owner_uid == finetune.uid]
    own = [job for job in mine if job.role is Role.TRAIN]
    training = [pod for pod in observed.pods if pod.role is Role.TRAIN]
    stored = finetune.status.get("attempt")
    stored = stored if isinstance(stored, int) and not isinstance(stored, bool) and 0 < stored < 10_000 else 0
    attempt = max([stored, *(job.attempt for job in own)])
    job = next((job for job in own if job.attempt == attempt), None)
    known = {job.uid for job in mine}
    next_name = child_name(finetune.name, finetune.uid, attempt + 1)
    number = attempt if job else attempt + 1
    preparing = next((other for other in mine if other.role is Role.PREPARE and other.attempt == number), None)
    return Children(
        attempt=attempt,
        job=job,
        pods=tuple(pod for pod in training if _belongs(pod, job, attempt)),
        expected=stored > 0,
        orphans=tuple(pod for pod in newest_first(training) if pod.job_uid not in known and not has_ended(pod)),
        foreign=any(other.name == next_name and other.owner_uid != finetune.uid for other in observed.jobs),
        preparing=preparing,
        preparing_pods=tuple(pod for pod in observed.pods if preparing and pod.job_uid == preparing.uid),
        jobs=tuple(mine),
        superseded=tuple(job for job in own if job.attempt < attempt and ending_of(job) is None),
    )


def _belongs(pod: PodView, job: JobView | None, attempt: int) -> bool:
    return pod.job_uid == job.uid if job else pod.attempt == attempt
