"""Which Jobs are this run's, which attempt is it, and which pods belong to it."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from lora_operator.views import names
from lora_operator.views.jobs import ending_of, is_of
from lora_operator.views.model import FineTune, JobView, Observed, PodView
from lora_operator.views.pods import has_ended, newest_first
from lora_operator.views.wording import integer_of


@dataclass(frozen=True, slots=True, kw_only=True)
class Children:
    """`attempt` is the present one, 0 before the first. `job` is its training Job; None where it does not exist.

    `expected`: a training Job was made before, so a missing one was deleted. `orphans` are living pods that train and
    whose Job does not exist. `stages` are the Jobs of the stages before the training, of the next attempt or, where
    that has a Job, of the present one, by the name of their stage, those included that had ended when they were
    deleted. `jobs` are all Jobs of the run, `former` the last states of those that do not exist any more.
    """

    attempt: int
    job: JobView | None
    pods: tuple[PodView, ...]
    expected: bool
    orphans: tuple[PodView, ...]
    stages: Mapping[str, JobView] = field(default_factory=dict)
    jobs: tuple[JobView, ...] = ()
    former: tuple[JobView, ...] = ()

    @property
    def number(self) -> int:
        """The attempt that is under way or, without a training Job, comes next."""
        return self.attempt if self.job else self.attempt + 1


def find_children(finetune: FineTune, observed: Observed) -> Children:
    """Sort out what was observed. The count of attempts survives in the status and in the Jobs: the larger holds."""
    mine = [job for job in observed.jobs if is_of(finetune, job)]
    own = [job for job in mine if job.stage == names.TRAIN]
    training = [pod for pod in observed.pods if pod.stage == names.TRAIN]
    stored = integer_of(finetune.status.get("attempt")) or 0
    stored = stored if 0 < stored < 10_000 else 0
    attempt = max([stored, *(job.attempt for job in own)])
    job = next((job for job in own if job.attempt == attempt), None)
    known = {job.uid for job in mine}
    number = attempt if job else attempt + 1
    former = tuple(job for job in observed.former_jobs if is_of(finetune, job))
    # How a Job ended is final, also where something deleted it before that was read: a cleaner, or its own TTL.
    ended = tuple(job for job in former if ending_of(job) is not None)
    return Children(
        attempt=attempt,
        job=job,
        pods=tuple(pod for pod in training if _belongs(pod, job, attempt)),
        expected=stored > 0,
        orphans=tuple(pod for pod in newest_first(training) if pod.job_uid not in known and not has_ended(pod)),
        stages={
            other.stage: other for other in (*ended, *mine) if other.stage != names.TRAIN and other.attempt == number
        },
        jobs=tuple(mine),
        former=former,
    )


def _belongs(pod: PodView, job: JobView | None, attempt: int) -> bool:
    return pod.job_uid == job.uid if job else pod.attempt == attempt
