"""All that a decision about one LoRAFineTune looks at, read and counted once."""

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from lora_operator.decision.children import Children, find_children
from lora_operator.decision.proof import Evidence
from lora_operator.decision.results import kept_max_validation_rows, kept_quantization
from lora_operator.decision.retries import Cause, Retries, count_ends, stored_retries
from lora_operator.decision.rounds import Rounds
from lora_operator.decision.spent_time import SpentTime, follow_time, stored_time
from lora_operator.views.budget import Used
from lora_operator.views.conditions import state_of
from lora_operator.views.config import OperatorConfig
from lora_operator.views.defaults import defaults_for
from lora_operator.views.jobs import suspension_of
from lora_operator.views.model import FineTune, JobView, Observed, PodView, WorkloadView
from lora_operator.views.names import child_name
from lora_operator.views.request import Request, read_request
from lora_operator.views.wording import block_of, integer_of, text_of
from lora_trainer.contract.manifest import RunOptions
from lora_trainer.contract.reasons import Reason


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """`request` is read as for the attempt that is present or, without a Job, next; `spent` and `retries` are up to
    date, with what the status does not say yet. `rounds` are all pods of the run that are known."""

    finetune: FineTune
    observed: Observed
    config: OperatorConfig
    now: datetime
    children: Children
    request: Request
    spent: SpentTime
    retries: Retries
    rounds: Rounds

    @property
    def evidence(self) -> Evidence:
        """Against what a pod's claim of a success is held."""
        image = self.rendered_image if self.config.require_rendered_image else ""
        return Evidence(jobs=self.children.jobs, former=self.children.former, image=image)

    @property
    def resolved(self) -> dict[str, Any]:
        """What the status says is resolved for the present attempt; empty where a crash came before it could."""
        is_of_this = (integer_of(self.finetune.status.get("attempt")) or 0) >= self.children.attempt
        return block_of(self.finetune.status, "resolved") if is_of_this else {}

    @property
    def rendered_image(self) -> str:
        """The image that the operator rendered for the present attempt's training, by the configuration of that time.

        Never empty: no rendered image is known only where no Job is, which then confirms nothing either. A Job that the
        status does not know yet may be anybody's: where the image is a proof, it may name none but those of the
        configuration and of the attempt before.
        """
        known, ours = text_of(self.resolved.get("image")), self.config.trainer_image
        jobs = (*self.children.jobs, *self.children.former)
        by_job = next((job.image for job in jobs if job.name == self.job_name), "")
        before = text_of(block_of(self.finetune.status, "resolved").get("image"))
        is_plausible = not self.config.require_rendered_image or by_job in {ours, before}
        return known or (by_job if is_plausible else "") or ours

    @property
    def job_name(self) -> str:
        """Name of the present attempt's Job; empty before the first."""
        attempt = self.children.attempt
        return child_name(self.finetune.name, self.finetune.uid, attempt) if attempt else ""

    @property
    def deleted_jobs(self) -> int:
        """How many training Jobs of the run somebody deleted before they were done."""
        return self.children.attempt - 1 if self.children.job else self.children.attempt

    @property
    def used(self) -> Used:
        """What is used up of the run's retries and of its time, the present period of activity not included."""
        retries = self.retries.used(self.deleted_jobs)
        return Used(retries=retries, run_s=self.spent.run_s)

    def pods_of(self, job: JobView) -> tuple[PodView, ...]:
        """The pods of a Job of the run."""
        return tuple(pod for pod in self.observed.pods if pod.job_uid == job.uid)


def read_case(finetune: FineTune, observed: Observed, config: OperatorConfig, now: datetime) -> Case:
    """Sort out what was observed of a run that has not ended."""
    children = find_children(finetune, observed)
    options = RunOptions(
        uid=finetune.uid,
        attempt=children.number,
        allow_cpu=config.allow_cpu,
        stall_timeout_s=config.stall_timeout_s,
        max_validation_rows=kept_max_validation_rows(finetune.status),
        quantization=kept_quantization(finetune.status),
        gpus=config.gpus,
    )
    defaults = defaults_for(finetune.spec, finetune.status, config)
    request = read_request(finetune.manifest, options, defaults)
    stored = stored_time(finetune.status)
    spent = follow_time(stored, children.jobs, observed.pods, now)
    rounds = Rounds(observed.pods, children.jobs, nodes=request.pod.nodes)
    retries = count_ends(stored_retries(finetune.status), rounds)
    stopped = spent.active_since is None and spent.active_until != stored.active_until
    held = stopped and _was_held_since(stored.active_since, children.jobs)
    if held and not _held_by_user(finetune, children.jobs, observed.workloads, request):
        retries = retries.with_one_more(Cause.PREEMPTED)
    return Case(
        finetune=finetune,
        observed=observed,
        config=config,
        now=now,
        children=children,
        request=request,
        spent=spent,
        retries=retries,
        rounds=rounds,
    )


def _newest(jobs: Iterable[JobView]) -> JobView | None:
    return max(jobs, key=lambda job: (job.attempt, job.created_at), default=None)


def _was_held_since(active_since: datetime | None, jobs: Iterable[JobView]) -> bool:
    """Whether the run's newest Job is suspended, and has stopped its pods, after the run became active by it.

    A stale cache shows the suspension from before; one in the same second costs the run nothing. A Job that was made
    again waits in its queue for the first time.
    """
    job = _newest(jobs)
    held = suspension_of(job) if job is not None and job.suspended else None
    if job is None or held is None or held.since is None or active_since is None:
        return False
    return job.created_at <= active_since < held.since


def _held_by_user(
    finetune: FineTune, jobs: Iterable[JobView], workloads: Iterable[WorkloadView], request: Request
) -> bool:
    """Whether the user wished it, or did and has just taken it back: the mark of that wish, or the status, says so."""
    job = _newest(jobs)
    marked = job is not None and (
        job.suspend_intent or any(w.suspend_intent and w.job_uid == job.uid for w in workloads)
    )
    known = state_of(finetune.status) == Reason.SUSPENDED_BY_USER
    return bool(request.policy.suspend or marked or known)
