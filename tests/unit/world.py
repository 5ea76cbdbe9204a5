"""A model of the API server and the Job controller: what `decide` plans is carried out, and life goes on."""

import copy
import dataclasses
import itertools
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any

from tests.unit.builders import CONFIG, NOW, condition_object, make_manifest
from tests.unit.contradictions import contradictions
from tests.unit.deciding import decide

from lora_operator.model.config import OperatorConfig
from lora_operator.model.names import INDEX_LABEL, JOB_NAME_LABEL, place_of
from lora_operator.model.objects import EventRecord, FineTune, JobView, Observed, Patch, Plan, PodView, Refusal
from lora_operator.model.observe import parse_finetune, parse_job, parse_pod
from lora_operator.model.wording import instant

if TYPE_CHECKING:
    from lora_trainer.spec.progress import Progress

Object = dict[str, Any]
MOST_ROUNDS = 5
MOST_REFUSED = 2
"""Changes of a turn: all that is wanted of a Job, then its suspension or the end of that alone."""


def index_of(pod: Object) -> int:
    """Which of several nodes a pod is."""
    return int(pod["metadata"]["labels"][INDEX_LABEL])


def succeeded(pod: Object) -> bool:
    """Whether it has ended well."""
    phase: str = pod["status"]["phase"]
    return phase == "Succeeded"


class World:
    """One LoRAFineTune with its Jobs and pods. `settle` decides and applies until nothing is left to do."""

    def __init__(self, spec: Object | None = None, config: OperatorConfig = CONFIG) -> None:
        self.now: datetime = NOW
        self.config = config
        self.finetune: Object = make_manifest(spec=spec)
        self.jobs: dict[str, Object] = {}
        self.pods: dict[str, Object] = {}
        self.services: set[str] = set()
        self.events: list[EventRecord] = []
        self.created_jobs = 0
        self.most_living_jobs = 0
        self.progress: Progress | None = None
        self.refusal: tuple[int, str] | None = None
        self._numbers = itertools.count(1)

    def view(self) -> FineTune:
        """The resource as the operator reads it."""
        return parse_finetune(copy.deepcopy(self.finetune))

    def observed(self, refusals: tuple[Refusal, ...] = ()) -> Observed:
        """Everything that there is, with no lag."""
        running = any(self.state_of(pod) == "running" for pod in self.pods.values())
        return Observed(
            jobs=tuple(self.job_views()),
            pods=tuple(self.pod_views()),
            progress=self.progress if running else None,
            refusals=refusals,
        )

    def job_views(self) -> list[JobView]:
        """The Jobs, read."""
        return [parse_job(job) for job in self.jobs.values()]

    def pod_views(self) -> list[PodView]:
        """The pods, read."""
        return [parse_pod(pod) for pod in self.pods.values()]

    def settle(self) -> Plan:
        """Decide and apply until a plan asks for nothing; that plan is returned."""
        for _ in range(MOST_ROUNDS):
            plan = self.step()
            if not plan.create and not plan.patch and not plan.delete and plan.status == self.status:
                return plan
        raise AssertionError(f"the operator does not come to rest: {plan}")

    def step(self, cached: Observed | None = None) -> Plan:
        """One decision, on what a cache holds or on the truth, carried out; what it changed is marked in its status."""
        before = self.status
        plan = decide(self.view(), cached or self.observed(), self.config, self.now)
        if bool(plan.verify):
            plan = decide(self.view(), self.observed(), self.config, self.now)
        if self.refusal is not None:
            plan = self._refused(plan)
        self.apply(plan)
        if plan.status == before:
            return plan
        return dataclasses.replace(plan, status={**plan.status, "_": "changed"})

    def _refused(self, plan: Plan) -> Plan:
        """The plan once all changes and creations are refused."""
        assert self.refusal is not None
        code, message = self.refusal
        refusals: tuple[Refusal, ...] = ()
        while plan.create or plan.patch:
            refusal = Refusal(kind="Job", name="x", code=code, reason="", message=message)
            refusals += tuple(dataclasses.replace(refusal, patch=patch) for patch in plan.patch)
            refusals += (refusal,) if plan.create else ()
            assert len(refusals) <= MOST_REFUSED
            plan = decide(self.view(), self.observed(refusals), self.config, self.now)
        return plan

    @property
    def status(self) -> Object:
        """The status as stored."""
        status: Object = self.finetune.get("status", {})
        return status

    def condition(self, kind: str) -> tuple[str, str]:
        """Status and reason of a condition as stored."""
        found = next(c for c in self.status["conditions"] if c["type"] == kind)
        return found["status"], found["reason"]

    def apply(self, plan: Plan) -> None:
        """Carry out a plan, as the API server would."""
        for obj in plan.create:
            self._create(copy.deepcopy(dict(obj)))
        for patch in plan.patch:
            self._patch(patch)
        assert contradictions(self.status, plan.status) == []
        self.finetune["status"] = copy.deepcopy(dict(plan.status))
        for ref in plan.delete:
            if ref.kind == "Job" and ref.name in self.jobs:
                assert self.jobs[ref.name]["metadata"]["uid"] == ref.uid
                self.delete_job(ref.name)
            elif ref.kind == "Service":
                self.services.discard(ref.name)
        self.events.extend(plan.events)
        self.most_living_jobs = max(self.most_living_jobs, sum(not self.is_over(job) for job in self.jobs.values()))

    def jobs_of(self, stage: str) -> list[Object]:
        """The Jobs of a stage."""
        return [job for name, job in self.jobs.items() if place_of(name)[1] == stage]

    def _create(self, obj: Object) -> None:
        name = obj["metadata"]["name"]
        if obj["kind"] == "Service":
            self.services.add(name)
            return
        if name in self.jobs:
            return  # the API server refuses a second object of the same name, and the first one is ours
        obj["metadata"] |= {"uid": f"uid-{name}-{next(self._numbers)}", "creationTimestamp": instant(self.now)}
        obj["status"] = {} if obj["spec"]["suspend"] else {"startTime": instant(self.now)}
        self.jobs[name] = obj
        self.created_jobs += 1

    def _patch(self, patch: Patch) -> None:
        job = self.jobs.get(patch.name)
        if job is None:
            return
        for section, values in patch.body.items():
            for key, value in values.items():
                if isinstance(value, dict):
                    job[section].setdefault(key, {}).update(value)
                elif value is None:
                    job[section].pop(key, None)
                else:
                    job[section][key] = value

    # Cluster life

    @staticmethod
    def is_over(job: Object) -> bool:
        """Whether a Job has ended."""
        return any(c["type"] in {"Complete", "Failed"} for c in job["status"].get("conditions", []))

    @staticmethod
    def state_of(pod: Object) -> str:
        """running, waiting or ended."""
        state = pod["status"].get("containerStatuses", [{"state": {"waiting": {}}}])[0]["state"]
        return "ended" if "terminated" in state else "running" if "running" in state else "waiting"

    def living_pods(self) -> list[Object]:
        """Pods whose trainer has not ended."""
        return [pod for pod in self.pods.values() if self.state_of(pod) != "ended"]

    def pass_time(self, seconds: int) -> None:
        """The clock goes on."""
        self.now += timedelta(seconds=seconds)

    def pods_of(self, job: Object) -> list[Object]:
        """Every pod of a Job."""
        uid = job["metadata"]["uid"]
        return [pod for pod in self.pods.values() if pod["metadata"]["ownerReferences"][0]["uid"] == uid]

    def job_controller(self) -> None:
        """Make the pods that a Job lacks, and stop those of one that is suspended or over."""
        for name, job in self.jobs.items():
            pods = self.pods_of(job)
            if not self.is_over(job):
                self._note_suspension(job)
            if job["spec"]["suspend"] or self.is_over(job):
                for pod in pods:
                    if self.state_of(pod) != "ended":
                        del self.pods[pod["metadata"]["name"]]
                continue
            there = {index_of(pod) for pod in pods if self.state_of(pod) != "ended" or succeeded(pod)}
            for index in set(range(job["spec"]["parallelism"])) - there:
                self._make_pod(name, job, index)

    def _note_suspension(self, job: Object) -> None:
        """A resumed Job starts anew, as its `activeDeadlineSeconds` does."""
        held = any(c["type"] == "Suspended" for c in job["status"].get("conditions", []))
        if job["spec"]["suspend"] and not held:
            job["status"]["conditions"] = [condition_object("Suspended", since=self.now)]
        elif held and not job["spec"]["suspend"]:
            job["status"] |= {"conditions": [], "startTime": instant(self.now)}

    def _make_pod(self, job_name: str, job: Object, index: int) -> None:
        job["status"].setdefault("startTime", instant(self.now))
        name = f"{job_name}-{index}-{next(self._numbers)}"
        self.pods[name] = {
            "metadata": {
                "name": name,
                "uid": f"uid-{name}",
                "labels": {
                    **job["spec"]["template"]["metadata"]["labels"],
                    INDEX_LABEL: str(index),
                    JOB_NAME_LABEL: job_name,
                },
                "annotations": {INDEX_LABEL: str(index)},
                "ownerReferences": [
                    {"kind": "Job", "name": job_name, "uid": job["metadata"]["uid"], "controller": True}
                ],
                "creationTimestamp": instant(self.now),
            },
            "spec": {"nodeName": "node-1"},
            "status": {"phase": "Pending"},
        }

    def start(self, pod: Object) -> None:
        """The trainer runs."""
        running = {"startedAt": instant(self.now)}
        pod["status"] = {
            "phase": "Running",
            "containerStatuses": [{"name": "trainer", "state": {"running": running}}],
            "conditions": [condition_object("Ready", since=self.now)],
        }

    def finish(self, pod: Object, code: int, message: str, *, disrupted: bool = False) -> None:
        """The trainer ends, and the Job controller takes note as its policies say."""
        state = pod["status"].get("containerStatuses", [{"state": {}}])[0]["state"]
        started_at = state.get("running", {}).get("startedAt", instant(self.now))
        times = {"startedAt": started_at, "finishedAt": instant(self.now)}
        ended = {"exitCode": code, "message": message, "reason": "Error", **times}
        pod["status"] = {
            "phase": "Failed" if code else "Succeeded",
            "containerStatuses": [{"name": "trainer", "state": {"terminated": ended}}],
            "conditions": [condition_object("DisruptionTarget", since=self.now)] if disrupted else [],
        }
        uid = pod["metadata"]["ownerReferences"][0]["uid"]
        job = next((job for job in self.jobs.values() if job["metadata"]["uid"] == uid), None)
        if job is None or self.is_over(job) or (disrupted and code):
            return
        final = job["spec"]["podFailurePolicy"]["rules"][1]["onExitCodes"]["values"]
        if code == 0:
            job["status"]["succeeded"] = job["status"].get("succeeded", 0) + 1
            if len({index_of(p) for p in self.pods_of(job) if succeeded(p)}) == job["spec"]["completions"]:
                self._end(job, "Complete", "")
        else:
            job["status"]["failed"] = job["status"].get("failed", 0) + 1
            if code in final:
                self._end(job, "Failed", "PodFailurePolicy")
            elif job["status"]["failed"] > job["spec"]["backoffLimit"]:
                self._end(job, "Failed", "BackoffLimitExceeded")

    def _end(self, job: Object, kind: str, reason: str) -> None:
        job["status"]["conditions"] = [condition_object(kind, since=self.now, reason=reason)]
        if kind == "Complete":
            job["status"]["completionTime"] = instant(self.now)

    def delete_job(self, name: str, *, orphan: bool = False) -> None:
        """Somebody deletes a Job, with its pods or without."""
        uid = self.jobs.pop(name)["metadata"]["uid"]
        for pod_name, pod in list(self.pods.items()):
            if pod["metadata"]["ownerReferences"] and pod["metadata"]["ownerReferences"][0]["uid"] == uid:
                if orphan:
                    pod["metadata"]["ownerReferences"] = [{"kind": "Job", "uid": uid, "controller": False}]
                else:
                    del self.pods[pod_name]

    def suspend_job(self, name: str, value: bool) -> None:
        """Somebody other than the operator suspends or resumes a Job."""
        self.jobs[name]["spec"]["suspend"] = value

    def edit(self, **spec: Any) -> None:
        """The user changes the mutable part of the spec."""
        self.finetune["spec"] = {**self.finetune["spec"], **spec}
        self.finetune["metadata"]["generation"] += 1
