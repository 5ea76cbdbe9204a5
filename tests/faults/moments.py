"""What there was of some runs at one moment, to compare with later, and what must not differ."""

import enum
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.component.documents import Object
from tests.component.stage import Stage
from tests.faults.one_run import Run, attempt_of

from lora_operator.model.conditions import Type
from lora_operator.model.names import INDEX_LABEL, UID_LABEL
from lora_operator.model.observe import parse_pod
from lora_operator.model.pods import has_ended

# What answers of a few KiB from each of fifty pods need is much less; the rest is for the runs themselves.
MOST_GROWTH_BYTES = 8 * 2**20
_ENDS = ("Complete", "Failed")


class Kept(enum.Enum):
    """What is never lost."""

    PODS = "The pods that live are the same ones, and none is stopped"
    ONE_JOB = "Each attempt has one Job"
    JOBS = "The Jobs and what they specify"
    VERDICT = "The verdict"
    RETRIES = "No retry is used up: `maxRetries` holds for the run's own errors"
    CLAIMS = "The claims: none is deleted or changed"
    BEGINS = "The run begins once it may, in its first attempt"
    ENDS_WELL = "The run ends as it would have"
    ONE_WRITER = "One writer at a time: no two of a run's pods live at once"
    NO_WRITES = "The operator writes nothing"
    MEMORY = "The operator's memory grows by less than 8 MiB"
    OTHERS_OBJECT = "Somebody else's object, untouched"
    OTHERS_MARKS = "Labels and annotations that others have put there"
    OTHERS_CONDITIONS = "Conditions that others have put there"


@dataclass(frozen=True, slots=True, kw_only=True)
class Moment:
    """One look at runs, their children by run, the namespace's claims, and the operator that was started last."""

    stage: Stage
    runs: tuple[Run, ...]
    finetunes: Mapping[str, Object]
    jobs: Mapping[str, list[Object]]
    pods: Mapping[str, list[Object]]
    claims: Mapping[str, Object]
    others: Mapping[str, Object]
    warnings: frozenset[str]
    metrics: Mapping[str, float]
    writes: float
    resident_bytes: int

    def all_jobs(self) -> list[Object]:
        """The Jobs of all these runs."""
        return [job for jobs in self.jobs.values() for job in jobs]

    def living_pods(self) -> dict[str, Object]:
        """Pods that have not ended, by uid."""
        pods = (pod for pods in self.pods.values() for pod in pods)
        return {pod["metadata"]["uid"]: pod for pod in pods if not has_ended(parse_pod(pod))}

    def metric(self, prefix: str) -> float:
        """The sum of the series that begin so."""
        return sum(value for series, value in self.metrics.items() if series.startswith(prefix))


def look(stage: Stage, runs: tuple[Run, ...], others: tuple[str, ...] = ()) -> Moment:
    """See everything once. `others` are paths of objects that belong to somebody else."""
    operator = stage.operators[-1] if stage.operators else None
    running = operator if operator is not None and operator.process.poll() is None else None
    names = {run.name for run in runs}
    finetunes = {f["metadata"]["name"]: f for f in stage.objects("lorafinetunes") if f["metadata"]["name"] in names}
    events = (e for e in stage.objects("events") if e["type"] == "Warning" and e["involvedObject"]["name"] in names)
    return Moment(
        stage=stage,
        runs=runs,
        finetunes=finetunes,
        jobs={run.name: run.jobs for run in runs},
        pods={run.name: run.pods for run in runs},
        claims={claim["metadata"]["name"]: claim for claim in stage.objects("persistentvolumeclaims")},
        others={path: stage.api.get(path) for path in others},
        warnings=frozenset(f"{event['reason']}: {event['message']}" for event in events),
        metrics=running.metrics() if running else {},
        writes=running.writes() if running else 0.0,
        resident_bytes=kernel_says(running.process.pid, "VmRSS") if running else 0,
    )


def kernel_says(pid: int, field: str) -> int:
    """Bytes of memory of a process: `VmRSS` now, `VmHWM` at its highest."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{field}:"))


def condition(finetune: Object, kind: str) -> Object:
    """One condition; empty where there is none."""
    conditions = finetune.get("status", {}).get("conditions", [])
    return next((c for c in conditions if c["type"] == kind), {})


def nothing_to_see(before: Moment, now: Moment) -> list[str]:
    """What a user could have noticed: a condition with another reason, a Warning."""
    found = [f"Warning {warning}" for warning in now.warnings - before.warnings]
    for name, finetune in before.finetunes.items():
        for kind in Type:
            was, is_now = (_words(condition(f, kind)) for f in (finetune, now.finetunes[name]))
            found += [f"{name}: {kind} was {was} and is {is_now}"] if was != is_now else []
    return found


def _words(seen: Object) -> tuple[str, str]:
    return seen.get("status", ""), seen.get("reason", "")


def _pods(before: Moment, now: Moment) -> list[str]:
    was, is_now = (_stopping(moment.living_pods()) for moment in (before, now))
    if not was:
        return ["there was no pod to keep"]
    return [] if was == is_now else [f"pods and when they were stopped: {was}, and now {is_now}"]


def _stopping(pods: Mapping[str, Object]) -> dict[str, str | None]:
    return {uid: pod["metadata"].get("deletionTimestamp") for uid, pod in pods.items()}


def _jobs(before: Moment, now: Moment) -> list[str]:
    was, is_now = ({j["metadata"]["uid"]: j["spec"] for j in moment.all_jobs()} for moment in (before, now))
    if not was:
        return ["there was no Job to keep"]
    return [] if was == is_now else [f"Jobs were {was} and are {is_now}"]


def _one_job(before: Moment, now: Moment) -> list[str]:
    """By owner and name, as labels can be lost; a Job that was deleted in between counts too."""
    jobs = {job["metadata"]["uid"]: job for moment in (before, now) for job in moment.all_jobs()}
    attempts = Counter((_owner(job), attempt_of(job)) for job in jobs.values())
    found = [f"{count} Jobs of attempt {attempt} of {uid}" for (uid, attempt), count in attempts.items() if count > 1]
    alive = Counter(_owner(job) for job in now.all_jobs() if _goes_on(job))
    found += [f"{count} Jobs of {uid} go on at once" for uid, count in alive.items() if count > 1]
    return found if jobs else ["there was no Job"]


def _owner(job: Object) -> str:
    return next((owner["uid"] for owner in job["metadata"].get("ownerReferences", [])), "nobody")


def _goes_on(job: Object) -> bool:
    ended = any(c["type"] in _ENDS and c["status"] == "True" for c in job["status"].get("conditions", []))
    return not ended and "deletionTimestamp" not in job["metadata"]


def _verdict(before: Moment, now: Moment) -> list[str]:
    was, is_now = (_verdicts(moment) for moment in (before, now))
    if not was:
        return ["there was no verdict to keep"]
    return [
        f"{key}: {verdict}, and now {is_now.get(key)}" for key, verdict in was.items() if is_now.get(key) != verdict
    ]


def _verdicts(moment: Moment) -> dict[tuple[str, str], Object]:
    """Both conditions of each run that has ended; which generation they speak of is no part of a verdict."""
    return {
        (name, kind): {**condition(finetune, kind), "observedGeneration": 0}
        for name, finetune in moment.finetunes.items()
        for kind in _ENDS
        if any(condition(finetune, end).get("status") == "True" for end in _ENDS)
    }


def _retries(before: Moment, now: Moment) -> list[str]:
    was, is_now = (_own_errors(moment) for moment in (before, now))
    return [] if was == is_now else [f"retries and failed pods were {was} and are {is_now}"]


def _own_errors(moment: Moment) -> dict[str, Any]:
    said = {name: finetune.get("status", {}).get("retries", {}) for name, finetune in moment.finetunes.items()}
    counted = {
        name: {k: v for k, v in retries.items() if isinstance(v, int) and v and k != "preempted"}
        for name, retries in said.items()
    }
    failed = {name: sum(job["status"].get("failed", 0) for job in jobs) for name, jobs in moment.jobs.items()}
    return {"counted": counted, "failed": failed}


def _claims(before: Moment, now: Moment) -> list[str]:
    was, is_now = ({n: _claim(claim) for n, claim in moment.claims.items()} for moment in (before, now))
    if not was:
        return ["there was no claim to keep"]
    return [] if was == is_now else [f"claims were {was} and are {is_now}"]


def _claim(claim: Object) -> tuple[str, str | None, Object]:
    return claim["metadata"]["uid"], claim["metadata"].get("deletionTimestamp"), claim["spec"]


def _one_writer(_: Moment, now: Moment) -> list[str]:
    places = Counter(
        (pod["metadata"]["labels"][UID_LABEL], pod["metadata"]["labels"].get(INDEX_LABEL))
        for pod in now.living_pods().values()
    )
    return [f"{count} pods of {uid} live at index {index}" for (uid, index), count in places.items() if count > 1]


def _no_writes(before: Moment, now: Moment) -> list[str]:
    wrote = now.writes - before.writes
    return [f"the operator wrote {wrote:.0f} times"] if wrote or not now.metrics else []


def _memory(before: Moment, now: Moment) -> list[str]:
    grew = kernel_says(now.stage.operators[-1].process.pid, "VmHWM") - before.resident_bytes
    return [f"it grew by {grew / 2**20:.1f} MiB"] if grew >= MOST_GROWTH_BYTES or not before.resident_bytes else []


def _others_object(before: Moment, now: Moment) -> list[str]:
    was, is_now = ({p: _manifest(o) for p, o in moment.others.items()} for moment in (before, now))
    if not was:
        return ["there was no object of somebody else"]
    return [] if was == is_now else [f"somebody else's objects were {was} and are {is_now}"]


def _manifest(document: Object) -> Object:
    kept = {key: document["metadata"].get(key) for key in ("uid", "labels", "annotations", "ownerReferences")}
    return {"metadata": kept, **{k: v for k, v in document.items() if k not in ("metadata", "status")}}


def _others_marks(before: Moment, now: Moment) -> list[str]:
    found = []
    for name, was in before.finetunes.items():
        found += _lost_marks(was, now.finetunes[name])
    jobs = {job["metadata"]["uid"]: job for job in now.all_jobs()}
    for job in before.all_jobs():
        found += _lost_marks(job, jobs.get(job["metadata"]["uid"], {"metadata": {"name": job["metadata"]["name"]}}))
    return found


def _others_conditions(before: Moment, now: Moment) -> list[str]:
    was, is_now = (
        {
            (name, c["type"]): c
            for name, finetune in moment.finetunes.items()
            for c in finetune["status"]["conditions"]
            if c["type"] not in set(Type)
        }
        for moment in (before, now)
    )
    if not was:
        return ["there was no condition of somebody else"]
    return [
        f"{key} was {condition} and is {is_now.get(key)}"
        for key, condition in was.items()
        if is_now.get(key) != condition
    ]


def _lost_marks(was: Object, is_now: Object) -> list[str]:
    return [
        f"{is_now['metadata']['name']} has lost its {kind} {lost}"
        for kind in ("labels", "annotations")
        if (lost := was["metadata"].get(kind, {}).keys() - is_now["metadata"].get(kind, {}).keys())
    ]


HELD: Mapping[Kept, Callable[[Moment, Moment], list[str]]] = {
    Kept.PODS: _pods,
    Kept.ONE_JOB: _one_job,
    Kept.JOBS: _jobs,
    Kept.VERDICT: _verdict,
    Kept.RETRIES: _retries,
    Kept.CLAIMS: _claims,
    Kept.ONE_WRITER: _one_writer,
    Kept.NO_WRITES: _no_writes,
    Kept.MEMORY: _memory,
    Kept.OTHERS_OBJECT: _others_object,
    Kept.OTHERS_MARKS: _others_marks,
    Kept.OTHERS_CONDITIONS: _others_conditions,
}
