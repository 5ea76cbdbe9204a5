"""What is to be done about a LoRAFineTune: the specification of the operator, as one pure function.

Total: it answers whatever is observed, however odd. Idempotent: once its plan is carried out it asks for nothing more,
and gives the same status. `now` only times what comes later, and dates what has no date of its own.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from lora_operator.decision.adjust import adjust, adjusted, still_held, suspension_alone
from lora_operator.decision.case import Case, read_case
from lora_operator.decision.expiry import expired_objects, may_go_on_unseen, on_the_way_out
from lora_operator.decision.facts import milestones, resolution, with_counts, without_quota
from lora_operator.decision.give_up import give_up, has_no_time_left, pending_left_s, waited_too_long
from lora_operator.decision.notices import notices, recreated
from lora_operator.decision.progress import follow_progress, next_question_s, stalled_since
from lora_operator.decision.proof import Verdict, claims_success, proven_success
from lora_operator.decision.quota import Place, held, hold, place_of, quota_reserved, waits_for_user
from lora_operator.decision.results import resolved_by_request
from lora_operator.decision.situation import (
    Scene,
    Situation,
    assess,
    awaiting_orphan,
    awaiting_superseded,
    held_by_user,
)
from lora_operator.decision.stages.order import job_names, latest_job, makes_none, reached, superseded
from lora_operator.decision.stages.preflight import no_longer_needed, planned
from lora_operator.decision.stages.stage import Stage
from lora_operator.decision.stages.train import TRAIN, failed_before_deletion
from lora_operator.decision.status import Facts, Status, acceptance, final_status, ongoing_status, refreshed_status
from lora_operator.decision.trouble import trouble_of_rejection
from lora_operator.decision.unseen import misses_pod, rests_on_unseen
from lora_operator.decision.verdict import deadline_exceeded, deleted_too_often
from lora_operator.rendering.render import marks_of, render_job, render_service
from lora_operator.views.conditions import (
    MESSAGE_LENGTH,
    Condition,
    Finding,
    Type,
    previous_condition,
    result_of,
    state_of,
)
from lora_operator.views.config import OperatorConfig
from lora_operator.views.jobs import is_of
from lora_operator.views.model import FineTune, JobView, ObjectRef, Observed, Patch, Plan, PodView, soonest
from lora_operator.views.observe import parse_job
from lora_operator.views.pods import is_running, leader_first
from lora_operator.views.wording import block_of, sentence
from lora_trainer.contract.config import TrainConfig
from lora_trainer.contract.reasons import Reason

_LONGEST_PROBLEMS = MESSAGE_LENGTH - 200


def decide(finetune: FineTune, observed: Observed, config: OperatorConfig, now: datetime) -> Plan:
    """The plan for one resource, given all that is known of its children.

    What rests on something not seen, or cannot be taken back, asks for a live read in the same turn: another attempt, a
    Job that is made again, an end without proof, each change and deletion. What is made for the first time rests on its
    name, which no second Job can have, and a proven end on the version of the resource: neither needs one.
    """
    if finetune.deleting:
        return on_the_way_out(read_case(finetune, observed, config, now))
    if result_of(finetune.status):
        return _after_the_end(finetune, observed, now)
    case = planned(read_case(finetune, observed, config, now))
    stage, job = reached(case)
    plan = _follow(case, stage, job) if case.children.job and job else _begin(case, stage, job)
    # Beside the rest: a webhook may keep one from being deleted for as long as the run takes, and longer.
    stale = tuple(ObjectRef(kind="Job", name=j.name, uid=j.uid) for j in superseded(case) if not j.deleting)
    plan = dataclasses.replace(plan, delete=(*plan.delete, *stale))
    read_first, read_for_status = rests_on_unseen(case, plan), makes_none(case) or misses_pod(case)
    return dataclasses.replace(plan, read_first=read_first, read_for_status=read_for_status, job_names=job_names(case))


def _after_the_end(finetune: FineTune, observed: Observed, now: datetime) -> Plan:
    """The verdict stands. What is left is to stop a Job that was given up, and the time to live of one that ended."""
    expired, left_s = expired_objects(finetune, observed, now)
    jobs, unseen = tuple(job.name for job in observed.jobs if is_of(finetune, job)), may_go_on_unseen(finetune, now)
    status, names = refreshed_status(finetune), tuple(dict.fromkeys((*jobs, *unseen)))
    read_first = bool(expired) or not set(unseen).issubset(jobs)
    return Plan(status=status, delete=expired, requeue_after_s=left_s, read_first=read_first, job_names=names)


def _begin(case: Case, stage: Stage, job: JobView | None) -> Plan:
    """There is no training Job. It may have been deleted, even when its work was done; its pod may live on."""
    children = case.children
    if case.observed.rejection is not None and job is None:
        return _refused(case, trouble_of_rejection(case.observed.rejection))
    proof = proven_success(children.pods, case.evidence)
    if proof is not None:
        return _end(case, proof)
    if children.orphans:
        return _await(case, awaiting_orphan(children.orphans[0]))
    if late := superseded(case):
        return _await(case, awaiting_superseded(late[0]))
    return _advance(case, stage, job)


def _advance(case: Case, stage: Stage, job: JobView | None) -> Plan:
    """The stage goes on, or its Job is made, unless the run has come to its end."""
    request, verdict = case.request, failed_before_deletion(case) or _spent_up(case)
    if verdict is not None:
        return _end(case, verdict)
    if request.train is None:
        return _invalid(case)
    if job is not None:
        return _follow(case, stage, job)
    if waits_for_user(request):
        return dataclasses.replace(_await(case, Situation(state=held_by_user())), requeue_after_s=None)
    return _create(case, stage, request.train)


def _spent_up(case: Case) -> Verdict | None:
    """The end of a run that has no retry or no second left for another Job."""
    deletions, policy = case.deleted_jobs, case.request.policy
    if deletions and case.used.retries > policy.max_retries:
        claimant = next(filter(claims_success, case.children.pods), None)
        failures = case.used.retries - deletions
        return deleted_too_often(case.job_name, deletions, failures, policy.max_retries, claimant)
    if has_no_time_left(case):
        return deadline_exceeded(policy, case.children.pods, TRAIN.memory(case))
    return None


def _follow(case: Case, stage: Stage, job: JobView) -> Plan:
    """There is a Job. Report what it does, and how it ended once it has."""
    verdict = stage.judge(case, job)
    return _go_on(case, stage, job) if verdict is None else _end(case, verdict)


def _go_on(case: Case, stage: Stage, job: JobView) -> Plan:
    """The Job goes on, unless the run has come to an end that Kubernetes knows nothing of."""
    patches: tuple[Patch, ...] = ()
    place = place_of(job, case.observed)
    if not job.deleting:
        job, place, patches = _adjust(case, stage, job, place)
    scene = _scene(case, stage, job, place)
    situation = assess(scene)
    state = still_held(situation.state, job, place, case.request.policy)
    situation = dataclasses.replace(situation, state=state)
    if stage.trains and any(map(claims_success, scene.pods)):
        # Its Job has yet to count it, unless it is being deleted and never will: nothing gives the run up meanwhile.
        proof = proven_success(scene.pods, case.evidence) if job.deleting else None
        if proof is not None:
            return _end(case, proof)
    elif (verdict := give_up(case, scene, situation)) is not None:
        return _end(case, verdict)
    return dataclasses.replace(_watch(case, scene, situation), patch=patches)


def _adjust(
    case: Case, stage: Stage, job: JobView, place: Place | None
) -> tuple[JobView, Place | None, tuple[Patch, ...]]:
    """The patches that the spec's mutable part asks for, and what they make of the Job and of its place in a queue.

    A suspension, which frees GPUs, goes first. It goes alone where something else of the Job was refused, and so does
    its end: else the run would be held for as long as the refusal lasts.
    """
    policy, observed = case.request.policy, case.observed
    left_out, marks = observed.undone, marks_of(case.finetune, job.attempt, job.stage)
    change = adjust(job, policy, stage.pods(case), case.spent.run_s, marks)
    if observed.rejection is not None:
        left_out, change = (*left_out, *observed.refused), suspension_alone(change)
    holding = hold(place, policy) if place is not None else None
    wanted = (holding, change) if policy.suspend else (change, holding)
    patches = tuple(patch for patch in wanted if patch is not None and patch not in left_out)
    if change in patches:
        job = adjusted(job, change)
    if place is not None and holding in patches:
        place = held(place, holding)
    return job, place, patches


def _create(case: Case, stage: Stage, train: TrainConfig) -> Plan:
    """The Job of a stage; a training is the first attempt, or the next one where the Job of the last was deleted."""
    finetune, children = case.finetune, case.children
    rendered = render_job(finetune, case.request, train, case.config, case.used, stage=stage.name, shape=stage.shape)
    job = parse_job(rendered)
    if not stage.trains:
        stages = {**children.stages, stage.name: job}
        plan = _watch_new(dataclasses.replace(case, children=dataclasses.replace(children, stages=stages)), stage, job)
        return dataclasses.replace(plan, create=(rendered,), watch_events=False)
    events = (recreated(job.name, job.attempt, case.job_name),) if children.expected else ()
    fresh = dataclasses.replace(children, attempt=job.attempt, job=job, pods=())
    resolved = resolved_by_request(case.request, case.config.trainer_image)
    plan = _watch_new(dataclasses.replace(case, children=fresh), stage, job, resolved)
    service = (render_service(finetune, train),) if case.request.pod.nodes > 1 else ()
    return dataclasses.replace(plan, create=(*service, rendered), events=(*events, *plan.events), watch_events=False)


def _watch_new(case: Case, stage: Stage, job: JobView, resolved: Status | None = None) -> Plan:
    """The first status of a Job that is being made."""
    scene = _scene(case, stage, job, place_of(job, case.observed))
    return _watch(case, scene, assess(scene), resolved)


def _scene(case: Case, stage: Stage, job: JobView, place: Place | None) -> Scene:
    """What the situation of a Job is read from; `place` is the Job's in a queue."""
    pods = case.pods_of(job) if job.uid else ()
    progress = follow_progress(case.finetune, _reporter(stage, job, pods), case.observed.progress, case.now)
    silent_since = stalled_since(progress, case.config.stall_timeout_s, case.now)
    # Before its first answer an operator that was away knows nothing new: what was known of the run stands.
    known = case.observed.asked or state_of(case.finetune.status) == Reason.STALLED
    return Scene(
        stage=stage,
        request=case.request,
        nodes=stage.pods(case),
        job=job,
        pods=pods,
        events=case.observed.events,
        progress=progress,
        memory=stage.memory(case),
        place=place,
        stalled_since=silent_since if known else None,
        retries=case.used.retries,
    )


def _reporter(stage: Stage, job: JobView, pods: Sequence[PodView]) -> PodView | None:
    """The pod whose progress is the run's: of several nodes that of the one that leads."""
    running = next((pod for pod in leader_first(pods) if pod.index == 0 and is_running(pod)), None)
    return running if stage.trains and not job.suspended else None


def _watch(case: Case, scene: Scene, situation: Situation, resolved: Status | None = None) -> Plan:
    """The status of a run that goes on, and when to look again."""
    observed, config, job, place = case.observed, case.config, scene.job, scene.place
    trains = scene.stage.trains
    answer = observed.progress if _reporter(scene.stage, job, scene.pods) else None
    facts = Facts(
        milestones=(
            *milestones(case, situation.state, scene.progress),
            *((quota_reserved(place, situation.state),) if place else ()),
        ),
        attempt=job.attempt if trains else case.children.attempt,
        job_name=job.name if trains else case.job_name,
        job=job,
        resumed_by_others=place.resumed_by_others if place else job.suspend_intent is True and not job.suspended,
        pod=_shown_pod(case, situation) if trains else None,
        resolved=resolved or resolution(case),
        found_out=answer.resolved if answer else None,
        progress=dict(scene.progress),
    )
    accepted = acceptance(job.name)
    if observed.rejection is not None:
        accepted = Condition(type=Type.ACCEPTED, holds=False, finding=trouble_of_rejection(observed.rejection))
    status = ongoing_status(case.finetune, accepted, situation, with_counts(case, facts, situation.state), case.now)
    plan = Plan(status=status, create=_service_again(case, scene, situation), events=notices(case.finetune, status))
    if situation.running and situation.pod is not None:
        wait_s = next_question_s(scene.progress, config.progress_interval_s, case.now)
        return _with_question(plan, situation.pod, wait_s, config)
    if job.suspended:
        return dataclasses.replace(plan, requeue_after_s=config.retry_max_s if observed.rejection else None)
    due_s = pending_left_s(case, job, scene.pods, situation)
    if observed.rejection is not None:  # which nothing takes back but another try
        due_s = soonest(due_s, config.retry_max_s)
    if situation.state.reason is Reason.PREFLIGHT and any(map(is_running, scene.pods)):
        return dataclasses.replace(plan, due_in_s=due_s)  # no Event explains its work, and a watch brings its end
    return dataclasses.replace(plan, requeue_after_s=config.pending_check_s, watch_events=True, due_in_s=due_s)


def _service_again(case: Case, scene: Scene, situation: Situation) -> tuple[Mapping[str, Any], ...]:
    """The Service of several nodes, in case that somebody deleted it.

    It is not watched. Pods look for each other by it when they begin: so it is made again, or found to be there, at
    each change of the state until all of them have met.
    """
    train = case.request.train
    if train is None or case.observed.rejection is not None:
        return ()
    meeting = not scene.job.suspended and (not situation.running or situation.state.reason is Reason.STARTING)
    refused = previous_condition(case.finetune, Type.ACCEPTED).get("status") == "False"
    changed = refused or state_of(case.finetune.status) != situation.state.reason
    return (render_service(case.finetune, train),) if scene.nodes > 1 and meeting and changed else ()


def _shown_pod(case: Case, situation: Situation) -> PodView | None:
    """The pod for kubectl logs: of several nodes always the one that leads, whichever the state is about."""
    if case.request.pod.nodes == 1:
        return situation.pod
    return next((pod for pod in leader_first(case.children.pods) if pod.index == 0), None)


def _with_question(plan: Plan, pod: PodView, wait_s: float, config: OperatorConfig) -> Plan:
    if wait_s > 0:
        return dataclasses.replace(plan, requeue_after_s=wait_s)
    return dataclasses.replace(plan, requeue_after_s=config.progress_interval_s, ask_progress=pod)


def _end(case: Case, verdict: Verdict, accepted: Condition | None = None) -> Plan:
    """The run is over: the last status."""
    job = latest_job(case)
    pods = leader_first(case.children.pods)
    progress = block_of(case.finetune.status, "progress")
    facts = Facts(
        milestones=(*milestones(case, verdict.finding, progress, verdict), *without_quota(case, verdict.finding)),
        attempt=case.children.attempt,
        job_name=case.job_name,
        job=job,
        pod=pods[0] if pods else None,
        resolved=resolution(case),
        progress=dict(progress),
    )
    counted = with_counts(case, facts, verdict.finding)
    accepted = accepted or acceptance(job.name if job else case.job_name)
    status = final_status(case.finetune, accepted, verdict, counted, case.now)
    return Plan(status=status, events=notices(case.finetune, status))


def _invalid(case: Case) -> Plan:
    """The spec breaks a rule, and cannot change any more: the run has failed before it began."""
    message = "; ".join(str(problem) for problem in case.request.problems)
    remedy = "create a new LoRAFineTune with a corrected spec"
    finding = Finding(reason=Reason.CONFIG_INVALID, message=f"{sentence(message, _LONGEST_PROBLEMS)}: {remedy}")
    accepted = Condition(type=Type.ACCEPTED, holds=False, finding=finding)
    facts = with_counts(case, Facts(attempt=case.children.attempt, job_name=case.job_name), finding)
    status = final_status(case.finetune, accepted, Verdict(succeeded=False, finding=finding), facts, case.now)
    return Plan(status=status, events=notices(case.finetune, status))


def _refused(case: Case, finding: Finding) -> Plan:
    """The API server takes no Job from us: say why, and try again after a while, but not longer than the user waits."""
    accepted = Condition(type=Type.ACCEPTED, holds=False, finding=finding)
    situation, (_, job) = Situation(state=finding), reached(case)
    pods = case.pods_of(job) if job else ()
    verdict = waited_too_long(case, job, pods, situation)
    if verdict is not None:
        return _end(case, verdict, accepted)
    plan = _await(case, situation, accepted)
    patient = finding.reason is Reason.NAME_CONFLICT
    again_s = case.config.resync_interval_s if patient else case.config.retry_max_s
    rejected = case.observed.rejection
    full = rejected is not None and rejected.kind == "Job" and finding.reason is Reason.QUOTA_EXCEEDED
    room, due_s = no_longer_needed(case) if full else (), pending_left_s(case, job, pods, situation)
    return dataclasses.replace(plan, delete=room, requeue_after_s=again_s, due_in_s=due_s)


def _await(case: Case, situation: Situation, accepted: Condition | None = None) -> Plan:
    """No Job is there, and none is made for now."""
    progress = follow_progress(case.finetune, None, None, case.now)
    facts = Facts(
        milestones=(*milestones(case, situation.state, progress), *without_quota(case, situation.state)),
        attempt=case.children.attempt,
        job_name=case.job_name,
        pod=situation.pod,
        progress=progress,
    )
    facts = with_counts(case, facts, situation.state)
    status = ongoing_status(case.finetune, accepted or acceptance(case.job_name), situation, facts, case.now)
    return Plan(status=status, events=notices(case.finetune, status), requeue_after_s=case.config.pending_check_s)
