"""The whole status, made anew from what is known; what is known no more stays as it was before."""

import dataclasses
from collections.abc import Iterable

from lora_operator.decide.active_time import ActiveTime, time_block
from lora_operator.decide.advice import advise, advise_cleanup, joined
from lora_operator.decide.blocks import Block, block_from
from lora_operator.decide.checkpoint import checkpoint_saved
from lora_operator.decide.ends import retries_block, with_preemption
from lora_operator.decide.kueue import no_quota, quota_reserved
from lora_operator.decide.preflight import preflight_passed
from lora_operator.decide.progress import close_progress
from lora_operator.decide.results import plan_block, resolved_by_request
from lora_operator.decide.run import Run
from lora_operator.decide.state import RunState
from lora_operator.decide.verdict import Verdict
from lora_operator.model.conditions import Condition, StateReason, Type, refresh_conditions, write_conditions
from lora_operator.model.jobs import ending_of
from lora_operator.model.names import PREFLIGHT
from lora_operator.model.objects import PodView
from lora_operator.model.pods import leader_first
from lora_operator.model.wording import instant
from lora_trainer.spec.reasons import Reason
from lora_trainer.spec.summary import ResolvedRun

NOT_SUSPENDED = StateReason(reason=Reason.NOT_SUSPENDED, message="The run is not suspended")
_RESUMED_BY_OTHERS = StateReason(
    reason=Reason.NOT_SUSPENDED,
    message="spec.suspend is true, but another controller resumed the Job, such as its queue: set spec.suspend to "
    "false and then to true to hold it again",
)
_NOT_YET_PUBLISHED = StateReason(reason=Reason.PENDING, message="The result is published when the training is done")
_SUSPENSIONS = {Reason.SUSPENDED_BY_USER, Reason.SUSPENDED_EXTERNALLY, Reason.QUEUED, Reason.PREEMPTED}


def acceptance(job_name: str) -> Condition:
    """The condition Accepted of a spec that breaks no rule; `job_name` is empty where no Job is made yet."""
    runs = f"Job {job_name} runs it" if job_name else "its Job is not made yet"
    why = StateReason(reason=Reason.ACCEPTED, message=f"The spec is valid; {runs}")
    return Condition(type=Type.ACCEPTED, holds=True, why=why)


def ongoing_status(run: Run, state: RunState, accepted: Condition | None = None) -> Block:
    """The status of a run that has not ended. Its state is the reason of Complete and Failed, which are Unknown."""
    reason = state.reason
    # A pod's end is by its node's clock, which may be wrong, and a pending timeout counts from here.
    ready = state.ready_since if state.running else _timeless(reason)
    suspended = reason.reason in _SUSPENSIONS
    publishing = reason.reason if reason.reason is Reason.PUBLISHING else Reason.PENDING
    conditions = (
        accepted or acceptance(run.job.name if run.job else run.job_name),
        Condition(type=Type.PODS_READY, holds=state.running, why=ready),
        Condition(type=Type.SUSPENDED, holds=suspended, why=reason if suspended else _free(run)),
        Condition(
            type=Type.ARTIFACT_PUBLISHED, holds=None, why=dataclasses.replace(_NOT_YET_PUBLISHED, reason=publishing)
        ),
        Condition(type=Type.COMPLETE, holds=None, why=_timeless(reason)),
        Condition(type=Type.FAILED, holds=None, why=_timeless(reason)),
        *_extra_conditions(run, reason),
    )
    answer = run.observed.progress if run.reporter else None
    found_out = answer.resolved if answer else None
    return _assemble(run, conditions, reason, _shown_pod(run, state), run.progress, run.active, found_out)


def final_status(run: Run, verdict: Verdict, accepted: Condition | None = None) -> Block:
    """The status of a run that has ended, well or badly; it is the last one."""
    end = min(verdict.why.since or run.now, run.now)  # a node's clock may be ahead
    why = dataclasses.replace(verdict.why, since=end)
    done, summary = verdict.succeeded, verdict.summary
    published = why
    if summary is not None and summary.artifact is not None and done:
        published = dataclasses.replace(why, message=f"The verified result is at {summary.artifact.uri}")
    over = why if not done else dataclasses.replace(why, message="The pod has done its work and ended")
    conditions = (
        accepted or acceptance(run.job.name if run.job else run.job_name),
        Condition(type=Type.PODS_READY, holds=False, why=over),
        Condition(type=Type.SUSPENDED, holds=False, why=NOT_SUSPENDED),
        Condition(type=Type.ARTIFACT_PUBLISHED, holds=done, why=published),
        Condition(type=Type.COMPLETE, holds=done, why=why),
        Condition(type=Type.FAILED, holds=not done, why=why),
        *_extra_conditions(run, why, verdict),
    )
    progress = close_progress(run.stored, summary.results if summary and done else None)
    pod = next(iter(leader_first(run.pods)), None)
    found_out = summary.resolved if summary else None
    status = _assemble(run, conditions, why, pod, progress, run.active.ended_at(end), found_out)
    blocks: Block = {"completionTime": instant(end)}
    if summary is not None:
        blocks |= {
            "advice": joined(status.get("advice", ()), *summary.advice),
            "plan": plan_block(summary.plan) if summary.plan else status.get("plan"),
            "dataset": block_from(summary.dataset) if summary.dataset else {},
            "results": block_from(summary.results) if summary.results else {},
            "artifact": block_from(summary.artifact) if summary.artifact and done else {},
            "checkpoint": block_from(summary.checkpoint) if summary.checkpoint else {},
        }
    return {key: value for key, value in {**status, **blocks}.items() if value not in ({}, [], None)}


def refreshed_status(run: Run) -> Block:
    """A finished run's status, which changes no more except for the generation that it speaks of, and its advice."""
    finetune, advice = run.finetune, advise_cleanup(run)
    kept = {key: value for key, value in finetune.status.items() if key != "advice"}
    return {
        **kept,
        "observedGeneration": finetune.generation,
        "conditions": refresh_conditions(finetune),
        **({"advice": advice} if advice else {}),
    }


def _extra_conditions(run: Run, state: StateReason, verdict: Verdict | None = None) -> Iterable[Condition]:
    """Those that not every run has: quota, preflight, checkpoint."""
    job, place = run.job, run.place
    if place is not None and job is not None and ending_of(job) is None and verdict is None:
        yield quota_reserved(place, state)
    elif run.queue:
        yield no_quota(state, run.queue)
    preflight = preflight_passed(run, state, over=verdict is not None)
    if preflight is not None:
        yield preflight
    progress = run.progress if verdict is None else run.stored.progress
    checkpoint = checkpoint_saved(run.request.train, progress, verdict)
    if checkpoint is not None:
        yield checkpoint


def _shown_pod(run: Run, state: RunState) -> PodView | None:
    """The pod for kubectl logs: of several nodes always the one that leads, whichever the state is about."""
    if run.training is None or run.nodes == 1:
        return state.pod if state.pod is None or state.pod.stage != PREFLIGHT else None
    return next((pod for pod in leader_first(run.pods) if pod.index == 0), None)


def _assemble(  # noqa: PLR0917 - a status has as many parts
    run: Run,
    conditions: Iterable[Condition],
    state: StateReason,
    pod: PodView | None,
    progress: Block,
    active: ActiveTime,
    found_out: ResolvedRun | None,
) -> Block:
    stored, job = run.stored, run.job
    resolved = stored.resolved
    if job is not None:
        # What was resolved stays, unless a crash came before the first status of the Job that trains.
        resolved = run.resolved or resolved_by_request(run.request, run.rendered_image)
    if found_out is not None:
        resolved = {**resolved, **block_from(found_out)}
    started = stored.started_at or (job.started_at if job else None)
    status: Block = {
        "observedGeneration": run.finetune.generation,
        "conditions": write_conditions(run.finetune, conditions, run.now),
        "stateSince": _state_since(run, state),
        "attempt": run.attempt,
        "startTime": instant(started) if started else "",
        "jobName": run.job_name,
        "podName": pod.name if pod else stored.pod_name,
        **run.findings,
        "resolved": resolved,
        "progress": progress,
        "retries": retries_block(with_preemption(run.retries, state, stored)),
        "advice": advise(run),
    }
    known = {key: value for key, value in status.items() if value not in ("", {}, [], 0) or key == "observedGeneration"}
    return known | time_block(active)


def _state_since(run: Run, state: StateReason) -> str:
    """Since when the run is in this state."""
    stored = run.stored
    if stored.state == state.reason and stored.is_written:
        return stored.state_since
    if stored.state in (state.reason, "") and state.reason is Reason.PENDING:
        return instant(run.finetune.created_at or run.now)  # the definition's default says so, before any operator
    return instant(min(state.since or run.now, run.now))


def _free(run: Run) -> StateReason:
    """Why the run is not held, though the user may have wished it: somebody else undid that."""
    job, place = run.job, run.place
    if not run.policy.suspend or job is None:
        return NOT_SUSPENDED
    undone = place.resumed_by_others if place else job.suspend_intent is True and not job.suspended
    return _RESUMED_BY_OTHERS if undone else NOT_SUSPENDED


def _timeless(state: StateReason) -> StateReason:
    """Complete and Failed turned Unknown when the run began, not when its present state did."""
    return dataclasses.replace(state, since=None)
