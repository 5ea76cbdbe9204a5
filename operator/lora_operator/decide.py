"""What is to be done about a LoRAFineTune: the specification of the operator, as one pure function.

Total: it answers whatever is observed, however odd. Idempotent: once its plan is carried out it asks for nothing more,
and tells the same status. `now` only times what comes later, and dates what has no date of its own.
"""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from lora_operator.adjust import adjust, adjusted
from lora_operator.children import Children, find_children
from lora_operator.conditions import MESSAGE_LENGTH, Condition, Finding, Type, is_finished, previous_condition
from lora_operator.config import OperatorConfig
from lora_operator.expiry import expired_objects
from lora_operator.milestones import checkpoint_saved, needs_preparation, preflight_passed, was_prepared
from lora_operator.model import EventRecord, FineTune, JobView, Observed, Plan, PodView
from lora_operator.names import Role, child_name
from lora_operator.notices import notices, recreated
from lora_operator.observe import parse_job
from lora_operator.pods import is_running, leader_first
from lora_operator.progress import follow_progress, next_question_s
from lora_operator.render import pods_of, render_config_map, render_job, render_prepare_job, render_service
from lora_operator.request import Request, read_request
from lora_operator.results import resolved_by_spec
from lora_operator.situation import Scene, Situation, assess, awaiting_orphan
from lora_operator.status import Facts, Status, final_status, ongoing_status, refreshed_status
from lora_operator.trouble import name_conflict, trouble_of_rejection
from lora_operator.verdict import Verdict, deleted_too_often, judge, judge_preparation, proven_success
from lora_operator.wording import block_of, sentence
from lora_trainer.contract.config import TrainConfig
from lora_trainer.contract.manifest import RunOptions
from lora_trainer.contract.reasons import Reason

_LONGEST_PROBLEMS = MESSAGE_LENGTH - 200


@dataclass(frozen=True, slots=True, kw_only=True)
class _Case:
    """All that a decision looks at. `request` is read as for the attempt that is present or, without a Job, next."""

    finetune: FineTune
    observed: Observed
    config: OperatorConfig
    now: datetime
    children: Children
    request: Request

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


def decide(finetune: FineTune, observed: Observed, config: OperatorConfig, now: datetime) -> Plan:
    """The plan for one resource, given all that is known of its children."""
    if finetune.deleting:
        return Plan(status=finetune.status)  # the children have an owner reference, and go with the resource
    if is_finished(finetune):
        return _after_the_end(finetune, observed, now)
    children = find_children(finetune, observed)
    attempt = children.attempt if children.job else children.next_attempt
    options = RunOptions(
        uid=finetune.uid, attempt=attempt, allow_cpu=config.allow_cpu, stall_timeout_s=config.stall_timeout_s
    )
    request = read_request(finetune.manifest, options)
    case = _Case(finetune=finetune, observed=observed, config=config, now=now, children=children, request=request)
    return _follow(case, children.job) if children.job else _begin(case)


def _after_the_end(finetune: FineTune, observed: Observed, now: datetime) -> Plan:
    """The verdict stands. What is left is the time to live of the Job."""
    expired, left_s = expired_objects(finetune, observed, now)
    return Plan(status=refreshed_status(finetune), delete=expired, requeue_after_s=left_s)


def _begin(case: _Case) -> Plan:
    """There is no Job. It may have been deleted, even when its work was done; its pod may live on."""
    children = case.children
    if case.observed.rejection is not None:
        return _refused(case, trouble_of_rejection(case.observed.rejection))
    if (children.expected or children.orphans) and not case.observed.absence_confirmed:
        return _look_again(case)
    proof = proven_success(children.pods)
    if proof is not None:
        return _end(case, proof)
    if children.orphans:
        return _await(case, awaiting_orphan(children.orphans[0]))
    return _start(case)


def _start(case: _Case) -> Plan:
    """A Job is to be made, unless something stands against it."""
    children, request = case.children, case.request
    if children.attempt > request.policy.max_retries:
        return _end(case, deleted_too_often(case.job_name, children.attempt, request.policy.max_retries))
    if request.train is None:
        return _invalid(case)
    if children.foreign:
        return _refused(case, name_conflict("Job", case.next_name))
    if needs_preparation(request.train, case.config) and not was_prepared(case.finetune):
        return _prepare(case, request.train)
    return _create(case, request.train)


def _prepare(case: _Case, train: TrainConfig) -> Plan:
    """Model and data are fetched first, so that no GPU waits for a download. The training Job follows a success."""
    children = case.children
    job = children.preparing
    if job is None:
        rendered = render_prepare_job(case.finetune, case.request, train, case.config)
        fresh = dataclasses.replace(case, children=dataclasses.replace(children, preparing=parse_job(rendered)))
        plan = _watch(fresh, parse_job(rendered))
        return dataclasses.replace(plan, create=(render_config_map(case.finetune, train), rendered), watch_events=False)
    verdict = judge_preparation(job, children.preparing_pods, case.memory(Role.PREPARE))
    if verdict is None:
        return _adjust_and_watch(case, job)
    if verdict.succeeded:
        return _create(case, train)
    unsure = verdict.on_absence and not case.observed.absence_confirmed
    return _look_again(case) if unsure else _end(case, verdict)


def _follow(case: _Case, job: JobView) -> Plan:
    """There is a Job. Tell what it does, and how it ended once it has."""
    verdict = judge(job, case.children.pods, case.memory(Role.TRAIN))
    if verdict is not None:
        unsure = verdict.on_absence and not case.observed.absence_confirmed
        return _look_again(case) if unsure else _end(case, verdict)
    return _adjust_and_watch(case, job)


def _adjust_and_watch(case: _Case, job: JobView) -> Plan:
    pods = pods_of(job.role, case.request.pod)
    patch = None if job.deleting or case.observed.rejection else adjust(job, case.request.policy, pods)
    plan = _watch(case, adjusted(job, patch) if patch else job)
    return dataclasses.replace(plan, patch=(patch,) if patch else ())


def _create(case: _Case, train: TrainConfig) -> Plan:
    """The first attempt, or the next one where the Job of the last was deleted."""
    finetune, children = case.finetune, case.children
    rendered = render_job(finetune, case.request, train, case.config)
    job = parse_job(rendered)
    events: tuple[EventRecord, ...] = ()
    if children.expected:
        events = (recreated(job.name, job.attempt, case.job_name),)
    fresh = dataclasses.replace(children, attempt=job.attempt, job=job, pods=())
    plan = _watch(
        dataclasses.replace(case, children=fresh), job, resolved=resolved_by_spec(train, case.config.trainer_image)
    )
    service = (render_service(finetune, train),) if case.request.pod.nodes > 1 else ()
    create = (render_config_map(finetune, train), *service, rendered)
    return dataclasses.replace(plan, create=create, events=(*events, *plan.events), watch_events=False)


def _watch(case: _Case, job: JobView, resolved: Status | None = None) -> Plan:
    """The status of a run that goes on, and when to look again. `job` trains or prepares."""
    observed, config, trains = case.observed, case.config, job.role is Role.TRAIN
    pods = case.children.pods if trains else case.children.preparing_pods
    running = next((pod for pod in leader_first(pods) if is_running(pod)), None)
    running = running if trains and not job.suspended else None
    progress = follow_progress(case.finetune, running, observed.progress, case.now)
    scene = Scene(
        request=case.request,
        config_map=case.next_name,
        nodes=pods_of(job.role, case.request.pod),
        job=job,
        pods=pods,
        events=observed.events,
        progress=progress,
        memory=case.memory(job.role),
    )
    situation = assess(scene)
    facts = Facts(
        milestones=_milestones(case, situation.state, progress),
        attempt=job.attempt if trains else case.children.attempt,
        job_name=job.name if trains else case.job_name,
        job=job,
        pod=_shown_pod(case, situation) if trains else None,
        resolved=resolved or _resolved(case),
        found_out=observed.progress.resolved if observed.progress and running else None,
        progress=progress,
    )
    accepted = _accepted(job.name)
    if observed.rejection is not None:
        accepted = Condition(type=Type.ACCEPTED, holds=False, finding=trouble_of_rejection(observed.rejection))
    status = ongoing_status(case.finetune, accepted, situation, facts, case.now)
    plan = Plan(status=status, create=_made_again(case, job, situation), events=notices(case.finetune, status))
    if situation.running and situation.pod is not None:
        return _with_question(
            plan, situation.pod, next_question_s(progress, config.progress_interval_s, case.now), config
        )
    if job.suspended:
        return dataclasses.replace(plan, requeue_after_s=config.retry_max_s if observed.rejection else None)
    return dataclasses.replace(plan, requeue_after_s=config.pending_check_s, watch_events=True)


def _made_again(case: _Case, job: JobView, situation: Situation) -> tuple[Mapping[str, Any], ...]:
    """What the pods of an attempt need beside their Job, in case that somebody deleted it.

    Nothing tells that a Service is gone, which is not watched. New pods look for each other by it: so it is made again,
    or found to be there, once for each change of the state of a run whose pods do not all run.
    """
    train = case.request.train
    if train is None or case.observed.rejection is not None:
        return ()
    lost = (render_config_map(case.finetune, train),) if situation.lost_config else ()
    several = job.role is Role.TRAIN and case.request.pod.nodes > 1 and not situation.running
    changed = previous_condition(case.finetune, Type.COMPLETE).get("reason") != situation.state.reason
    return (*lost, render_service(case.finetune, train)) if several and changed else lost


def _shown_pod(case: _Case, situation: Situation) -> PodView | None:
    """The pod for kubectl logs: of several nodes always the one that leads, whichever the state is about."""
    if case.request.pod.nodes == 1:
        return situation.pod
    return next((pod for pod in leader_first(case.children.pods) if pod.index == 0), None)


def _with_question(plan: Plan, pod: PodView, wait_s: float, config: OperatorConfig) -> Plan:
    if wait_s > 0:
        return dataclasses.replace(plan, requeue_after_s=wait_s)
    return dataclasses.replace(plan, requeue_after_s=config.progress_interval_s, ask_progress=pod)


def _end(case: _Case, verdict: Verdict) -> Plan:
    """The run is over: the last status."""
    children = case.children
    pods = leader_first(children.pods)
    progress = block_of(case.finetune.status, "progress")
    facts = Facts(
        milestones=_milestones(case, verdict.finding, progress, verdict),
        attempt=children.attempt,
        job_name=case.job_name,
        job=children.job or children.preparing,
        pod=pods[0] if pods else None,
        resolved=_resolved(case),
    )
    status = final_status(case.finetune, _accepted(case.job_name), verdict, facts, case.now)
    return Plan(status=status, events=notices(case.finetune, status))


def _invalid(case: _Case) -> Plan:
    """The spec breaks a rule, and cannot change any more: the run has failed before it began."""
    message = "; ".join(str(problem) for problem in case.request.problems)
    remedy = "create a new LoRAFineTune with a corrected spec"
    finding = Finding(reason=Reason.CONFIG_INVALID, message=f"{sentence(message, _LONGEST_PROBLEMS)}: {remedy}")
    accepted = Condition(type=Type.ACCEPTED, holds=False, finding=finding)
    facts = Facts(attempt=case.children.attempt, job_name=case.job_name)
    status = final_status(case.finetune, accepted, Verdict(succeeded=False, finding=finding), facts, case.now)
    return Plan(status=status, events=notices(case.finetune, status))


def _refused(case: _Case, finding: Finding) -> Plan:
    """The API server takes no Job from us: say why, and try again after a while."""
    accepted = Condition(type=Type.ACCEPTED, holds=False, finding=finding)
    plan = _await(case, Situation(state=finding), accepted)
    patient = finding.reason is Reason.NAME_CONFLICT
    return dataclasses.replace(
        plan, requeue_after_s=case.config.resync_interval_s if patient else case.config.retry_max_s
    )


def _await(case: _Case, situation: Situation, accepted: Condition | None = None) -> Plan:
    """No Job is there, and none is made for now."""
    progress = follow_progress(case.finetune, None, None, case.now)
    facts = Facts(
        milestones=_milestones(case, situation.state, progress),
        attempt=case.children.attempt,
        job_name=case.job_name,
        pod=situation.pod,
        progress=progress,
    )
    status = ongoing_status(case.finetune, accepted or _accepted(case.job_name), situation, facts, case.now)
    return Plan(status=status, events=notices(case.finetune, status), requeue_after_s=case.config.pending_check_s)


def _look_again(case: _Case) -> Plan:
    """The cache may be behind the cluster, and what follows cannot be taken back."""
    return Plan(status=case.finetune.status, confirm_absence=True)


def _milestones(
    case: _Case, state: Finding, progress: Mapping[str, Any], verdict: Verdict | None = None
) -> tuple[Condition, ...]:
    preflight = preflight_passed(case.finetune, case.children, case.config, state)
    if preflight is not None and preflight.holds is None and verdict is not None:
        preflight = dataclasses.replace(preflight, holds=False)
    checkpoint = checkpoint_saved(case.finetune, case.request.train, progress, verdict)
    return tuple(condition for condition in (preflight, checkpoint) if condition is not None)


def _accepted(job_name: str) -> Condition:
    finding = Finding(reason=Reason.ACCEPTED, message=f"The spec is valid; Job {job_name} runs it")
    return Condition(type=Type.ACCEPTED, holds=True, finding=finding)


def _resolved(case: _Case) -> Status:
    """What was resolved stays; it is made up for only where a crash came before the first status."""
    before = block_of(case.finetune.status, "resolved")
    train = case.request.train
    return before or (resolved_by_spec(train, case.config.trainer_image) if train else {})
