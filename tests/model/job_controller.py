"""The Job controller of Kubernetes 1.34 (pkg/controller/job), in memory. It acts when it is told to.

`tests/component/test_job_controller.py` holds it against the real one.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

from tests.model.objects import (
    Object,
    condition_of,
    controller_reference,
    controller_uid,
    ending_of,
    is_over,
    with_condition,
)
from tests.model.server import TRACKING, Place, Server, labels_of

from lora_operator.model.names import CONTROLLER_UID_LABEL, INDEX_LABEL, JOB_NAME_LABEL
from lora_operator.model.wording import instant, parse_instant

_COUNTED = "batch.kubernetes.io/job-index-failure-count"
_IGNORED = "batch.kubernetes.io/job-index-ignored-failure-count"
_FIRST_BACKOFF_S, _LONGEST_BACKOFF_S = 10, 600


@dataclass(slots=True, kw_only=True)
class _Look:
    """What one sync knows of a Job. `tracked` are the pods with an end or a life that is not counted yet, `delayed` by
    index those that failed and keep their finalizer until another has taken over how often the index failed."""

    job: Object
    status: Object
    pods: Sequence[Object]
    active: list[Object]
    terminating: int
    tracked: list[Object]
    failed: int = 0
    done: set[int] = field(default_factory=set)
    delayed: dict[int, Object] = field(default_factory=dict)

    @property
    def spec(self) -> Mapping[str, Any]:
        """The Job's."""
        spec: Mapping[str, Any] = self.job["spec"]
        return spec

    @property
    def is_indexed(self) -> bool:
        """Whether its pods have numbers."""
        return self.spec.get("completionMode") == "Indexed"

    @property
    def by_index(self) -> bool:
        """Whether each number counts its own failures."""
        return "backoffLimitPerIndex" in self.spec

    @property
    def suspended(self) -> bool:
        """Whether somebody wants it to wait."""
        return self.spec.get("suspend") is True

    @property
    def deleted(self) -> bool:
        """Whether it is only there for a finalizer."""
        return "deletionTimestamp" in self.job["metadata"]

    def newly(self, phase: str) -> list[Object]:
        """The pods that have ended so, and are not counted yet."""
        return [pod for pod in self.tracked if pod["status"].get("phase") == phase]


class JobController:
    """What reacts to Jobs and their pods. It refuses to make pods where `refuses_pods` says why."""

    def __init__(self, server: Server, now: Callable[[], datetime]) -> None:
        self._server = server
        self._now = now
        self.refuses_pods = ""
        self.created_pods = 0
        self._backoff: dict[str, tuple[int, datetime]] = {}

    def sync_jobs(self) -> None:
        """One look at each Job, and at pods whose Job is gone or has ended."""
        jobs = {job["metadata"]["uid"]: job for job in self._server.all("jobs")}
        for pod in self._server.all("pods"):
            job = jobs.get(controller_uid(pod))
            if job is None or (ending_of(job) and "deletionTimestamp" in pod["metadata"]):
                self._untrack(pod)
        for job in jobs.values():
            if ending_of(job):
                self._backoff.pop(job["metadata"]["uid"], None)
            else:
                self._sync(job)

    def pods_of(self, job: Mapping[str, Any]) -> list[Object]:
        """The pods that a Job controls."""
        return [pod for pod in self._server.all("pods") if controller_uid(pod) == job["metadata"]["uid"]]

    # -- a sync

    def _sync(self, job: Object) -> None:
        self._adopt(job)
        look = self._look_at(job)
        status = look.status
        if not look.suspended and "startTime" not in status:
            status["startTime"] = instant(self._now())
        backoff = self._backoff_after(look)
        finished = self._decided(look)
        if finished is not None:
            self._stop(look)
        else:
            if not look.deleted:
                self._manage(look, backoff)
            if self._is_complete(look):
                finished = ("SuccessCriteriaMet", "CompletionsReached")
            elif not look.deleted:
                self._tell_of_suspension(look)
        self._count(look, finished)
        if backoff is not None:
            self._backoff[job["metadata"]["uid"]] = backoff

    def _look_at(self, job: Object) -> _Look:
        pods = sorted(self.pods_of(job), key=_index)
        look = _Look(
            job=job,
            status={"failed": 0, "succeeded": 0, "uncountedTerminatedPods": {}, **job["status"]},
            pods=pods,
            active=[pod for pod in pods if not is_over(pod) and not _is_deleted(pod)],
            terminating=sum(_is_terminating(pod) for pod in pods),
            tracked=[],
        )
        look.tracked = [pod for pod in pods if _is_tracked(pod) and (not look.is_indexed or _has_index(look.spec, pod))]
        look.failed = look.status["failed"] + sum(counts(job, pod) for pod in look.newly("Failed"))
        look.done = _parsed(look.status.get("completedIndexes", "")) | {*map(_index, look.newly("Succeeded"))}
        if look.by_index:
            look.delayed = _delayed(look)
        return look

    def _decided(self, look: _Look) -> tuple[str, str] | None:
        """How the Job is to end, by what it says already or by what its pods did."""
        status, spec = look.status, look.spec
        for kind in ("SuccessCriteriaMet", "FailureTarget"):
            known = condition_of(status, kind)
            if known.get("status") == "True":
                return kind, str(known["reason"])
        # Whoever counted them: a pod that ends the Job does so as long as it is there.
        if any(_action(look.job, pod) == "FailJob" for pod in look.pods if pod["status"].get("phase") == "Failed"):
            return "FailureTarget", "PodFailurePolicy"
        if look.failed > spec["backoffLimit"]:
            return "FailureTarget", "BackoffLimitExceeded"
        if self._is_late(look):
            return "FailureTarget", "DeadlineExceeded"
        wanted = [_parsed(rule["succeededIndexes"]) for rule in spec.get("successPolicy", {}).get("rules", ())]
        return ("SuccessCriteriaMet", "SuccessPolicy") if any(rule <= look.done for rule in wanted) else None

    def _is_late(self, look: _Look) -> bool:
        limit_s, started = look.spec.get("activeDeadlineSeconds"), parse_instant(look.status.get("startTime"))
        if look.suspended or limit_s is None or started is None:
            return False
        return self._now() >= started + timedelta(seconds=limit_s)

    def _is_complete(self, look: _Look) -> bool:
        return _succeeded(look) >= look.spec["completions"] and not look.active

    def _tell_of_suspension(self, look: _Look) -> None:
        known, now = condition_of(look.status, "Suspended").get("status"), self._now()
        if look.suspended and known != "True":
            look.status = with_condition(look.status, "Suspended", "True", "JobSuspended", now)
        elif not look.suspended and known == "True":
            look.status = with_condition(look.status, "Suspended", "False", "JobResumed", now)
            look.status["startTime"] = instant(now)

    # -- its pods

    def _adopt(self, job: Object) -> None:
        """Take pods without an owner that have the labels of the template, whoever made them."""
        if "deletionTimestamp" in job["metadata"]:
            return
        for pod in list(self._server.all("pods")):
            metadata = pod["metadata"]
            fits = labels_of(pod).get(CONTROLLER_UID_LABEL) == job["metadata"]["uid"]
            if not fits or controller_uid(pod) or "deletionTimestamp" in metadata:
                continue
            finalizers = [*metadata.get("finalizers", ()), TRACKING]
            adopted = {**metadata, "ownerReferences": [controller_reference(job)], "finalizers": finalizers}
            self._server.write({**pod, "metadata": adopted}, "pods")

    def _stop(self, look: _Look) -> None:
        """Delete what lives, with the finalizer by which its end is counted."""
        look.terminating += len(look.active)
        for pod in look.active:
            self._delete(pod)
        look.active = []

    def _manage(self, look: _Look, backoff: tuple[int, datetime] | None) -> None:
        """Make the pods that are missing, and delete those that are too many, which then count as nothing."""
        wanted = max(0, min(look.spec["completions"] - _succeeded(look), look.spec["parallelism"]))
        fitting = [pod for pod in look.active if not look.is_indexed or _has_index(look.spec, pod)]
        kept = [] if look.suspended else fitting[:wanted]
        surplus = [pod for pod in look.active if pod not in kept]
        if surplus:
            look.active = kept
            look.terminating += len(surplus)
            for pod in surplus:
                self._untrack(pod)
                self._delete(pod)
        elif not look.suspended and wanted > len(look.active) + self._kept_away(look):
            self._make_pods(look, backoff, wanted)

    def _kept_away(self, look: _Look) -> int:
        """How many pods wait for those that are stopping."""
        return look.terminating if look.spec.get("podReplacementPolicy") == "Failed" else 0

    def _make_pods(self, look: _Look, backoff: tuple[int, datetime] | None, wanted: int) -> None:
        count = wanted - len(look.active) - self._kept_away(look)
        if not look.by_index and backoff is not None and self._waits(*backoff):
            look.active = []  # so the status says, whatever lives
            return
        indexes: list[int | None] = [None] * count
        if look.is_indexed:
            due = _missing(look)[:count]
            indexes = [index for index in due if not self._waits_for(look.delayed.get(index))]
            if due and not indexes:
                look.active = []  # so the status says, whatever lives
                return
        for index in indexes:
            if self.refuses_pods:
                self._tell(look.job, self.refuses_pods)
                return
            look.active.append(self._make_pod(look, index))

    def _waits_for(self, pod: Object | None) -> bool:
        """Whether an index of which this is the last pod is to wait yet."""
        return pod is not None and self._waits(sum(failures_before(pod)) + 1, _finished_at(pod))

    def _waits(self, failures: int, last: datetime) -> bool:
        if not failures:
            return False
        pause_s = min(_FIRST_BACKOFF_S * 2 ** min(failures - 1, 6), _LONGEST_BACKOFF_S)
        return self._now() < last + timedelta(seconds=pause_s)

    def _backoff_after(self, look: _Look) -> tuple[int, datetime] | None:
        """How often pods failed since one succeeded, and when the last did; those that are ignored, too."""
        before = self._backoff.get(look.job["metadata"]["uid"])
        failed, good = sorted(map(_finished_at, look.newly("Failed"))), map(_finished_at, look.newly("Succeeded"))
        success = max(good, default=None)
        if success is not None:
            failed, before = [at for at in failed if at > success], (0, success)
        if not failed:
            return before
        return (before[0] if before else 0) + len(failed), failed[-1]

    def _make_pod(self, look: _Look, index: int | None) -> Object:
        metadata, template = look.job["metadata"], look.job["spec"]["template"]
        annotations = dict(template["metadata"].get("annotations", {}))
        labels = {**template["metadata"]["labels"], JOB_NAME_LABEL: metadata["name"]}
        if index is not None:
            annotations[INDEX_LABEL] = labels[INDEX_LABEL] = str(index)
        if index is not None and look.by_index:
            annotations |= _counts_after(look.job, look.delayed.get(index))
        self.created_pods += 1
        name = metadata["name"] if index is None else f"{metadata['name']}-{index}"
        pod = {
            "metadata": {
                "name": f"{name}-{self.created_pods:05d}",
                "labels": labels,
                "annotations": annotations,
                "finalizers": [TRACKING],
                "ownerReferences": [controller_reference(look.job)],
            },
            "spec": {"terminationGracePeriodSeconds": 30},
        }
        return self._server.handle("POST", f"/api/v1/namespaces/{metadata['namespace']}/pods", pod)

    # -- the book

    def _count(self, look: _Look, finished: tuple[str, str] | None) -> None:
        """Write down what is to be counted, let the pods go, count them; and say that the Job has ended once it has."""
        status = look.status
        letting_go = [pod for pod in look.pods if _is_tracked(pod) and self._may_go(look, pod, finished)]
        fails = finished is not None and finished[0] == "FailureTarget"
        phases = {"Failed", "Running", "Pending"} if fails else {"Failed"}
        ended = [pod for phase in phases for pod in look.newly(phase) if pod in letting_go]
        failed = [pod for pod in ended if counts(look.job, pod)]
        status["active"], status["terminating"] = len(look.active), look.terminating
        if look.is_indexed:
            status["completedIndexes"] = _text(look.done)
            status["succeeded"] = len(look.done)
        if look.by_index:
            status["failedIndexes"] = ""  # backoffLimitPerIndex is never reached
        if finished is not None and condition_of(status, finished[0]).get("status") != "True":
            status = with_condition(status, finished[0], "True", finished[1], self._now())
        uids = {"failed": [pod["metadata"]["uid"] for pod in failed]}
        if not look.is_indexed:
            uids["succeeded"] = [pod["metadata"]["uid"] for pod in look.newly("Succeeded")]
        uncounted = {key: found for key, found in uids.items() if found}
        self._server.write({**look.job, "status": {**status, "uncountedTerminatedPods": uncounted}}, "jobs")
        for pod in letting_go:
            self._untrack(pod)
        status["failed"] += len(failed)
        status["succeeded"] += len(uids.get("succeeded", ()))
        if finished is not None and not look.terminating:
            kind = "Failed" if fails else "Complete"
            status = with_condition(status, kind, "True", finished[1], self._now())
            if kind == "Complete":
                status["completionTime"] = instant(self._now())
        self._server.write({**look.job, "status": status}, "jobs")

    def _may_go(self, look: _Look, pod: Object, finished: tuple[str, str] | None) -> bool:
        """Whether nothing more is to be learned from a pod."""
        if look.deleted or finished is not None or pod["status"].get("phase") == "Succeeded":
            return True
        return pod["status"].get("phase") == "Failed" and look.delayed.get(_index(pod)) is not pod

    # -- requests

    def _delete(self, pod: Object) -> None:
        metadata = pod["metadata"]
        if Place("pods", metadata["namespace"], metadata["name"]) in self._server.objects:
            self._server.handle("DELETE", f"/api/v1/namespaces/{metadata['namespace']}/pods/{metadata['name']}")

    def _untrack(self, pod: Object) -> None:
        if _is_tracked(pod):
            self._without_finalizer("pods", pod, TRACKING)

    def _without_finalizer(self, plural: str, document: Object, name: str) -> None:
        """Take a finalizer off what is stored now, whatever it has become meanwhile."""
        metadata = document["metadata"]
        stored = self._server.objects.get(Place(plural, metadata["namespace"], metadata["name"]))
        if stored is not None and stored["metadata"]["uid"] == metadata["uid"]:
            finalizers = [other for other in stored["metadata"].get("finalizers", ()) if other != name]
            self._server.write({**stored, "metadata": {**stored["metadata"], "finalizers": finalizers}}, plural)

    def _tell(self, job: Object, message: str) -> None:
        metadata = job["metadata"]
        path = f"/api/v1/namespaces/{metadata['namespace']}/events"
        name = f"{metadata['name']}.refused"
        event: Object = {
            "metadata": {"name": name},
            "involvedObject": {"kind": "Job", "uid": metadata["uid"]},
            "type": "Warning",
            "reason": "FailedCreate",
            "message": message,
            "lastTimestamp": instant(self._now()),
        }
        if not any(known["metadata"]["name"] == name for known in self._server.all("events")):
            self._server.handle("POST", path, event)


# -- what a pod says


def failures_before(pod: Mapping[str, Any]) -> tuple[int, int]:
    """How often pods of its index failed before it: those that count, and those that are ignored."""
    annotations = pod["metadata"].get("annotations") or {}
    return int(annotations.get(_COUNTED, 0)), int(annotations.get(_IGNORED, 0))


def counts(job: Mapping[str, Any], pod: Mapping[str, Any]) -> bool:
    """Whether the pod failure policy lets the Job count a pod's failure."""
    return _action(job, pod) != "Ignore"


def _action(job: Mapping[str, Any], pod: Mapping[str, Any]) -> str:
    """What the pod failure policy says of a failed pod: the first rule that matches."""
    stated = {(c["type"], c["status"]) for c in pod["status"].get("conditions", ())}
    ended = {
        item["name"]: item["state"]["terminated"]["exitCode"]
        for item in pod["status"].get("containerStatuses", ())
        if "terminated" in item["state"]
    }
    for rule in job["spec"].get("podFailurePolicy", {}).get("rules", ()):
        if any((wish["type"], wish["status"]) in stated for wish in rule.get("onPodConditions", ())):
            return str(rule["action"])
        codes = rule.get("onExitCodes")
        if codes is not None:
            code = ended.get(codes["containerName"])
            if code and (code in codes["values"]) is (codes["operator"] == "In"):
                return str(rule["action"])
    return "Count"


def _counts_after(job: Object, pod: Object | None) -> dict[str, str]:
    """The annotations of the pod that takes a failed one's place."""
    if pod is None:
        return {_COUNTED: "0"}
    counted, ignored = failures_before(pod)
    counted, ignored = (counted + 1, ignored) if counts(job, pod) else (counted, ignored + 1)
    return {_COUNTED: str(counted), **({_IGNORED: str(ignored)} if ignored else {})}


def _delayed(look: _Look) -> dict[int, Object]:
    """Of each index that has no living pod and is not done, the failed pod that knows most of it."""
    busy = look.done | {*map(_index, look.active)}
    last: dict[int, Object] = {}
    for pod in look.newly("Failed"):
        index = _index(pod)
        known = last.get(index)
        if index not in busy and (known is None or _rank(known) <= _rank(pod)):
            last[index] = pod
    return last


def _rank(pod: Object) -> tuple[int, datetime]:
    return sum(failures_before(pod)), _finished_at(pod)


def _finished_at(pod: Mapping[str, Any]) -> datetime:
    """When a pod ended: by its containers, else since when it is not ready or deleted."""
    metadata, status = pod["metadata"], pod["status"]
    ends = [item["state"].get("terminated", {}).get("finishedAt") for item in status.get("containerStatuses", ())]
    ready = condition_of(status, "Ready")
    candidates = (
        max(ends) if ends and all(ends) else None,
        ready.get("lastTransitionTime") if ready.get("status") == "False" else None,
        metadata.get("deletionTimestamp"),
        metadata["creationTimestamp"],
    )
    at = parse_instant(next(filter(None, candidates)))
    assert at is not None
    return at


def _index(pod: Mapping[str, Any]) -> int:
    """-1 for a pod that has none, as one that somebody else made and the Job adopted."""
    return int((pod["metadata"].get("annotations") or {}).get(INDEX_LABEL, -1))


def _has_index(spec: Mapping[str, Any], pod: Mapping[str, Any]) -> bool:
    return _index(pod) in range(spec["completions"])


def _is_tracked(pod: Mapping[str, Any]) -> bool:
    return TRACKING in pod["metadata"].get("finalizers", ())


def _is_deleted(pod: Mapping[str, Any]) -> bool:
    return "deletionTimestamp" in pod["metadata"]


def _is_terminating(pod: Mapping[str, Any]) -> bool:
    return _is_deleted(pod) and not is_over(pod)


# -- what the Job says


def _succeeded(look: _Look) -> int:
    if look.is_indexed:
        return len(look.done)
    return int(look.status["succeeded"]) + len(look.newly("Succeeded"))


def _missing(look: _Look) -> list[int]:
    """Indexes that have no pod, not even one that is stopping, and are not done."""
    stopping = (pod for pod in look.pods if _is_terminating(pod) and look.spec.get("podReplacementPolicy") == "Failed")
    there = look.done | {_index(pod) for pod in (*look.active, *stopping)}
    return [index for index in range(look.spec["completions"]) if index not in there]


def _parsed(indexes: str) -> set[int]:
    """The numbers in a text such as 0,2-4."""
    parts = [part.split("-") for part in indexes.split(",") if part]
    return {number for part in parts for number in range(int(part[0]), int(part[-1]) + 1)}


def _text(indexes: Iterable[int]) -> str:
    """Such a text: of three neighbours and more the ends."""
    parts: list[list[int]] = []
    for index in sorted(indexes):
        if parts and index == parts[-1][-1] + 1:
            parts[-1].append(index)
        else:
            parts.append([index])
    return ",".join(f"{p[0]}-{p[-1]}" if len(p) > 2 else ",".join(map(str, p)) for p in parts)
