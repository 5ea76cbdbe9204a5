"""How a run ended. Complete needs the summary of a verified adapter; an exit code of 0 alone is worth nothing."""

import dataclasses
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from lora_operator.decision.retries import ignored_by_job
from lora_operator.views.conditions import Finding
from lora_operator.views.jobs import ending_of
from lora_operator.views.model import ConditionView, JobView, PodView
from lora_operator.views.pods import failures_of, has_ended, newest_first, summary_of
from lora_operator.views.request import Policy
from lora_operator.views.wording import last_line, sentence
from lora_trainer.contract.exit_codes import reason_of
from lora_trainer.contract.reasons import Reason
from lora_trainer.contract.summary import Summary

_EXIT_CODE = re.compile(r"exit code ([0-9]{1,3})\b")
_UNSPECIFIC = {Reason.RESTARTING, Reason.EVICTED, Reason.INTERNAL_ERROR, Reason.PENDING}


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """The end of a run. `finding.since` is when. `on_absence`: something not seen weighed in, so look again first."""

    succeeded: bool
    finding: Finding
    summary: Summary | None = None
    on_absence: bool = False


def judge(job: JobView, pods: Sequence[PodView], memory: str, policy: Policy) -> Verdict | None:
    """The verdict on a finished Job and its pods; None while the Job goes on. `memory` is the pods' limit."""
    ending = ending_of(job)
    if ending is None:
        return None
    ended_at = job.completed_at or ending.since
    verdict = proven_success(pods)
    if verdict is None and ending.type == "Complete":
        verdict = _complete_without_proof(pods)
    if verdict is None:
        verdict = _failed(job, ending, pods, memory, policy)
    # A Job has ended when its pods have: one that seems to live has done something that is not known yet.
    unseen = not verdict.succeeded and any(not has_ended(pod) for pod in pods)
    finding = dataclasses.replace(verdict.finding, since=ended_at or verdict.finding.since)
    return dataclasses.replace(verdict, finding=finding, on_absence=verdict.on_absence or unseen)


def judge_preparation(job: JobView, pods: Sequence[PodView], memory: str, policy: Policy) -> Verdict | None:
    """The verdict on the Job that fetches model and data; None while it goes on. It leaves nothing that needs proof."""
    ending = ending_of(job)
    if ending is None:
        return None
    if ending.type == "Complete":
        done = (summary_of(pod) for pod in newest_first(pods) if pod.trainer.exit_code == 0)
        told = next((summary.message for summary in done if summary is not None), "")
        message = sentence(told) or f"Job {job.name} has fetched model and data into the cache"
        finding = Finding(reason=Reason.PREPARED, message=message)
        return Verdict(succeeded=True, finding=finding)
    verdict = _failed(job, ending, pods, memory, policy)
    since = job.completed_at or ending.since or verdict.finding.since
    return dataclasses.replace(verdict, finding=dataclasses.replace(verdict.finding, since=since))


def proven_success(pods: Iterable[PodView]) -> Verdict | None:
    """The success that a pod's summary proves, whatever became of its Job."""
    for pod in newest_first(pods):
        summary = summary_of(pod)
        if summary is not None and summary.succeeded:
            finding = Finding(reason=Reason.SUCCEEDED, message=sentence(summary.message), since=pod.trainer.finished_at)
            return Verdict(succeeded=True, finding=finding, summary=summary)
    return None


def deadline_exceeded(policy: Policy, pods: Iterable[PodView], memory: str) -> Verdict:
    """The end of a run that was active for longer than it may be."""
    failures = failures_of(pods, memory)
    limit = "" if policy.active_deadline_s is None else f" ({policy.active_deadline_s} s)"
    # The pod that the deadline stopped was told to stop, which is no failure of its own.
    before = next((failure for _, failure in failures if failure.reason is not Reason.EVICTED), None)
    message = (
        f"The run was active for longer than spec.activeDeadlineSeconds{limit}{_and_before(before)}: "
        "create a new LoRAFineTune with a later deadline or without one"
    )
    finding = Finding(reason=Reason.DEADLINE_EXCEEDED, message=sentence(message))
    summary = summary_of(failures[0][0]) if failures else None
    return Verdict(succeeded=False, finding=finding, summary=summary, on_absence=True)


def out_of_retries(pods: Iterable[PodView], memory: str, max_retries: int) -> Verdict:
    """The end of a run that the operator gives up, for failures that its Job would try again without end."""
    failures = failures_of(pods, memory)
    summary = summary_of(failures[0][0]) if failures else None
    last = failures[0][1] if failures else Finding(reason=Reason.BACKOFF_LIMIT_EXCEEDED, message="Its pods ended early")
    reason = Reason.BACKOFF_LIMIT_EXCEEDED if last.reason in _UNSPECIFIC else last.reason
    message = f"{last.message} (more failures than the {max_retries} of maxRetries)"
    finding = dataclasses.replace(last, reason=reason, message=sentence(message))
    return Verdict(succeeded=False, finding=finding, summary=summary, on_absence=True)


def deleted_too_often(job_name: str, deletions: int, failures: int, max_retries: int) -> Verdict:
    """The end of a run whose Job was deleted, when nothing is left of `maxRetries`, of which failures took a part."""
    times = "once" if deletions == 1 else f"{deletions} times"
    failed = "" if not failures else ", after 1 failure" if failures == 1 else f", after {failures} failures"
    message = (
        f"The run's Job was deleted {times}, the last one being {job_name}{failed}, and maxRetries is {max_retries}: "
        "create a new LoRAFineTune to run again; to pause a run, set spec.suspend to true instead"
    )
    return Verdict(succeeded=False, finding=Finding(reason=Reason.BACKOFF_LIMIT_EXCEEDED, message=message))


def _complete_without_proof(pods: Sequence[PodView]) -> Verdict:
    good = [pod for pod in newest_first(pods) if pod.phase == "Succeeded" or pod.trainer.exit_code == 0]
    summary = summary_of(good[0]) if good else None
    if summary is not None and summary.reason is not Reason.SUCCEEDED:
        finding = Finding(reason=summary.reason, message=sentence(summary.message))
        return Verdict(succeeded=False, finding=finding, summary=summary)
    which = f"Pod {good[0].name} ended with exit code 0" if good else "The Job is complete and its pod is gone"
    message = (
        f"{which}, but there is no summary of a verified adapter: look at the pod's log and at the output folder, "
        "and create a new LoRAFineTune to run again"
    )
    return Verdict(
        succeeded=False,
        finding=Finding(reason=Reason.RESULT_UNKNOWN, message=message),
        summary=summary,
        on_absence=not good,
    )


def _failed(job: JobView, ending: ConditionView, pods: Sequence[PodView], memory: str, policy: Policy) -> Verdict:
    failures = failures_of(pods, memory)
    last = failures[0][1] if failures else _failure_told_by_the_job(ending)
    summary = summary_of(failures[0][0]) if failures else None
    if ending.reason == "DeadlineExceeded":
        return dataclasses.replace(deadline_exceeded(policy, pods, memory), on_absence=not failures)
    if last is None:
        last = Finding(
            reason=Reason.RESULT_UNKNOWN,
            message=f"The Job failed ({last_line(ending.message) or 'without a message'}) and its pods are gone: "
            "create a new LoRAFineTune to run again",
        )
    counted = max(job.failed, 1)
    told = [f"the last of {counted} failures"] if counted > 1 else []
    if ending.reason == "BackoffLimitExceeded":
        told.append(f"maxRetries is {policy.max_retries}")
        if last.reason in _UNSPECIFIC:
            last = dataclasses.replace(last, reason=Reason.BACKOFF_LIMIT_EXCEEDED)
    if told:
        last = dataclasses.replace(last, message=sentence(f"{last.message} ({', '.join(told)})"))
    seen = sum(not ignored_by_job(pod) for pod, _ in failures)
    return Verdict(succeeded=False, finding=last, summary=summary, on_absence=seen < counted)


def _failure_told_by_the_job(ending: ConditionView) -> Finding | None:
    """With a pod failure policy the Job's own message holds the exit code, which outlives the pod."""
    code = _EXIT_CODE.search(ending.message)
    if code is None:
        return None
    return Finding(
        reason=reason_of(int(code[1])), message=f"The pod is gone; its Job says: {last_line(ending.message)}"
    )


def _and_before(last: Finding | None) -> str:
    return f", and had failed before with {last.reason.value} ({last.message})" if last else ""
