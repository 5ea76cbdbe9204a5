"""What proves that a run succeeded: a pod's summary of a verified adapter, and the status of the very Job that owns it.

The summary alone is worth as much as the right to create pods in the namespace. So the pod must be controlled, by uid,
by a Job of the run that counts it (`PodView.job_uid`), and that Job must have counted a success. One that was deleted
before it did cannot any more: the Job controller adopts whatever pod carries the labels of its template, so that an
owner alone proves nothing. The next attempt then finds what was published, and verifies it.
"""

import dataclasses
from collections.abc import Iterable
from dataclasses import dataclass

from lora_operator.views.conditions import Finding
from lora_operator.views.jobs import ending_of, is_succeeding
from lora_operator.views.model import JobView, PodView
from lora_operator.views.pods import newest_first, summary_of
from lora_operator.views.wording import sentence
from lora_trainer.contract.reasons import Reason
from lora_trainer.contract.summary import Summary


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """The end of a run, or of a stage before the training. `finding.since` is when."""

    succeeded: bool
    finding: Finding
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
            finding = Finding(reason=Reason.SUCCEEDED, message=sentence(summary.message), since=pod.trainer.finished_at)
            return Verdict(succeeded=True, finding=finding, summary=summary)
    return None


def _is_confirmed(pod: PodView, evidence: Evidence) -> bool:
    if evidence.image and pod.image != evidence.image:
        return False
    return any(job.uid == pod.job_uid and is_succeeding(job) for job in (*evidence.jobs, *evidence.former))


def dated(verdict: Verdict, job: JobView) -> Verdict:
    """The verdict at the time at which the Job says that it ended."""
    ending = ending_of(job)
    since = job.completed_at or (ending.since if ending else None) or verdict.finding.since
    return dataclasses.replace(verdict, finding=dataclasses.replace(verdict.finding, since=since))
