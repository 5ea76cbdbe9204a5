"""`lora explain`: a run's state, and what its Jobs, pods and queue say, with the user's own rights."""

from collections.abc import Iterator
from typing import Any

from lora_client.cluster.connection import ApiError, Cluster, Object
from lora_client.output import Form, data, show
from lora_operator.model.conditions import condition_in, is_untouched
from lora_operator.model.names import UID_LABEL
from lora_operator.model.objects import EventView, FineTune, JobView, Observed, PodView, WorkloadView
from lora_operator.model.observe import parse_event, parse_finetune, parse_job, parse_pod, parse_workload
from lora_operator.model.plain import plain
from lora_operator.model.pods import has_ended, newest_first

_MOST_EVENTS = "50"
_KUEUE_VERSIONS = ("v1beta2", "v1beta1")
_UNTAKEN = "No operator has written a status yet: ask an administrator whether one runs, and watches this namespace"


def explain(cluster: Cluster, name: str, form: Form) -> None:
    """Print the explanation, as text too in YAML. Raises `ClientError`."""
    run = cluster.get("lorafinetunes", name)
    if form is Form.NAME:
        show(form, [run], ())
    else:
        data(form, explanation(cluster, run))


def explanation(cluster: Cluster, run: Object) -> dict[str, Any]:
    """State and advice by the status, and the children as they are seen, as plain values. Raises `ClientError`."""
    finetune = parse_finetune(run)
    complete = condition_in(finetune.status, "Complete")
    notes = [_UNTAKEN] if is_untouched(finetune.status) else []
    document = {
        "run": f"{finetune.namespace}/{finetune.name}",
        "state": complete.get("reason"),
        "message": complete.get("message"),
        "advice": finetune.status.get("advice"),
        "observed": _observe(cluster, finetune, notes),
        "notes": notes,
    }
    return {key: plain(value) for key, value in document.items() if value}


def _observe(cluster: Cluster, finetune: FineTune, notes: list[str]) -> Observed:
    selector = {"labelSelector": f"{UID_LABEL}={finetune.uid}"}
    jobs = [parse_job(job) for job in cluster.items("jobs", selector)]
    jobs = [job for job in jobs if job.owner_uid == finetune.uid]
    pods = [parse_pod(pod) for pod in cluster.items("pods", selector)]
    workloads = _workloads(cluster, {job.uid for job in jobs}, notes)
    return Observed(
        jobs=tuple(jobs),
        pods=tuple(pods),
        kueue=workloads is not None,
        workloads=workloads or (),
        events=tuple(_events(cluster, jobs, pods, notes)),
    )


def _workloads(cluster: Cluster, jobs: set[str], notes: list[str]) -> tuple[WorkloadView, ...] | None:
    """Kueue's records of these Jobs, in the newest version that it serves; None where the cluster has no Kueue."""
    for version in _KUEUE_VERSIONS:
        try:
            found = map(parse_workload, cluster.items("workloads", version=version))
        except ApiError as error:
            if error.code == 404:
                continue
            if error.code != 403:
                raise
            notes.append(
                f"Kueue's Workloads cannot be read, so what its queue says is missing: {error.refusal.message}"
            )
            return None
        return tuple(workload for workload in found if workload.job_uid in jobs)
    return None


def _events(cluster: Cluster, jobs: list[JobView], pods: list[PodView], notes: list[str]) -> Iterator[EventView]:
    """About pods that have not ended, or the latest Job where there is none: they only explain."""
    living = [pod.uid for pod in newest_first(pods) if not has_ended(pod)]
    latest = sorted(jobs, key=lambda job: (job.attempt, job.created_at), reverse=True)
    for uid in living[:2] or [job.uid for job in latest[:1]]:
        query = {"fieldSelector": f"involvedObject.uid={uid}", "limit": _MOST_EVENTS}
        try:
            answer: Object = cluster.request("GET", cluster.path("events"), query=query)
        except ApiError as error:
            if error.code != 403:
                raise
            notes.append(
                f"The Events of the children cannot be read, so a reason may be missing: {error.refusal.message}"
            )
            return
        items: list[Any] = answer.get("items") or []
        yield from map(parse_event, items)
