"""The cluster's own life, in memory: Job controller, garbage collector and scheduler. Each acts when it is told to."""

from collections.abc import Callable, Iterable, Mapping
from datetime import datetime, timedelta
from typing import Any

from tests.model.server import FOREGROUND, ORPHAN, TRACKING, Object, Server, labels_of
from tests.model.ttl import delete_expired

from lora_operator.views.names import CONTROLLER_UID_LABEL, INDEX_LABEL, JOB_NAME_LABEL
from lora_operator.views.wording import instant, parse_instant

NODE = "node-1"
INDEX_ANNOTATION = "batch.kubernetes.io/job-completion-index"


def controller_uid(document: Mapping[str, Any]) -> str:
    """The uid of the controlling owner."""
    owners = document["metadata"].get("ownerReferences") or ()
    return next((str(owner["uid"]) for owner in owners if owner.get("controller")), "")


def is_over(pod: Mapping[str, Any]) -> bool:
    """Whether a pod has reached its last phase."""
    return pod["status"].get("phase") in {"Succeeded", "Failed"}


def ending_of(job: Mapping[str, Any]) -> str:
    """Complete or Failed; empty for a Job that goes on."""
    conditions = job["status"].get("conditions", ())
    return next(
        (str(c["type"]) for c in conditions if c["type"] in {"Complete", "Failed"} and c["status"] == "True"), ""
    )


class Controllers:
    """What reacts to Jobs, pods and owners."""

    def __init__(self, server: Server, now: Callable[[], datetime]) -> None:
        self._server = server
        self._now = now
        self.refuses_pods = ""
        self.created_pods = 0
        self.sync_queues: Callable[[], None] = lambda: None

    def catch_up(self) -> None:
        """Act until nobody has anything left to do."""
        for _ in range(50):
            before = self._server.version
            self.sync_jobs()
            self.sync_queues()
            delete_expired(self._server, self._now())
            self.collect_garbage()
            if self._server.version == before:
                return
        raise AssertionError("the controllers do not come to rest")

    # -- the garbage collector

    def collect_garbage(self) -> None:
        """Delete what has lost its owners; finish deletions in the foreground and those that orphan."""
        server = self._server
        uids = {document["metadata"]["uid"] for document in server.objects.values()}
        for place, document in list(server.objects.items()):
            owners = document["metadata"].get("ownerReferences")
            if owners and not any(owner["uid"] in uids for owner in owners):
                self._collect(place.plural, document)
        for place, document in list(server.objects.items()):
            finalizers = document["metadata"].get("finalizers", [])
            if "deletionTimestamp" not in document["metadata"]:
                continue
            uid = document["metadata"]["uid"]
            dependents = [
                (other.plural, child)
                for other, child in server.objects.items()
                if any(owner["uid"] == uid for owner in child["metadata"].get("ownerReferences") or ())
            ]
            if ORPHAN in finalizers:
                for plural, child in dependents:
                    rest = [owner for owner in child["metadata"]["ownerReferences"] if owner["uid"] != uid]
                    server.write({**child, "metadata": {**child["metadata"], "ownerReferences": rest}}, plural)
                self._without_finalizer(place.plural, document, ORPHAN)
            elif FOREGROUND in finalizers:
                for plural, child in dependents:
                    self._collect(plural, child, "Foreground")
                if not dependents:
                    self._without_finalizer(place.plural, document, FOREGROUND)

    def _collect(self, plural: str, document: Object, policy: str = "Background") -> None:
        metadata = document["metadata"]
        if "deletionTimestamp" in metadata:
            return
        prefix = {"jobs": "/apis/batch/v1", "lorafinetunes": "/apis/lora-operator.io/v1alpha1"}.get(plural, "/api/v1")
        path = f"{prefix}/namespaces/{metadata['namespace']}/{plural}/{metadata['name']}"
        self._server.handle("DELETE", path, {"propagationPolicy": policy})

    def _without_finalizer(self, plural: str, document: Object, name: str) -> None:
        finalizers = [other for other in document["metadata"].get("finalizers", ()) if other != name]
        self._server.write({**document, "metadata": {**document["metadata"], "finalizers": finalizers}}, plural)

    # -- the Job controller

    def sync_jobs(self) -> None:
        """One look at each Job, and at pods whose Job is gone."""
        jobs = list(self._server.all("jobs"))
        uids = {job["metadata"]["uid"] for job in jobs}
        for pod in self._server.all("pods"):
            if TRACKING in pod["metadata"].get("finalizers", ()) and controller_uid(pod) not in uids:
                self._without_finalizer("pods", pod, TRACKING)
        for job in jobs:
            self._sync(job)

    def pods_of(self, job: Mapping[str, Any]) -> list[Object]:
        """The pods that a Job controls."""
        return [pod for pod in self._server.all("pods") if controller_uid(pod) == job["metadata"]["uid"]]

    def _sync(self, job: Object) -> None:
        status = {"failed": 0, "succeededIndexes": [], **job["status"]}
        self._adopt(job)
        pods = self.pods_of(job)
        if "deletionTimestamp" in job["metadata"] or ending_of(job):
            for pod in pods:
                self._without_finalizer("pods", pod, TRACKING)
            if ending_of(job):
                self._stop(pods)
            return
        suspended = job["spec"].get("suspend") is True
        status = self._suspension(status, suspended=suspended)
        verdict = self._count(job, status, pods)
        if verdict is None and not suspended:
            verdict = self._deadline(job, status)
        if verdict is not None:
            status = with_condition(status, verdict[0], "True", verdict[1], self._now())
        decided = condition_of(status, "FailureTarget") or condition_of(status, "SuccessCriteriaMet")
        living = [pod for pod in pods if not is_over(pod)]
        if suspended or decided:
            self._stop(living, counted=bool(decided))
        else:
            self._make_pods(job, status, pods)
        living = [pod for pod in self.pods_of(job) if not is_over(pod)]
        if decided and not living:
            kind = "Failed" if decided["type"] == "FailureTarget" else "Complete"
            status = with_condition(status, kind, "True", decided["reason"], self._now())
            if kind == "Complete":
                status["completionTime"] = instant(self._now())
        status["succeeded"] = len(set(status["succeededIndexes"]))
        status["active"] = sum("deletionTimestamp" not in pod["metadata"] for pod in living)
        self._server.write({**job, "status": status}, "jobs")
        for pod in self.pods_of(job):
            if is_over(pod):
                self._without_finalizer("pods", pod, TRACKING)

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

    def _suspension(self, status: Object, *, suspended: bool) -> Object:
        known = condition_of(status, "Suspended").get("status")
        if suspended and known != "True":
            return with_condition(status, "Suspended", "True", "JobSuspended", self._now())
        if not suspended and known == "True":
            return {
                **with_condition(status, "Suspended", "False", "JobResumed", self._now()),
                "startTime": instant(self._now()),
            }
        return status if suspended or "startTime" in status else {**status, "startTime": instant(self._now())}

    def _count(self, job: Object, status: Object, pods: Iterable[Object]) -> tuple[str, str] | None:
        """Count what ended and was not counted yet; a verdict where that decides the Job."""
        if condition_of(status, "FailureTarget") or condition_of(status, "SuccessCriteriaMet"):
            return None
        for pod in pods:
            if not is_over(pod) or TRACKING not in pod["metadata"].get("finalizers", ()):
                continue
            if pod["status"]["phase"] == "Succeeded":
                index = pod["metadata"].get("annotations", {}).get(INDEX_ANNOTATION)
                status["succeededIndexes"] = [*status["succeededIndexes"], *filter(None, [index])]
                continue
            action = _action(job, pod)
            if action == "FailJob":
                return "FailureTarget", "PodFailurePolicy"
            status["failed"] += action == "Count"
        done = set(status["succeededIndexes"])
        first = "successPolicy" in job["spec"] and "0" in done
        if first or len(done) == job["spec"]["completions"]:
            return "SuccessCriteriaMet", "SuccessPolicy" if first else "CompletionsReached"
        return ("FailureTarget", "BackoffLimitExceeded") if status["failed"] > job["spec"]["backoffLimit"] else None

    def _deadline(self, job: Object, status: Object) -> tuple[str, str] | None:
        limit_s, started = job["spec"].get("activeDeadlineSeconds"), parse_instant(status.get("startTime"))
        decided = condition_of(status, "FailureTarget") or condition_of(status, "SuccessCriteriaMet")
        if decided or limit_s is None or started is None or self._now() < started + timedelta(seconds=limit_s):
            return None
        return "FailureTarget", "DeadlineExceeded"

    def _stop(self, pods: Iterable[Object], *, counted: bool = True) -> None:
        """Delete them; those of a Job that is suspended count as nothing, however they end."""
        for pod in pods:
            if is_over(pod) or "deletionTimestamp" in pod["metadata"]:
                continue
            if not counted:
                self._without_finalizer("pods", pod, TRACKING)
            self._collect("pods", pod)

    def _make_pods(self, job: Object, status: Object, pods: Iterable[Object]) -> None:
        """A pod for each index that has none; one that is still stopping keeps its successor away."""
        patient = job["spec"].get("podReplacementPolicy") == "Failed"
        living = [pod for pod in pods if not is_over(pod) and (patient or "deletionTimestamp" not in pod["metadata"])]
        there = {labels_of(pod).get(INDEX_LABEL, "0") for pod in living}
        there |= set(status["succeededIndexes"])
        for index in map(str, range(job["spec"]["parallelism"])):
            if index in there:
                continue
            if self.refuses_pods:
                self._tell(job, self.refuses_pods)
                return
            self._make_pod(job, index)

    def _make_pod(self, job: Object, index: str) -> None:
        metadata, template = job["metadata"], job["spec"]["template"]
        self.created_pods += 1
        pod = {
            "metadata": {
                "name": f"{metadata['name']}-{index}-{self.created_pods:05d}",
                "labels": {
                    **template["metadata"]["labels"],
                    INDEX_LABEL: index,
                    JOB_NAME_LABEL: metadata["name"],
                },
                "annotations": {**template["metadata"].get("annotations", {}), INDEX_ANNOTATION: index},
                "finalizers": [TRACKING],
                "ownerReferences": [controller_reference(job)],
            },
            "spec": {"terminationGracePeriodSeconds": 30},
        }
        self._server.handle("POST", f"/api/v1/namespaces/{metadata['namespace']}/pods", pod)

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


def controller_reference(job: Object) -> Object:
    """The controller reference of a Job's pod."""
    owner = {"apiVersion": "batch/v1", "kind": "Job", "name": job["metadata"]["name"], "uid": job["metadata"]["uid"]}
    return {**owner, "controller": True, "blockOwnerDeletion": True}


def _action(job: Mapping[str, Any], pod: Mapping[str, Any]) -> str:
    """What the pod failure policy says of a failed pod."""
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


def condition_of(status: Mapping[str, Any], kind: str) -> Mapping[str, Any]:
    """The condition of a kind; empty where there is none."""
    found: Iterable[Mapping[str, Any]] = status.get("conditions", ())
    return next((c for c in found if c["type"] == kind), {})


def with_condition(
    status: Mapping[str, Any], kind: str, value: str, reason: str, now: datetime, *, message: str = ""
) -> Object:
    """The status with that condition, whatever was said of its kind before."""
    rest = [c for c in status.get("conditions", ()) if c["type"] != kind]
    since = instant(now)
    condition = {"type": kind, "status": value, "reason": reason, "message": message, "lastTransitionTime": since}
    return {**status, "conditions": [*rest, condition]}
