"""How a run ends. A success needs a proof: a pod's summary of a verified adapter, and the status of the very Job that
owns it; an exit code of 0 alone is none.

The summary alone is worth as much as the right to create pods in the namespace. So the pod must be controlled, by uid,
by a Job of the run that counts it (`PodView.job_uid`), and that Job must have counted a success. One that was deleted
before it did cannot any more: the Job controller adopts whatever pod carries the labels of its template, so that an
owner alone proves nothing. The next attempt then finds what was published, and verifies it.
"""

import dataclasses
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from lora_operator.model.conditions import StateReason
from lora_operator.model.jobs import ending_of, is_succeeding
from lora_operator.model.objects import ConditionView, JobView, MemoryLimit, PodView
from lora_operator.model.pods import failures_of, newest_first, summary_of
from lora_operator.model.request import Policy
from lora_operator.model.wording import last_line, sentence
from lora_trainer.spec.exit_codes import reason_of
from lora_trainer.spec.reasons import FAILURES, Reason
from lora_trainer.spec.summary import Summary

_EXIT_CODE = re.compile(r"exit code ([0-9]{1,3})\b")
_UNSPECIFIC = {Reason.RESTARTING, Reason.EVICTED, Reason.INTERNAL_ERROR, Reason.PENDING, Reason.RESULT_UNKNOWN}


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """The end of a run, or of a stage before the training. `why.since` is when."""

    succeeded: bool
    why: StateReason
    summary: Summary | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Evidence:
    """Against what a claim is held: the run's Jobs, the last states of those that are gone, and the rendered image.

    `image` is empty where any will do.
    """

    jobs: tuple[JobView, ...] = ()
    former: tuple[JobView, ...] = ()
    image: str = ""


def claims_success(pod: PodView) -> bool:
    """Whether the pod left the summary of a verified adapter."""
    summary = summary_of(pod)
    return summary is not None and summary.succeeded


def proven_success(pods: Iterable[PodView], evidence: Evidence) -> Verdict | None:
    """The success that a pod's summary and its Job prove together."""
    for pod in newest_first(pods):
        summary = summary_of(pod)
        if summary is not None and summary.succeeded and _is_confirmed(pod, evidence):
            why = StateReason(reason=Reason.SUCCEEDED, message=sentence(summary.message), since=pod.trainer.finished_at)
            return Verdict(succeeded=True, why=why, summary=summary)
    return None


def _is_confirmed(pod: PodView, evidence: Evidence) -> bool:
    if evidence.image and pod.image != evidence.image:
        return False
    return any(job.uid == pod.job_uid and is_succeeding(job) for job in (*evidence.jobs, *evidence.former))


def dated(verdict: Verdict, job: JobView) -> Verdict:
    """The verdict at the time at which the Job says that it ended."""
    ending = ending_of(job)
    since = job.completed_at or (ending.since if ending else None) or verdict.why.since
    return dataclasses.replace(verdict, why=dataclasses.replace(verdict.why, since=since))


def training_verdict(
    job: JobView, pods: Sequence[PodView], memory: MemoryLimit, policy: Policy, evidence: Evidence
) -> Verdict | None:
    """How the training's Job ended, with its pods; None while it goes on."""
    ending = ending_of(job)
    if ending is None:
        return None
    verdict = proven_success(pods, evidence)
    if verdict is None and ending.type == "Complete":
        verdict = complete_without_proof(pods, evidence)
    return dated(verdict or failed(job, ending, pods, memory, policy), job)


def deadline_exceeded(policy: Policy, pods: Iterable[PodView], memory: MemoryLimit) -> Verdict:
    """The end of a run that was active for longer than it may be."""
    failures = failures_of(pods, memory)
    limit = "" if policy.active_deadline_s is None else f" ({policy.active_deadline_s} s)"
    # The pod that the deadline stopped did as it should, which is no failure of its own.
    before = next((failure for _, failure in failures if failure.reason is not Reason.EVICTED), None)
    message = (
        f"The run was active for longer than spec.activeDeadlineSeconds{limit}{_and_before(before)}: "
        "create a new LoRAFineTune with a later deadline or without one"
    )
    why = StateReason(reason=Reason.DEADLINE_EXCEEDED, message=sentence(message))
    summary = summary_of(failures[0][0]) if failures else None
    return Verdict(succeeded=False, why=why, summary=summary)


def out_of_retries(pods: Iterable[PodView], memory: MemoryLimit, max_retries: int) -> Verdict:
    """The end of a run that the operator gives up, for failures that its Job would try again without end."""
    failures = failures_of(pods, memory)
    summary = summary_of(failures[0][0]) if failures else None
    last = (
        failures[0][1]
        if failures
        else StateReason(reason=Reason.BACKOFF_LIMIT_EXCEEDED, message="Its pods ended early")
    )
    reason = Reason.BACKOFF_LIMIT_EXCEEDED if last.reason in _UNSPECIFIC else last.reason
    message = f"{last.message} (more failures than the {max_retries} of maxRetries)"
    why = dataclasses.replace(last, reason=reason, message=sentence(message))
    return Verdict(succeeded=False, why=why, summary=summary)


def deleted_too_often(
    job_name: str, deletions: int, failures: int, max_retries: int, claimant: PodView | None
) -> Verdict:
    """The end of a run whose Job was deleted, when nothing is left of `maxRetries`, of which failures took a part.

    `claimant` is a pod with the summary of a verified adapter, which the Job had not counted yet.
    """
    times = "once" if deletions == 1 else f"{deletions} times"
    failed = "" if not failures else ", after 1 failure" if failures == 1 else f", after {failures} failures"
    result = (
        f"; pod {claimant.name} says that it has published a verified adapter, which the Job was deleted too early to "
        "confirm, so look at the output folder"
        if claimant
        else ""
    )
    message = (
        f"The run's Job was deleted {times}, the last one being {job_name}{failed}, and maxRetries is {max_retries}: "
        f"create a new LoRAFineTune to run again; to pause a run, set spec.suspend to true instead{result}"
    )
    return Verdict(succeeded=False, why=StateReason(reason=Reason.BACKOFF_LIMIT_EXCEEDED, message=message))


def complete_without_proof(pods: Sequence[PodView], evidence: Evidence) -> Verdict:
    """The end of a run whose Job is complete, while no pod proves a verified adapter."""
    good = [pod for pod in newest_first(pods) if pod.phase == "Succeeded" or pod.trainer.exit_code == 0]
    summary = summary_of(good[0]) if good else None
    if summary is not None and summary.reason in FAILURES:
        why = StateReason(reason=summary.reason, message=sentence(summary.message))
        return Verdict(succeeded=False, why=why, summary=summary)
    if summary is not None and evidence.image and good[0].image != evidence.image:
        message = (
            f"Pod {good[0].name} ran image {good[0].image}, and only results of {evidence.image} count "
            "(requireRenderedImage in the operator's configuration): look at what changes images in this cluster"
        )
        return Verdict(succeeded=False, why=StateReason(reason=Reason.RESULT_UNKNOWN, message=sentence(message)))
    which = f"Pod {good[0].name} ended with exit code 0" if good else "The Job is complete and its pod is gone"
    message = (
        f"{which}, but there is no summary of a verified adapter: look at the pod's log and at the output folder, "
        "and create a new LoRAFineTune to run again"
    )
    why = StateReason(reason=Reason.RESULT_UNKNOWN, message=message)
    return Verdict(succeeded=False, why=why, summary=summary)


def failed(
    job: JobView, ending: ConditionView, pods: Sequence[PodView], memory: MemoryLimit, policy: Policy
) -> Verdict:
    """The end of a run whose Job has failed, or succeeded without what it was for."""
    failures = failures_of(pods, memory)
    last = failures[0][1] if failures else _failure_by_the_job(ending)
    summary = summary_of(failures[0][0]) if failures else None
    if ending.reason == "DeadlineExceeded":
        return deadline_exceeded(policy, pods, memory)
    if last is None:
        last = StateReason(
            reason=Reason.RESULT_UNKNOWN,
            message=f"The Job failed ({last_line(ending.message) or 'without a message'}) and its pods are gone: "
            "create a new LoRAFineTune to run again",
        )
    counted = max(job.failed, 1)
    details = [f"the last of {counted} failures"] if counted > 1 else []
    if ending.reason == "BackoffLimitExceeded":
        details.append(f"maxRetries is {policy.max_retries}")
        if last.reason in _UNSPECIFIC:
            last = dataclasses.replace(last, reason=Reason.BACKOFF_LIMIT_EXCEEDED)
    if details:
        last = dataclasses.replace(last, message=sentence(f"{last.message} ({', '.join(details)})"))
    return Verdict(succeeded=False, why=last, summary=summary)


def _failure_by_the_job(ending: ConditionView) -> StateReason | None:
    """With a pod failure policy the Job's own message holds the exit code, which outlives the pod."""
    code = _EXIT_CODE.search(ending.message)
    if code is None:
        return None
    return StateReason(
        reason=reason_of(int(code[1])), message=f"The pod is gone; its Job says: {last_line(ending.message)}"
    )


def _and_before(last: StateReason | None) -> str:
    return f", and had failed before with {last.reason.value} ({last.message})" if last else ""
