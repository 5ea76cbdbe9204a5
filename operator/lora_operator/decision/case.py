"""All that a decision about one LoRAFineTune looks at, read and counted once."""

from dataclasses import dataclass
from datetime import datetime

from lora_operator.decision.children import Children, find_children
from lora_operator.decision.retries import Cause, Retries, count_pods, stored_retries
from lora_operator.decision.spent_time import SpentTime, follow_time, stored_time
from lora_operator.views.budget import Used
from lora_operator.views.config import OperatorConfig
from lora_operator.views.jobs import suspension_of
from lora_operator.views.model import FineTune, Observed
from lora_operator.views.names import Role, child_name
from lora_operator.views.request import Request, read_request
from lora_trainer.contract.manifest import RunOptions


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """`request` is read as for the attempt that is present or, without a Job, next; `spent` and `retries` are up to
    date, with what the status does not tell yet."""

    finetune: FineTune
    observed: Observed
    config: OperatorConfig
    now: datetime
    children: Children
    request: Request
    spent: SpentTime
    retries: Retries

    def memory(self, role: Role) -> str:
        """The memory limit of a pod that trains or prepares."""
        if role is Role.PREPARE:
            return self.config.prepare_memory
        return self.request.pod.memory or self.config.default_memory

    @property
    def next_name(self) -> str:
        """Name of the ConfigMap and the training Job of the attempt that the request is read for."""
        children = self.children
        attempt = children.attempt if children.job else children.next_attempt
        return child_name(self.finetune.name, self.finetune.uid, attempt)

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


def read_case(finetune: FineTune, observed: Observed, config: OperatorConfig, now: datetime) -> Case:
    """Sort out what was observed of a run that has not ended."""
    children = find_children(finetune, observed)
    attempt = children.attempt if children.job else children.next_attempt
    options = RunOptions(
        uid=finetune.uid, attempt=attempt, allow_cpu=config.allow_cpu, stall_timeout_s=config.stall_timeout_s
    )
    request = read_request(finetune.manifest, options)
    stored = stored_time(finetune.status)
    spent = follow_time(stored, children.jobs, observed.pods)
    retries = count_pods(stored_retries(finetune.status), children.jobs, observed.pods)
    stopped = stored.active_since and spent.active_since is None and spent.active_until != stored.active_until
    if stopped and _was_taken_by_a_queue(children, request):
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
    )


def _was_taken_by_a_queue(children: Children, request: Request) -> bool:
    """Whether the Job is held, and not because the user wished it."""
    job = children.job or children.preparing
    # One that is being resumed may have been held by the user, who has just taken that back.
    held = job is not None and job.suspended and suspension_of(job) is not None
    return held and not request.policy.suspend and not (job and job.suspend_intent)
