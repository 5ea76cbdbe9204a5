"""All that is known of one run, each thing read and counted once, when a rule asks for it."""

import dataclasses
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property

from lora_operator.decide.active_time import ActiveTime, follow_time, stored_time
from lora_operator.decide.blocks import Block, read_block
from lora_operator.decide.ends import Retries, count_ends
from lora_operator.decide.kueue import Place, place_of
from lora_operator.decide.progress import follow_progress, stalled_since
from lora_operator.decide.results import found_by, kept_quantization
from lora_operator.decide.verdict import Evidence
from lora_operator.model import names
from lora_operator.model.budget import Used
from lora_operator.model.conditions import StateReason, Type
from lora_operator.model.config import OperatorConfig
from lora_operator.model.defaults import defaults_for
from lora_operator.model.jobs import ending_of, is_of
from lora_operator.model.objects import FineTune, JobView, MemoryLimit, Observed, PodView, WorkloadView
from lora_operator.model.pods import failures_of, has_ended, is_running, leader_first, newest_first, summary_of
from lora_operator.model.request import Policy, Request, read_request
from lora_operator.model.stored import Stored, read_stored
from lora_operator.model.wording import block_of, text_of
from lora_trainer.plan.planning import settled
from lora_trainer.spec.manifest import RunOptions
from lora_trainer.spec.quantity import at_least
from lora_trainer.spec.reasons import Reason
from lora_trainer.spec.run_plan import RunPlan
from lora_trainer.spec.summary import Summary

# Anyone who may create pods can make hundreds whose Job is not there, and each read costs the API server something.
_MOST_ORPHANED = 8


@dataclass(frozen=True, kw_only=True)
class Run:
    """One LoRAFineTune, what was observed of its children, the operator's settings and the time. All else follows."""

    finetune: FineTune
    observed: Observed
    config: OperatorConfig
    now: datetime

    def with_job(self, job: JobView) -> "Run":
        """The run as it is once this Job is made, or is changed so."""
        others = tuple(other for other in self.observed.jobs if other.name != job.name)
        run = dataclasses.replace(self, observed=dataclasses.replace(self.observed, jobs=(*others, job)))
        if run.number == self.number and "_asked" in vars(self):
            vars(run)["_asked"] = self._asked  # the same, and to read it takes longer than all else
        return run

    def with_workload(self, workload: WorkloadView) -> "Run":
        """The run as it is once its Job's Workload is changed so."""
        others = tuple(other for other in self.observed.workloads if other.name != workload.name)
        return dataclasses.replace(self, observed=dataclasses.replace(self.observed, workloads=(*others, workload)))

    # -- the status, as far as it is read back

    @cached_property
    def stored(self) -> Stored:
        """What is read back from the status."""
        return read_stored(self.finetune.status)

    # -- Jobs

    @cached_property
    def jobs(self) -> tuple[JobView, ...]:
        """All Jobs of the run that exist."""
        return tuple(job for job in self.observed.jobs if is_of(self.finetune, job))

    @cached_property
    def former(self) -> tuple[JobView, ...]:
        """The last states of Jobs that are gone since the status was written."""
        return tuple(job for job in self.observed.former_jobs if is_of(self.finetune, job))

    @cached_property
    def attempt(self) -> int:
        """The present attempt at the training, 0 before the first: the larger of what Jobs and status say."""
        return max([self.stored.attempt, *(job.attempt for job in self.jobs if job.stage == names.TRAIN)])

    @cached_property
    def training(self) -> JobView | None:
        """The present attempt's Job; None where it does not exist."""
        present = (names.TRAIN, self.attempt)
        return next((job for job in self.jobs if (job.stage, job.attempt) == present), None)

    @property
    def number(self) -> int:
        """The attempt that is under way or, without a training Job, comes next."""
        return self.attempt if self.training else self.attempt + 1

    @property
    def was_made(self) -> bool:
        """Whether a training Job was made before, so that a missing one was deleted."""
        return self.stored.attempt > 0

    @cached_property
    def preflight(self) -> JobView | None:
        """The preflight's Job, also one that had ended when it was deleted: how a Job ended is final."""
        ended = (job for job in self.former if ending_of(job) is not None)
        return next((job for job in (*self.jobs, *ended) if job.stage == names.PREFLIGHT), None)

    @property
    def job(self) -> JobView | None:
        """The Job that the run is about: that of the last stage that has one."""
        return self.training or self.preflight

    @cached_property
    def superseded(self) -> tuple[JobView, ...]:
        """Training Jobs of an earlier attempt that go on and must not: a request of an operator that was cut off may
        make one long after another has gone on."""
        going = (job for job in self.jobs if job.stage == names.TRAIN and ending_of(job) is None)
        return tuple(job for job in going if job.attempt < self.attempt)

    @property
    def job_name(self) -> str:
        """Name of the present attempt's Job; empty before the first."""
        return self.name_of(self.attempt) if self.attempt else ""

    def name_of(self, attempt: int, stage: str = names.TRAIN) -> str:
        """Name of the Job of a stage of an attempt."""
        return names.job_name(self.finetune.name, self.finetune.uid, attempt, stage)

    @cached_property
    def job_names(self) -> frozenset[str]:
        """The Jobs that the run has, had or is to have, by name: all that a live read must ask for.

        An operator that was cut off may have made the next attempt, and no other.
        """
        orphaned = [pod.attempt for pod in self.orphans if 0 < pod.attempt <= self.attempt + 1][:_MOST_ORPHANED]
        named = {self.name_of(attempt) for attempt in (max(1, self.attempt), self.attempt + 1, *orphaned)}
        preflight = {self.name_of(names.FIRST, names.PREFLIGHT)} if self.needs_preflight else set()
        return frozenset({job.name for job in self.jobs} | named | preflight)

    # -- pods

    def pods_of(self, job: JobView) -> tuple[PodView, ...]:
        """The pods that a Job of the run counts."""
        return tuple(pod for pod in self.observed.pods if job.uid and pod.job_uid == job.uid)

    @cached_property
    def job_pods(self) -> tuple[PodView, ...]:
        """The pods of the Job that the run is about."""
        return self.pods_of(self.job) if self.job is not None else ()

    @cached_property
    def failures(self) -> list[tuple[PodView, StateReason]]:
        """Which of them failed and how, newest first."""
        return failures_of(self.job_pods, self.memory)

    @cached_property
    def pods(self) -> tuple[PodView, ...]:
        """The pods of the present attempt at the training."""
        if self.training is not None:
            return self.pods_of(self.training)
        training = (pod for pod in self.observed.pods if pod.stage == names.TRAIN)
        return tuple(pod for pod in training if pod.attempt == self.attempt)

    @cached_property
    def orphans(self) -> tuple[PodView, ...]:
        """Living pods that train and whose Job does not exist."""
        known = {job.uid for job in self.jobs}
        training = (pod for pod in newest_first(self.observed.pods) if pod.stage == names.TRAIN)
        return tuple(pod for pod in training if pod.job_uid not in known and not has_ended(pod))

    # -- what it asks for

    @property
    def policy(self) -> Policy:
        """The fields that may change while the run goes on."""
        return self._asked.policy

    @cached_property
    def request(self) -> Request:
        """The resource understood, as for the attempt that is present or comes next.

        What its configuration leaves open is as the preflight's plan says, in each attempt.
        """
        asked, found = self._asked, self.findings.get("plan")
        plan = read_block(RunPlan, found) if found else None
        if asked.train is None or plan is None:
            return asked
        pod = asked.pod
        if pod.memory is not None and "memory" not in block_of(self.finetune.spec, "resources"):
            pod = dataclasses.replace(pod, memory=at_least(pod.memory, plan.pod_memory_bytes))
        return dataclasses.replace(asked, pod=pod, train=settled(asked.train, plan))

    @cached_property
    def _asked(self) -> Request:
        options = RunOptions(
            uid=self.finetune.uid,
            attempt=self.number,
            allow_cpu=self.config.allow_cpu,
            stall_timeout_s=self.config.stall_timeout_s,
            quantization=kept_quantization(self.stored.resolved),
            gpus=self.config.gpus,
        )
        defaults = defaults_for(self.finetune.spec, self.stored.resolved, self.config)
        return read_request(self.finetune.manifest, options, defaults)

    @property
    def nodes(self) -> int:
        """How many pods the Job has at a time."""
        return 1 if self.job is not None and self.job.stage == names.PREFLIGHT else self.request.pod.nodes

    @property
    def memory(self) -> MemoryLimit:
        """Main memory that a pod of the Job may use."""
        return self.memory_of(names.TRAIN if self.job is None else self.job.stage)

    def memory_of(self, stage: str) -> MemoryLimit:
        """Main memory that a pod of a stage may use."""
        if stage == names.PREFLIGHT:
            remedy = "have preflightMemory raised in the operator's configuration"
            return MemoryLimit(amount=self.config.preflight_memory, remedy=remedy)
        remedy = "create a new LoRAFineTune with more in spec.resources.memory"
        return MemoryLimit(amount=self.request.pod.memory or "", remedy=remedy)

    # -- the preflight's findings

    @property
    def has_passed_preflight(self) -> bool:
        """Whether the status says that the preflight has passed; that stays so."""
        return self.stored.holds(Type.PREFLIGHT_PASSED) is True

    @property
    def needs_preflight(self) -> bool:
        """Whether the preflight is due: once for a run, not for each attempt."""
        return self._asked.preflight and self.attempt == 0 and not self.has_passed_preflight

    @cached_property
    def report(self) -> Summary | None:
        """What a pod of the preflight that has ended found out, until that stands in the status."""
        job = None if self.has_passed_preflight else self.preflight
        if job is None or ending_of(job) is None:
            return None
        return next(filter(None, map(summary_of, newest_first(self.pods_of(job)))), None)

    @cached_property
    def findings(self) -> Block:
        """The blocks `preflight` and `plan` of the status: as they stand there or, before that, as a pod reported."""
        known: dict[str, Block] = found_by(self.report) if self.report else {}
        if self.has_passed_preflight:
            known = {"preflight": self.stored.preflight, "plan": self.stored.plan}
        return {key: block for key, block in known.items() if block}

    # -- what was resolved

    @cached_property
    def resolved(self) -> Block:
        """What the status says is resolved for the present attempt; empty where a crash came before it could."""
        return self.stored.resolved if self.stored.attempt >= self.attempt else {}

    @cached_property
    def rendered_image(self) -> str:
        """The image that the operator rendered for the present attempt's training, by the configuration of that time.

        Never empty: no rendered image is known only where no Job is, which then confirms nothing either. A Job that the
        status does not know yet may be anybody's: where the image is a proof, it may name none but those of the
        configuration and of the attempt before.
        """
        known, ours = text_of(self.resolved.get("image")), self.config.trainer_image
        by_job = next((job.image for job in (*self.jobs, *self.former) if job.name == self.job_name), "")
        before = text_of(self.stored.resolved.get("image"))
        is_plausible = not self.config.require_rendered_image or by_job in {ours, before}
        return known or (by_job if is_plausible else "") or ours

    @property
    def evidence(self) -> Evidence:
        """Against what a pod's claim of a success is held."""
        image = self.rendered_image if self.config.require_rendered_image else ""
        return Evidence(jobs=self.jobs, former=self.former, image=image)

    # -- what is used up, and how far it is

    @cached_property
    def active(self) -> ActiveTime:
        """How long the run has been active, the present period included."""
        return follow_time(stored_time(self.stored), self.jobs, self.observed.pods, self.now)

    @cached_property
    def retries(self) -> Retries:
        """What is used up of `maxRetries`, by the Jobs that are known and by those before them."""
        jobs, nodes = (*self.jobs, *self.former), self.request.pod.nodes
        return count_ends(self.stored.retries, jobs, self.observed.pods, nodes=nodes, deletions=self.deletions)

    @property
    def deletions(self) -> int:
        """How many training Jobs of the run somebody deleted before the present one or, without one, the last one."""
        return max(0, self.attempt - 1)

    @property
    def used(self) -> Used:
        """What is used up before the next Job, for which a deletion is a retry, or before the present one goes on."""
        is_deleted = self.training is None and self.attempt > 0
        return Used(retries=self.retries.used + is_deleted, run_s=self.active.run_s)

    @cached_property
    def reporter(self) -> PodView | None:
        """The pod whose progress is the run's: of several nodes that of the one that leads."""
        job = self.training
        if job is None or job.suspended:
            return None
        return next((pod for pod in leader_first(self.pods) if pod.index == 0 and is_running(pod)), None)

    @cached_property
    def progress(self) -> Block:
        """How far the training is, as its trainer last said."""
        return follow_progress(self.stored, self.reporter, self.observed.progress, self.now)

    @property
    def stalled_since(self) -> datetime | None:
        """Since when a training that should have taken a step for long has reported none.

        Before its first answer an operator that was away knows nothing new: what was known of the run stands.
        """
        known = self.observed.asked or self.stored.state == Reason.STALLED
        return stalled_since(self.progress, self.config.stall_timeout_s, self.now) if known else None

    # -- its place in a queue

    @property
    def place(self) -> Place | None:
        """Where the Job waits or runs; None for one that is in no queue."""
        return place_of(self.job, self.observed) if self.job is not None else None

    @property
    def queue(self) -> str:
        """The LocalQueue of the run's Jobs; empty for none."""
        return self.job.queue if self.job else self._asked.pod.queue_labels.get(names.QUEUE_LABEL, "")
