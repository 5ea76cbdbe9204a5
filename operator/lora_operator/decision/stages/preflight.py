"""Before GPUs are asked for: model, data and the output's address are looked at, and the run is planned.

Its success leaves nothing to prove, and the training checks all of it again: so a report that is missing or cannot be
read only leaves the status without it.
"""

import dataclasses
from typing import Any

from lora_operator.decision.blocks import block_from, read_block
from lora_operator.decision.case import Case
from lora_operator.decision.proof import Verdict, dated
from lora_operator.decision.results import plan_block
from lora_operator.decision.stages.stage import Stage
from lora_operator.decision.verdict import failed
from lora_operator.rendering.pod_template import Shape
from lora_operator.views import names
from lora_operator.views.conditions import Condition, Finding, Type, previous_condition
from lora_operator.views.jobs import ending_of
from lora_operator.views.model import FineTune, JobView, MemoryLimit, ObjectRef, PodView
from lora_operator.views.pods import newest_first, summary_of
from lora_operator.views.request import PodRequest
from lora_operator.views.wording import block_of, sentence
from lora_trainer.contract.advice.codes import Advice
from lora_trainer.contract.fit.settle import settled
from lora_trainer.contract.quantity import at_least
from lora_trainer.contract.reasons import Reason
from lora_trainer.contract.run_plan import RunPlan
from lora_trainer.contract.summary import Summary

Block = dict[str, Any]
FIRST = 1
"""The attempt whose preflight is the run's, for all that follow."""


def findings(case: Case) -> Block:
    """The blocks `preflight` and `plan` of the status: as they stand there or, before that, as a pod reported them."""
    if _has_passed(case.finetune):
        known = {key: block_of(case.finetune.status, key) for key in ("preflight", "plan")}
        return {key: block for key, block in known.items() if block}
    summary = _report(case)
    preflight = block_from(summary.preflight) if summary and summary.preflight else {}
    plan = plan_block(summary.plan) if summary and summary.plan else {}
    return ({"preflight": preflight} if preflight else {}) | ({"plan": plan} if plan else {})


def advised(case: Case) -> tuple[Advice, ...]:
    """What its pod has to advise, until that stands in the status."""
    summary = None if _has_passed(case.finetune) else _report(case)
    return summary.advice if summary else ()


def _report(case: Case) -> Summary | None:
    job = _job(case)
    verdict = _judge(case, job) if job else None
    return verdict.summary if verdict else None


def _job(case: Case) -> JobView | None:
    jobs = (job for job in case.children.jobs if (job.stage, job.attempt) == (names.PREFLIGHT, FIRST))
    return next(jobs, case.children.stages.get(names.PREFLIGHT))


def planned(case: Case) -> Case:
    """The case of a training: what its configuration leaves open is as the plan in the status says, in each attempt."""
    train, plan = case.request.train, read_block(RunPlan, findings(case).get("plan", {}))
    if train is None or plan is None:
        return case
    request = dataclasses.replace(case.request, pod=_with_memory(case, plan), train=settled(train, plan))
    return dataclasses.replace(case, request=request)


def _with_memory(case: Case, plan: RunPlan) -> PodRequest:
    """With at least the main memory that the plan estimates, where the resource says nothing of it."""
    pod = case.request.pod
    if pod.memory is None or "memory" in block_of(case.finetune.spec, "resources"):
        return pod
    return dataclasses.replace(pod, memory=at_least(pod.memory, plan.pod_memory_bytes))


def _is_due(case: Case) -> bool:
    """Once for a run, not for each attempt: one that has a training Job, or had one, is past it."""
    return case.request.preflight and case.children.attempt == 0 and not _has_passed(case.finetune)


def is_lost(case: Case) -> bool:
    """Whether no status has what the preflight found, and its Job, which came before the training's, is not known."""
    children = case.children
    looked = case.request.preflight and not _has_passed(case.finetune) and _job(case) is None
    return looked and children.job is not None and not children.expected


def is_unread(case: Case) -> bool:
    """Whether its Job has ended well and no pod of it that is known has a report: the watch of pods may lag behind."""
    job = None if _has_passed(case.finetune) else _job(case)
    verdict = _judge(case, job) if job else None
    return verdict is not None and verdict.succeeded and verdict.summary is None


def no_longer_needed(case: Case) -> tuple[ObjectRef, ...]:
    """Its ended Job, once the status has what it found: the training may need that place in a quota."""
    jobs = (job for job in case.children.jobs if job.stage == names.PREFLIGHT and not job.deleting)
    ended = (job for job in jobs if ending_of(job) is not None)
    return tuple(ObjectRef(kind="Job", name=j.name, uid=j.uid) for j in ended) if _has_passed(case.finetune) else ()


def _has_passed(finetune: FineTune) -> bool:
    return previous_condition(finetune, Type.PREFLIGHT_PASSED).get("status") == "True"


def _memory(case: Case) -> MemoryLimit:
    remedy = "have preflightMemory raised in the operator's configuration"
    return MemoryLimit(amount=case.config.preflight_memory, remedy=remedy)


def _judge(case: Case, job: JobView) -> Verdict | None:
    ending, pods = ending_of(job), case.pods_of(job)
    if ending is None:
        return None
    if ending.type != "Complete":
        return dated(failed(job, ending, pods, _memory(case), case.request.policy), job)
    reports = (summary_of(pod) for pod in newest_first(pods) if pod.trainer.exit_code == 0)
    report = next((r for r in reports if r is not None and r.reason is Reason.PREFLIGHT_PASSED), None)
    unread = (
        f"Job {job.name} has succeeded, but there is no report of it that can be read: the training begins, and "
        "checks model, data and output itself"
    )
    message = sentence(report.message) if report else unread
    return Verdict(succeeded=True, finding=Finding(reason=Reason.PREFLIGHT_PASSED, message=message), summary=report)


def _condition(case: Case, state: Finding, verdict: Verdict | None) -> Condition | None:
    if _has_passed(case.finetune):
        message = str(previous_condition(case.finetune, Type.PREFLIGHT_PASSED).get("message", ""))
        return _passed(Finding(reason=Reason.PREFLIGHT_PASSED, message=message))
    job = _job(case)
    if job is None:
        return None
    own = _judge(case, job)
    if own is not None and own.succeeded:
        return _passed(own.finding)
    return Condition(type=Type.PREFLIGHT_PASSED, holds=None if verdict is None else False, finding=state)


def _passed(finding: Finding) -> Condition:
    return Condition(type=Type.PREFLIGHT_PASSED, holds=True, finding=finding)


def _at_work(pod: PodView) -> Finding:
    message = f"Pod {pod.name} looks at model, data and output, before GPUs are asked for"
    return Finding(reason=Reason.PREFLIGHT, message=message)


PREFLIGHT = Stage(
    name=names.PREFLIGHT,
    shape=Shape(command="preflight", trains=False),
    is_due=_is_due,
    judge=_judge,
    condition=_condition,
    memory=_memory,
    at_work=_at_work,
    ended=Reason.PREFLIGHT,
)
