"""The whole status, made anew from what is known; what is known no more stays as it was before."""

import dataclasses
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from lora_operator.decision.advice import joined
from lora_operator.decision.progress import close_progress
from lora_operator.decision.proof import Verdict
from lora_operator.decision.results import (
    artifact_block,
    checkpoint_block,
    dataset_block,
    plan_block,
    resolved_by_run,
    results_block,
)
from lora_operator.decision.retries import Retries, retries_block
from lora_operator.decision.situation import Situation
from lora_operator.decision.spent_time import SpentTime, time_block
from lora_operator.views.conditions import (
    Condition,
    Finding,
    Type,
    refresh_conditions,
    state_of,
    write_conditions,
)
from lora_operator.views.model import FineTune, JobView, PodView
from lora_operator.views.wording import block_of, instant, parse_instant, text_of
from lora_trainer.contract.reasons import Reason
from lora_trainer.contract.summary import ResolvedRun

Status = dict[str, Any]
NOT_SUSPENDED = Finding(reason=Reason.NOT_SUSPENDED, message="The run is not suspended")
_RESUMED_BY_OTHERS = Finding(
    reason=Reason.NOT_SUSPENDED,
    message="spec.suspend is true, but another controller resumed the Job, such as its queue: set spec.suspend to "
    "false and then to true to hold it again",
)
_NOT_YET_PUBLISHED = Finding(reason=Reason.PENDING, message="The result is published when the training is done")
_SUSPENSIONS = {Reason.SUSPENDED_BY_USER, Reason.SUSPENDED_EXTERNALLY, Reason.QUEUED, Reason.PREEMPTED}


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """What a status says besides its state. None and empty mean: as before.

    `milestones` are further conditions, `findings` the blocks of what was found out beforehand. `resumed_by_others`:
    the user's suspension was applied, and then undone.
    """

    milestones: tuple[Condition, ...] = ()
    findings: Status = dataclasses.field(default_factory=dict)
    attempt: int = 0
    job_name: str = ""
    job: JobView | None = None
    resumed_by_others: bool = False
    pod: PodView | None = None
    resolved: Status = dataclasses.field(default_factory=dict)
    found_out: ResolvedRun | None = None
    progress: Status = dataclasses.field(default_factory=dict)
    spent: SpentTime = dataclasses.field(default_factory=SpentTime)
    retries: Retries = dataclasses.field(default_factory=Retries)
    advice: list[Status] = dataclasses.field(default_factory=list)


def acceptance(job_name: str) -> Condition:
    """The condition Accepted of a spec that breaks no rule; `job_name` is empty where no Job is made yet."""
    runs = f"Job {job_name} runs it" if job_name else "its Job is not made yet"
    finding = Finding(reason=Reason.ACCEPTED, message=f"The spec is valid; {runs}")
    return Condition(type=Type.ACCEPTED, holds=True, finding=finding)


def ongoing_status(
    finetune: FineTune, accepted: Condition, situation: Situation, facts: Facts, now: datetime
) -> Status:
    """The status of a run that has not ended. Its state is the reason of Complete and Failed, which are Unknown."""
    state = situation.state
    # A pod's end is by its node's clock, which may be wrong, and a pending timeout counts from here.
    ready = situation.ready_since if situation.running else _timeless(state)
    suspended = state.reason in _SUSPENSIONS
    publishing = (
        dataclasses.replace(_NOT_YET_PUBLISHED, reason=state.reason) if _publishes(state) else _NOT_YET_PUBLISHED
    )
    conditions = (
        accepted,
        Condition(type=Type.PODS_READY, holds=situation.running, finding=ready),
        Condition(type=Type.SUSPENDED, holds=suspended, finding=state if suspended else _free(finetune, facts)),
        Condition(type=Type.ARTIFACT_PUBLISHED, holds=None, finding=publishing),
        Condition(type=Type.COMPLETE, holds=None, finding=_timeless(state)),
        Condition(type=Type.FAILED, holds=None, finding=_timeless(state)),
        *facts.milestones,
    )
    return _assemble(finetune, conditions, facts, now, state)


def final_status(finetune: FineTune, accepted: Condition, verdict: Verdict, facts: Facts, now: datetime) -> Status:
    """The status of a run that has ended, well or badly; it is the last one."""
    end = min(verdict.finding.since or now, now)  # a node's clock may be ahead
    finding = dataclasses.replace(verdict.finding, since=end)
    done = verdict.succeeded
    published = finding
    if verdict.summary is not None and verdict.summary.artifact is not None and done:
        published = dataclasses.replace(finding, message=f"The verified result is at {verdict.summary.artifact.uri}")
    over = finding if not done else dataclasses.replace(finding, message="The pod has done its work and ended")
    conditions = (
        accepted,
        Condition(type=Type.PODS_READY, holds=False, finding=over),
        Condition(type=Type.SUSPENDED, holds=False, finding=NOT_SUSPENDED),
        Condition(type=Type.ARTIFACT_PUBLISHED, holds=done, finding=published),
        Condition(type=Type.COMPLETE, holds=done, finding=finding),
        Condition(type=Type.FAILED, holds=not done, finding=finding),
        *facts.milestones,
    )
    summary = verdict.summary
    facts = dataclasses.replace(facts, found_out=summary.resolved if summary and summary.resolved else facts.found_out)
    if summary is not None and summary.plan is not None:
        facts = dataclasses.replace(facts, findings={**facts.findings, "plan": plan_block(summary.plan)})
    facts = dataclasses.replace(facts, spent=facts.spent.ended_at(end))
    facts = dataclasses.replace(facts, advice=joined(facts.advice, *(summary.advice if summary else ())))
    status = _assemble(finetune, conditions, facts, now, finding)
    status["completionTime"] = instant(end)
    blocks = {
        "progress": close_progress(finetune, summary.results if summary and done else None),
        "dataset": dataset_block(summary.dataset) if summary and summary.dataset else {},
        "results": results_block(summary.results) if summary and summary.results else {},
        "artifact": artifact_block(summary.artifact) if summary and summary.artifact and done else {},
        "checkpoint": checkpoint_block(summary.checkpoint) if summary and summary.checkpoint else {},
    }
    return {key: value for key, value in {**status, **blocks}.items() if value != {}}


def refreshed_status(finetune: FineTune) -> Status:
    """A finished run's status, which changes no more except for the generation that it speaks of."""
    return {
        **finetune.status,
        "observedGeneration": finetune.generation,
        "conditions": refresh_conditions(finetune),
    }


def _assemble(
    finetune: FineTune, conditions: Iterable[Condition], facts: Facts, now: datetime, state: Finding
) -> Status:
    before = finetune.status
    resolved = {**(facts.resolved or block_of(before, "resolved"))}
    if facts.found_out is not None:
        resolved |= resolved_by_run(facts.found_out)
    started = parse_instant(before.get("startTime")) or (facts.job.started_at if facts.job else None)
    status: Status = {
        "observedGeneration": finetune.generation,
        "conditions": write_conditions(finetune, conditions, now),
        "stateSince": _state_since(finetune, state, now),
        "attempt": facts.attempt,
        "startTime": instant(started) if started else "",
        "jobName": facts.job_name,
        "podName": facts.pod.name if facts.pod else text_of(before.get("podName")),
        **facts.findings,
        "resolved": resolved,
        "progress": facts.progress,
        "retries": retries_block(facts.retries),
        "advice": facts.advice,
    }
    known = {key: value for key, value in status.items() if value not in ("", {}, [], 0) or key == "observedGeneration"}
    return known | time_block(facts.spent)


def _state_since(finetune: FineTune, state: Finding, now: datetime) -> str:
    """Since when the run is in this state; empty where it was before anybody wrote that down."""
    before = finetune.status
    if state_of(before) == state.reason and "observedGeneration" in before:
        return text_of(before.get("stateSince"))
    if state_of(before) in (state.reason, "") and state.reason is Reason.PENDING:
        return instant(finetune.created_at or now)  # the definition's default says so, before there is an operator
    return instant(min(state.since or now, now))


def _free(finetune: FineTune, facts: Facts) -> Finding:
    """Why the run is not held, though the user may have wished it."""
    return _RESUMED_BY_OTHERS if facts.resumed_by_others and finetune.spec.get("suspend") is True else NOT_SUSPENDED


def _publishes(state: Finding) -> bool:
    return state.reason is Reason.PUBLISHING


def _timeless(state: Finding) -> Finding:
    """Complete and Failed turned Unknown when the run began, not when its present state did."""
    return dataclasses.replace(state, since=None)
