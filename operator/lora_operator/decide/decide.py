"""What is to be done about a LoRAFineTune: the specification of the operator, as one pure function.

`RULES` is read from top to bottom; the first rule that answers makes the plan. It is total: some rule answers whatever
is observed, however odd. It is idempotent: once its plan is carried out it asks for nothing more, and gives the same
status. Time only says what comes later, and dates what has no date of its own.
"""

import dataclasses
from collections.abc import Callable

from lora_operator.decide.cleanup import clean_up, stop_going_on
from lora_operator.decide.events import events_of, recreated
from lora_operator.decide.job_patch import patches_for, still_held
from lora_operator.decide.kueue import waits_for_user
from lora_operator.decide.limits import give_up, has_no_time_left, pending_left_s, waited_too_long
from lora_operator.decide.preflight import is_unread, no_longer_needed, preflight_verdict
from lora_operator.decide.progress import next_question_s
from lora_operator.decide.run import Run
from lora_operator.decide.state import RunState, assess, awaiting_orphan, awaiting_superseded, held_by_user
from lora_operator.decide.status import final_status, ongoing_status, refreshed_status
from lora_operator.decide.trouble import trouble_of_refusal
from lora_operator.decide.verdict import (
    Verdict,
    claims_success,
    deadline_exceeded,
    deleted_too_often,
    proven_success,
    training_verdict,
)
from lora_operator.model import names
from lora_operator.model.conditions import MESSAGE_LENGTH, Condition, StateReason, Type, result_of
from lora_operator.model.jobs import ending_of
from lora_operator.model.objects import JobView, ObjectRef, Plan, Refusal
from lora_operator.model.observe import parse_job
from lora_operator.model.pods import is_running
from lora_operator.model.wording import sentence
from lora_operator.render.jobs import render_job, render_service
from lora_operator.render.pod_template import TRAINING, Shape
from lora_trainer.spec.reasons import Reason

_LONGEST_PROBLEMS = MESSAGE_LENGTH - 200
PREFLIGHT_SHAPE = Shape(command="preflight", trains=False)


def decide(run: Run) -> Plan:
    """The plan for one run, given all that is known of it.

    What cannot be taken back, or rests on something that a watch may not have brought yet, names the Jobs that are to
    be read live before it is carried out: another attempt, an end without proof, a change, a deletion. What is made for
    the first time rests on its name, which no second Job can have, and a proven end on the version of the resource.
    """
    rule, plan = next((rule, plan) for rule in RULES if (plan := rule(run)) is not None)
    if not run.finetune.deleting and not run.stored.verdict:
        # Beside the rest: a webhook may keep one from being deleted for as long as the run takes, and longer.
        stale = tuple(ObjectRef(kind="Job", name=j.name, uid=j.uid) for j in run.superseded if not j.deleting)
        plan = dataclasses.replace(plan, delete=(*plan.delete, *stale))
    return dataclasses.replace(
        plan, rule=rule.__name__, verify=run.job_names if _needs_live_read(run, plan) else frozenset()
    )


def _needs_live_read(run: Run, plan: Plan) -> bool:
    fails = not run.stored.verdict and result_of(plan.status) == "failed"
    again = {job.name for job in run.former} & {manifest["metadata"]["name"] for manifest in plan.create}
    missing = run.training is None and (run.was_made or bool(run.orphans))
    begins_unplanned = bool(plan.create) and is_unread(run)
    cannot_be_undone = fails or bool(plan.patch or plan.delete)
    return cannot_be_undone or bool(again) or (bool(plan.create) and missing) or begins_unplanned


# -- the rules


def deleting(run: Run) -> Plan | None:
    """The resource is being deleted: garbage collection takes its children along. Where another's finalizer keeps it,
    Jobs that go on are stopped."""
    return stop_going_on(run) if run.finetune.deleting else None


def ended(run: Run) -> Plan | None:
    """A verdict is stored, which is final: a Job that was given up is stopped, one that has ended gets its time to
    live."""
    if not run.stored.verdict:
        return None
    return dataclasses.replace(clean_up(run), status=refreshed_status(run))


def training_ended(run: Run) -> Plan | None:
    """The training's Job has ended: Complete with a proof of the verified adapter, else Failed with the reason."""
    verdict = training_verdict(run.training, run.pods, run.memory, run.policy, run.evidence) if run.training else None
    return _end(run, verdict) if verdict else None


def training_goes_on(run: Run) -> Plan | None:
    """The training's Job is there: its state is reported, the spec's mutable fields are applied, and a run that is out
    of retries or of time is ended."""
    return _go_on(run, run.training) if run.training else None


def refused(run: Run) -> Plan | None:
    """The API server took no Job from us: why is said, and it is tried again, as long as the user waits."""
    refusal = next((refusal for refusal in run.observed.refusals if refusal.patch is None), None)
    if refusal is None or (run.job is not None and ending_of(run.job) is None):
        return None
    accepted = _not_accepted(refusal)
    state = RunState(reason=accepted.why)
    verdict = waited_too_long(run, state)
    if verdict is not None:
        return _end(run, verdict, accepted)
    full = refusal.kind == "Job" and accepted.why.reason is Reason.QUOTA_EXCEEDED
    plan = _await(run, state, accepted)
    return dataclasses.replace(plan, delete=no_longer_needed(run) if full else (), requeue_after_s=None)


def proven_by_leftovers(run: Run) -> Plan | None:
    """The Job is gone, and what is left of it proves the success."""
    verdict = proven_success(run.pods, run.evidence)
    return _end(run, verdict) if verdict else None


def orphan_pod(run: Run) -> Plan | None:
    """The Job is gone and its pod lives on: two must never write the same output, so the next attempt waits."""
    return _await(run, awaiting_orphan(run.orphans[0])) if run.orphans else None


def superseded_job(run: Run) -> Plan | None:
    """A Job of an earlier attempt turned up: it is deleted, and the next attempt waits until it is gone."""
    return _await(run, awaiting_superseded(run.superseded[0])) if run.superseded else None


def failed_before_deletion(run: Run) -> Plan | None:
    """The Job had failed when somebody deleted it: another attempt would train to the same end."""
    present = (names.TRAIN, max(1, run.attempt))  # the first may be gone before the status counts it
    former = (job for job in reversed(run.former) if (job.stage, job.attempt) == present)
    job = next((job for job in former if (end := ending_of(job)) is not None and end.type == "Failed"), None)
    verdict = (
        training_verdict(job, run.pods_of(job), run.memory_of(names.TRAIN), run.policy, run.evidence) if job else None
    )
    return _end(run, verdict) if verdict else None


def out_of_retries(run: Run) -> Plan | None:
    """The Job was deleted, and nothing is left of `maxRetries` for another one."""
    deletions, most = run.attempt, run.policy.max_retries
    if not deletions or run.used.retries <= most:
        return None
    claimant = next(filter(claims_success, run.pods), None)
    return _end(run, deleted_too_often(run.job_name, deletions, run.used.retries - deletions, most, claimant))


def out_of_time(run: Run) -> Plan | None:
    """Nothing is left of `activeDeadlineSeconds` for another Job."""
    if not has_no_time_left(run):
        return None
    return _end(run, deadline_exceeded(run.policy, run.pods, run.memory_of(names.TRAIN)))


def invalid(run: Run) -> Plan | None:
    """The spec breaks a rule, and cannot change any more: the run has failed before it began."""
    if run.request.train is not None:
        return None
    message = "; ".join(str(problem) for problem in run.request.problems)
    remedy = "create a new LoRAFineTune with a corrected spec"
    why = StateReason(reason=Reason.CONFIG_INVALID, message=f"{sentence(message, _LONGEST_PROBLEMS)}: {remedy}")
    accepted = Condition(type=Type.ACCEPTED, holds=False, why=why)
    return _end(run, Verdict(succeeded=False, why=why), accepted)


def preflight_goes_on(run: Run) -> Plan | None:
    """Model, data and output are looked at on a CPU before GPUs are asked for; a preflight that fails ends the run."""
    if not run.needs_preflight or run.preflight is None:
        return None
    verdict = preflight_verdict(run)
    if verdict is None:
        return _go_on(run, run.preflight)
    return None if verdict.succeeded else _end(run, verdict)


def held_before_start(run: Run) -> Plan | None:
    """The user holds a run that would wait in a queue: its Job is not made, as the queue would start it."""
    if not waits_for_user(run.request):
        return None
    return dataclasses.replace(_await(run, RunState(reason=held_by_user())), requeue_after_s=None)


def create_preflight(run: Run) -> Plan | None:
    """The preflight is due and has no Job."""
    if not run.needs_preflight or run.preflight is not None:
        return None
    return _create(run, names.PREFLIGHT)


def create_training(run: Run) -> Plan | None:
    """Nothing stands in the way: the first attempt's Job is made or, where the last one's was deleted, the next's."""
    return _create(run, names.TRAIN)


RULES: tuple[Callable[[Run], Plan | None], ...] = (
    deleting,
    ended,
    training_ended,
    training_goes_on,
    refused,
    proven_by_leftovers,
    orphan_pod,
    superseded_job,
    failed_before_deletion,
    out_of_retries,
    out_of_time,
    invalid,
    preflight_goes_on,
    held_before_start,
    create_preflight,
    create_training,
)

# -- what rules have in common


def _go_on(run: Run, job: JobView) -> Plan:
    """A Job goes on, unless the run has come to an end that Kubernetes knows nothing of."""
    patches, changed = patches_for(run, job) if not job.deleting else ((), run)
    job = changed.job or job
    state = assess(changed, job)
    state = dataclasses.replace(state, reason=still_held(state.reason, changed, job))
    if job.stage == names.TRAIN and any(map(claims_success, run.job_pods)):
        # Its Job has yet to count it, unless it is being deleted and never will: nothing gives the run up meanwhile.
        proof = proven_success(run.job_pods, run.evidence) if job.deleting else None
        if proof is not None:
            return _end(run, proof)
    elif (verdict := give_up(changed, job, state)) is not None:
        return _end(run, verdict)
    return dataclasses.replace(_watch(changed, job, state), patch=patches)


def _create(run: Run, stage: str) -> Plan:
    """Make the Job of a stage; the status is that of the run which has it."""
    train = run.request.train
    if train is None:
        raise AssertionError("a spec without a configuration is refused before")
    trains = stage == names.TRAIN
    shape = TRAINING if trains else PREFLIGHT_SHAPE
    rendered = render_job(run.finetune, run.request, train, run.config, run.used, stage=stage, shape=shape)
    job = parse_job(rendered)
    made = run.with_job(job)
    plan = _watch(made, job, assess(made, job))
    service = (render_service(run.finetune, train),) if trains and run.request.pod.nodes > 1 else ()
    again = (recreated(job.name, job.attempt, run.job_name),) if trains and run.was_made else ()
    return dataclasses.replace(plan, create=(*service, rendered), events=(*again, *plan.events), watch_events=False)


def _watch(run: Run, job: JobView, state: RunState) -> Plan:
    """The status of a run that has a Job, and when to look again."""
    refusal = next((refusal for refusal in run.observed.refusals if refusal.patch is not None), None)
    status = ongoing_status(run, state, _not_accepted(refusal) if refusal else None)
    plan = Plan(status=status, events=events_of(run.stored, status))
    if state.running and state.pod is not None:
        interval_s = run.config.progress_interval_s
        wait_s = next_question_s(run.progress, interval_s, run.now)
        if wait_s > 0:
            return dataclasses.replace(plan, requeue_after_s=wait_s)
        return dataclasses.replace(plan, requeue_after_s=interval_s, ask_progress=state.pod)
    if job.suspended:
        return plan
    due_s = pending_left_s(run, state)
    if state.reason.reason is Reason.PREFLIGHT and any(map(is_running, run.job_pods)):
        return dataclasses.replace(plan, due_in_s=due_s)  # no Event explains its work, and a watch brings its end
    return dataclasses.replace(plan, requeue_after_s=run.config.pending_check_s, watch_events=True, due_in_s=due_s)


def _await(run: Run, state: RunState, accepted: Condition | None = None) -> Plan:
    """No Job is there, and none is made for now."""
    status = ongoing_status(run, state, accepted)
    return Plan(
        status=status,
        events=events_of(run.stored, status),
        requeue_after_s=run.config.pending_check_s,
        due_in_s=pending_left_s(run, state),
    )


def _end(run: Run, verdict: Verdict, accepted: Condition | None = None) -> Plan:
    """The run is over: the last status."""
    status = final_status(run, verdict, accepted)
    return Plan(status=status, events=events_of(run.stored, status))


def _not_accepted(refusal: Refusal) -> Condition:
    return Condition(type=Type.ACCEPTED, holds=False, why=trouble_of_refusal(refusal))
