"""One Job as the operator renders it, without an operator: tests play its kubelets, users and queue.

On a real control plane or on the model's controllers: the same requests, and another way to wait.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

from tests.component.documents import Object, finetune
from tests.model.job_controller import failures_before
from tests.model.life import Client
from tests.model.objects import condition_of, controller_uid, is_over

from localcluster.api import ApiError
from lora_operator.decide.ends import failures_of_job
from lora_operator.model import names
from lora_operator.model.config import OperatorConfig
from lora_operator.model.observe import parse_finetune, parse_job, parse_pod
from lora_operator.model.request import read_request
from lora_operator.model.wording import instant, parse_instant
from lora_operator.render.jobs import render_job
from lora_operator.render.pod_template import Shape
from lora_trainer.spec.manifest import RunOptions

CONFIG = OperatorConfig(trainer_image="registry.example/lora-trainer:test")
LONG_AGO = timedelta(hours=1)
"""So long ago is an end after which the Job makes the next pod at once."""
_KINDS = ("Suspended", "SuccessCriteriaMet", "FailureTarget", "Complete", "Failed")


@dataclass(frozen=True, slots=True, kw_only=True)
class Book:
    """What a Job and its pods say of what has happened. `counts` are by index those of the newest pod's annotations,
    failures and ignored ones; `living` the indexes with a pod that has neither ended nor been deleted. `conditions` are
    those that hold, with their reasons. `used` is what the operator makes of it."""

    used: int = 0
    failed: int = 0
    done: str = ""
    counts: tuple[tuple[int, int], ...] = ()
    living: tuple[int, ...] = ()
    conditions: Mapping[str, str] = field(default_factory=dict)


@dataclass(kw_only=True)
class PlayedJob:
    """A Job, and what happens to it. `wait` comes back once something is true; controllers may be `late_s`."""

    client: Client
    namespace: str
    node: str
    now: Callable[[], datetime]
    wait: Callable[[Callable[[], bool], str], None]
    name: str
    nodes: int
    late_s: int
    path: str = ""

    # -- the Job

    def make(self, stage: str, spec: Mapping[str, Any], suspended: bool) -> None:
        """Create it for a run of that spec."""
        manifest = finetune(self.name, suspend=suspended, resources={"nodes": self.nodes}, **spec)
        manifest["metadata"] |= {"uid": f"{self.name}-uid", "namespace": self.namespace}
        request = read_request(manifest, RunOptions(uid=f"{self.name}-uid", attempt=1))
        assert request.train is not None, request.problems
        trains = stage == names.TRAIN
        shape = Shape(command="run" if trains else stage, trains=trains)
        job = render_job(parse_finetune(manifest), request, request.train, CONFIG, stage=stage, shape=shape)
        del job["metadata"]["ownerReferences"]  # there is no run, and the garbage collector would see that
        self.path = f"/apis/batch/v1/namespaces/{self.namespace}/jobs/{job['metadata']['name']}"
        self.client.post(self.path.rpartition("/")[0], job)

    @property
    def job(self) -> Object:
        """As it is now."""
        return self.client.get(self.path)

    def counts(self, code: int) -> int:
        """How often the Job counts a pod that ends so: 1, or 0 where its policy ignores that."""
        rules = self.job["spec"]["podFailurePolicy"]["rules"]
        ignored = [
            rule["onExitCodes"]["values"] for rule in rules if "onExitCodes" in rule and rule["action"] == "Ignore"
        ]
        return int(not any(code in values for values in ignored))

    def suspend(self, *, wish: bool) -> None:
        """The user holds it, or lets it go."""
        self.client.patch(self.path, {"spec": {"suspend": wish}})

    def stop_as_kueue(self) -> None:
        """Its queue takes the quota back, and then the time of its start."""
        self.suspend(wish=True)
        self.client.patch(f"{self.path}/status", {"status": {"startTime": None}})

    def delete(self) -> None:
        """Somebody deletes it, and waits for its pods."""
        self.client.delete(f"{self.path}?propagationPolicy=Foreground")

    # -- its pods

    def pods(self) -> list[Object]:
        """All that there are, oldest first."""
        uid = self.job["metadata"]["uid"]
        pods = [p for p in self.client.get(self._pods())["items"] if controller_uid(p) == uid]
        return sorted(pods, key=lambda pod: int(pod["metadata"]["resourceVersion"]))

    def newest(self, index: int) -> Object | None:
        """The pod of an index that was made last: each has a higher number than the one before."""
        mine = [pod for pod in self.pods() if _index(pod) == index]
        return max(
            mine, key=lambda p: (_lives(p), sum(failures_before(p)), p["metadata"]["creationTimestamp"]), default=None
        )

    def pod(self, index: int = 0) -> Object:
        """Wait for the living pod of an index."""
        self.wait(lambda: index in self.book().living, f"index {index} has a living pod")
        pod = self.newest(index)
        assert pod is not None
        return pod

    def came_after(self, pod: Object, pause_s: int) -> None:
        """The pod that took a failed one's place was made so long after that one's end."""
        index = _index(pod)
        (container,) = self.client.get(self._pods(pod["metadata"]["name"]))["status"]["containerStatuses"]
        ended = parse_instant(container["state"]["terminated"]["finishedAt"])
        made = parse_instant(self.pod(index)["metadata"]["creationTimestamp"])
        assert ended is not None
        assert made is not None
        assert pause_s <= (made - ended).total_seconds() <= pause_s + self.late_s

    def stopping(self, index: int = 0) -> Object:
        """Wait for the pod of an index that is to stop."""

        def found() -> list[Object]:
            return [p for p in self.pods() if _index(p) == index and _is_deleted(p) and not is_over(p)]

        self.wait(lambda: bool(found()), f"the pod of index {index} is being stopped")
        return found()[0]

    def _pods(self, name: str = "", subresource: str = "") -> str:
        return "/".join(["/api/v1/namespaces", self.namespace, "pods", *filter(None, (name, subresource))])

    # -- what befalls them

    def run(self, index: int = 0) -> Object:
        """A node takes the pod, and the trainer starts."""
        pod = self.pod(index)
        if not pod["spec"].get("nodeName"):
            name, target = pod["metadata"]["name"], {"apiVersion": "v1", "kind": "Node", "name": self.node}
            self.client.post(self._pods(name, "binding"), {"metadata": {"name": name}, "target": target})
        self._say(pod, "Running", {"running": {"startedAt": instant(self.now() - LONG_AGO)}})
        return pod

    def end(self, pod: Object, code: int, *, ago: timedelta = LONG_AGO, **status: Any) -> None:
        """Its trainer has ended."""
        at = instant(self.now() - ago)
        ended = {"exitCode": code, "reason": "Error" if code else "Completed", "startedAt": at, "finishedAt": at}
        self._say(pod, "Failed" if code else "Succeeded", {"terminated": ended}, **status)

    def finish(self, pod: Object, code: int | None = 143) -> None:
        """The node is done with a pod that was deleted; without a code nobody heard of its trainer again."""
        if code is None:
            self.client.patch(self._pods(pod["metadata"]["name"], "status"), {"status": {"phase": "Failed"}})
        else:
            self.end(pod, code)
        self.remove(pod)

    def remove(self, pod: Object) -> None:
        """Nothing but a finalizer holds the object from now on."""
        self._delete(pod, "?gracePeriodSeconds=0")

    def ask_to_stop(self, pod: Object) -> None:
        """Somebody deletes a pod."""
        self._delete(pod)

    def evict(self, pod: Object) -> None:
        """What a drain does."""
        name = pod["metadata"]["name"]
        body = {"apiVersion": "policy/v1", "kind": "Eviction", "metadata": {"name": name, "namespace": self.namespace}}
        self.client.post(self._pods(name, "eviction"), body)

    def disrupt(self, pod: Object, reason: str) -> None:
        """Somebody says why the pod is to go."""
        name, since = pod["metadata"]["name"], instant(self.now())
        known = self.client.get(self._pods(name))["status"].get("conditions", [])
        mark = {"type": "DisruptionTarget", "status": "True", "reason": reason, "lastTransitionTime": since}
        self.client.patch(self._pods(name, "status"), {"status": {"conditions": [*known, mark]}})

    def vanish(self, pod: Object) -> None:
        """Somebody takes the pod away, and even its finalizer: nobody hears of it again."""
        self.client.patch(self._pods(pod["metadata"]["name"]), {"metadata": {"finalizers": None}})
        self._delete(pod, "?gracePeriodSeconds=0")

    def _delete(self, pod: Object, query: str = "") -> None:
        try:
            self.client.delete(self._pods(pod["metadata"]["name"]) + query)
        except ApiError as error:
            if error.status != 404:
                raise

    def _say(self, pod: Object, phase: str, state: Object, **status: Any) -> None:
        container = {"name": "trainer", "image": CONFIG.trainer_image, "imageID": "", "ready": False, "restartCount": 0}
        body = {"phase": phase, "containerStatuses": [{**container, "state": state}], **status}
        self.client.patch(self._pods(pod["metadata"]["name"], "status"), {"status": body})

    # -- what is known of it

    def book(self) -> Book:
        """What the Job and its pods say now; an empty one once it is gone."""
        try:
            job, pods = self.job, self.pods()
        except ApiError as error:
            if error.status != 404:
                raise
            return Book()
        status, newest = job.get("status", {}), [self.newest(index) for index in range(self.nodes)]
        conditions = {kind: condition_of(status, kind) for kind in _KINDS}
        views = [parse_pod(pod) for pod in pods]
        return Book(
            used=failures_of_job(parse_job(job), [pod for pod in views if pod.job_uid], self.nodes),
            failed=status.get("failed", 0),
            done=status.get("completedIndexes", ""),
            counts=tuple(failures_before(pod) for pod in newest if pod is not None),
            living=tuple(sorted(_index(pod) for pod in pods if _lives(pod))),
            conditions={kind: c["reason"] for kind, c in conditions.items() if c.get("status") == "True"},
        )

    def comes_to(self, book: Book) -> None:
        """Wait until the Job and its pods say so."""
        try:
            self.wait(lambda: self.book() == book, f"{self.name}: {book}")
        except AssertionError as error:
            error.add_note(f"but: {self.book()}")
            raise


def _index(pod: Object) -> int:
    return int((pod["metadata"].get("annotations") or {}).get(names.INDEX_LABEL, 0))


def _age(pod: Object) -> tuple[bool, int, str]:
    return _lives(pod), sum(failures_before(pod)), pod["metadata"]["creationTimestamp"]


def _is_deleted(pod: Object) -> bool:
    return "deletionTimestamp" in pod["metadata"]


def _lives(pod: Object) -> bool:
    return not is_over(pod) and not _is_deleted(pod)
