"""Users, nodes and whoever else has hands in a cluster, as random acts on any API server, real or in memory."""

import contextlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Protocol, TypeVar

from tests.component.documents import failed, finetune, succeeded
from tests.model.objects import Object, is_over, run_uid, state_of, trains
from tests.model.talk import TALK
from tests.unit.reports import make_report

from localcluster.api import ApiError
from lora_operator.model.names import (
    INDEX_LABEL,
    JOB_NAME_LABEL,
    MANAGED_BY,
    MANAGED_BY_LABEL,
    NAME_LABEL,
    QUEUE_LABEL,
    TRAIN,
    UID_LABEL,
    child_name,
    place_of,
)
from lora_operator.model.wording import instant
from lora_trainer.spec.reasons import Reason

T = TypeVar("T")
NAMES = ("tone", "mood")
PENDING_TIMEOUT_S = 600
KUBE = {"lorafinetunes": "/apis/lora-operator.io/v1alpha1", "jobs": "/apis/batch/v1"}


class Client(Protocol):
    """The few calls that an actor needs; each raises `ApiError` for a refusal."""

    def get(self, path: str) -> Object: ...

    def post(self, path: str, body: Object) -> Object: ...

    def patch(self, path: str, body: Object) -> Object: ...

    def delete(self, path: str) -> Object: ...


class Chance(Protocol):
    """Where the choices come from."""

    def pick(self, among: Sequence[T]) -> T: ...

    def number(self, low: int, high: int) -> int: ...


@dataclass(kw_only=True)
class Life:
    """What may happen in one namespace. Every act does something, or nothing where there is nothing to do it to.

    What has happened, by uid: `proven` are runs and `proving` their pods with a verified adapter, `reporting` the pods
    of a preflight with its report, `deleted` all Jobs that somebody deleted. Of a run, `failed` are the pods that ended
    in failure and `removed` its deleted trainings; `forged` are pods that only look like a run's, and whose. The clock
    of the nodes may be ahead, or behind; `clocks_agree` as long as those of all operators are the API server's.
    """

    client: Client
    namespace: str
    chance: Chance
    now: Callable[[], datetime]
    node: str
    forced: set[str] = field(default_factory=set)
    orphaned: set[str] = field(default_factory=set)
    proven: set[str] = field(default_factory=set)
    proving: set[str] = field(default_factory=set)
    reporting: set[str] = field(default_factory=set)
    failed: dict[str, set[str]] = field(default_factory=dict)
    deleted: set[str] = field(default_factory=set)
    removed: dict[str, set[str]] = field(default_factory=dict)
    forged: dict[str, str] = field(default_factory=dict)
    queues: bool = False
    names: Sequence[str] = NAMES
    node_ahead_s: float = 0.0
    clocks_agree: bool = True

    # -- what there is

    def path(self, plural: str, name: str = "", subresource: str = "", query: str = "") -> str:
        """URL path of objects of the namespace."""
        parts = [KUBE.get(plural, "/api/v1"), "namespaces", self.namespace, plural, *filter(None, (name, subresource))]
        return "/".join(parts) + (f"?{query}" if query else "")

    def objects(self, plural: str) -> list[Object]:
        """All objects of a kind."""
        items: list[Object] = self.client.get(self.path(plural))["items"]
        return items

    def do(self, act: "Callable[[Life], None]") -> None:
        """Act; who comes too late for what is gone or changed meanwhile, or may not, does nothing."""
        with contextlib.suppress(ApiError):
            act(self)

    def _some(self, objects: Sequence[T]) -> list[T]:
        """One of them, or none where there is none."""
        return [self.chance.pick(objects)] if objects else []

    def _pods(self, *states: str) -> list[Object]:
        return [pod for pod in self.objects("pods") if state_of(pod) in states]

    # -- users

    def create(self) -> None:
        """Apply a run, under a name that may have been used before."""
        pick, number = self.chance.pick, self.chance.number
        spec: Object = {"maxRetries": number(0, 2)}
        spec |= pick(({}, {}, {"ttlSecondsAfterFinished": 60}, {"activeDeadlineSeconds": 600}, {"suspend": True}))
        spec |= pick(({}, {}, {"pendingTimeoutSeconds": PENDING_TIMEOUT_S}))
        spec |= pick(({}, {}, {}, {"resources": {"nodes": 2}}))
        spec |= {"preflight": pick(("Skip", "Run"))}
        document = finetune(pick(self.names), **spec)
        document["metadata"]["annotations"] = {"team": "red"}
        document["metadata"]["labels"] = pick((*[{}] * (1 if self.queues else 3), {QUEUE_LABEL: "gpus"}))
        self.client.post(self.path("lorafinetunes"), document)

    def edit(self) -> None:
        """Change what may be changed."""
        pick = self.chance.pick
        for run in self._some(self.objects("lorafinetunes")):
            spec = pick(
                (
                    {"suspend": True},
                    {"suspend": False},
                    {"maxRetries": self.chance.number(0, 3)},
                    {"ttlSecondsAfterFinished": pick((0, 60, None))},
                    {"activeDeadlineSeconds": pick((900, None))},
                )
            )
            self.client.patch(self.path("lorafinetunes", run["metadata"]["name"]), {"spec": spec})

    def label(self) -> None:
        """Change labels and annotations, which are the users' own."""
        for run in self._some(self.objects("lorafinetunes")):
            mark = {"labels": {"stage": self.chance.pick(("a", "b"))}, "annotations": {"note": self.chance.pick("xyz")}}
            self.client.patch(self.path("lorafinetunes", run["metadata"]["name"]), {"metadata": mark})

    def delete(self) -> None:
        """Delete a run, in one of the three ways."""
        for run in self._some(self.objects("lorafinetunes")):
            policy = self.chance.pick(("Background", "Background", "Foreground", "Orphan"))
            if policy == "Orphan":
                self.orphaned.add(run["metadata"]["uid"])
            query = f"propagationPolicy={policy}"
            self.client.delete(self.path("lorafinetunes", run["metadata"]["name"], query=query))

    def delete_job(self) -> None:
        """Delete a Job by hand."""
        for job in self._some(self.objects("jobs")):
            policy = self.chance.pick(("Background", "Background", "Foreground", "Orphan"))
            self.deleted.add(job["metadata"]["uid"])
            if place_of(job["metadata"]["name"])[1] == TRAIN:
                self.removed.setdefault(run_uid(job), set()).add(job["metadata"]["uid"])
            if policy == "Orphan":
                self.orphaned.add(run_uid(job))
            self.client.delete(self.path("jobs", job["metadata"]["name"], query=f"propagationPolicy={policy}"))

    def suspend_job(self) -> None:
        """Suspend or resume a Job, by hand or as its queue does."""
        for job in self._some(self.objects("jobs")):
            wish = {"spec": {"suspend": not job["spec"].get("suspend", False)}}
            self.client.patch(self.path("jobs", job["metadata"]["name"]), wish)

    def plant(self) -> None:
        """Take the name that the next attempt's Job or Service would have, for something else."""
        for run in self._some(self.objects("lorafinetunes")):
            metadata = run["metadata"]
            attempt = run.get("status", {}).get("attempt", 0) + 1
            name = {"metadata": {"name": child_name(metadata["name"], metadata["uid"], attempt)}}
            if self.chance.number(0, 1):
                ports = {"clusterIP": "None", "ports": [{"port": 80}]}
                self.client.post(self.path("services"), {**name, "spec": ports})
                return
            template = {
                "metadata": {"labels": {"team": "red"}},
                "spec": {
                    "restartPolicy": "Never",
                    "containers": [{"name": "other", "image": "registry.example/other"}],
                },
            }
            spec = {"suspend": True, "completions": 1, "parallelism": 1, "backoffLimit": 0, "template": template}
            self.client.post(self.path("jobs"), {**name, "spec": spec})

    def delete_child(self) -> None:
        """Delete a Service of a run."""
        children = [
            (plural, child)
            for plural in ("services",)
            for child in self.objects(plural)
            if (child["metadata"].get("labels") or {}).get(MANAGED_BY_LABEL) == MANAGED_BY
        ]
        if children:
            plural, child = self.chance.pick(children)
            self.client.delete(self.path(plural, child["metadata"]["name"]))

    def strip_labels(self) -> None:
        """Take the operator's labels off a Job or a pod; the controllers' own stay."""
        for plural, child in self._some(self._children()):
            self._mark(plural, child, _ours(child), None)

    def relabel(self) -> None:
        """Change the operator's labels on a Job or a pod, all or one, or take one off: some tools tidy labels."""
        for plural, child in self._some(self._children()):
            chosen = self.chance.pick(([NAME_LABEL], [UID_LABEL], [MANAGED_BY_LABEL], _ours(child)))
            self._mark(plural, child, chosen, self.chance.pick(("other", "other", None)))

    def disown(self) -> None:
        """Take the owner references off a Job: the garbage collector leaves it behind, if the run goes right then."""
        for job in self._some([job for job in self.objects("jobs") if run_uid(job)]):
            self.orphaned.add(run_uid(job))
            self.client.patch(self.path("jobs", job["metadata"]["name"]), {"metadata": {"ownerReferences": None}})

    def _children(self) -> list[tuple[str, Object]]:
        return [(plural, child) for plural in ("jobs", "pods") for child in self.objects(plural) if run_uid(child)]

    def _mark(self, plural: str, child: Object, keys: Iterable[str], value: str | None) -> None:
        labels = dict.fromkeys(keys, value)
        self.client.patch(self.path(plural, child["metadata"]["name"]), {"metadata": {"labels": labels}})

    def forge(self) -> None:
        """Make a pod that looks like one of a run, with the summary of an adapter that nobody trained."""
        for job in self._some([job for job in self.objects("jobs") if run_uid(job)]):
            name = job["metadata"]["name"]
            labels = {**job["spec"]["template"]["metadata"]["labels"], JOB_NAME_LABEL: name, INDEX_LABEL: "0"}
            spec = {"containers": [{"name": "trainer", "image": "registry.example/other"}]}
            pod = {"metadata": {"name": f"{name}-0-forged-{len(self.forged)}", "labels": labels}, "spec": spec}
            made = self.client.post(self.path("pods"), pod)
            self.forged[made["metadata"]["uid"]] = run_uid(job)
            self._end(made, 0, succeeded())

    def delete_pod(self) -> None:
        """Delete a pod, which gets its time to stop where it has not ended."""
        for pod in self._some(self._pods("waiting", "running", "ended")):
            self.client.delete(self.path("pods", pod["metadata"]["name"]))

    def force_delete_pod(self) -> None:
        """Remove a pod from the API without waiting for its node: its trainer may live on, as the user was told."""
        for pod in self._some(self._pods("waiting", "running")):
            name = pod["metadata"]["name"]
            self.forced.add(pod["metadata"]["uid"])
            self.client.patch(self.path("pods", name), {"metadata": {"finalizers": None}})
            self.client.delete(self.path("pods", name, query="gracePeriodSeconds=0"))

    # -- nodes

    def start_pod(self) -> None:
        """A node takes a pod, and the trainer starts; or it cannot."""
        for pod in self._some([pod for pod in self._pods("waiting") if "deletionTimestamp" not in pod["metadata"]]):
            if self.chance.number(0, 3):
                ready = {"type": "Ready", "status": "True", "lastTransitionTime": self._time()}
                self._write(pod, "Running", {"running": {"startedAt": self._time()}}, conditions=[ready])
                return
            reason = self.chance.pick(("ImagePullBackOff", "CreateContainerConfigError", "ContainerCreating"))
            self._write(pod, "Pending", {"waiting": {"reason": reason, "message": self.chance.pick(TALK)}})

    def succeed(self) -> None:
        """A trainer ends with 0; its summary tells of a verified adapter or of what it found, or there is none."""
        for pod in self._some(self._pods("running")):
            if self.chance.number(0, 2) > 0:
                self._succeed(pod)
            else:
                self._end(pod, 0, self.chance.pick(TALK if trains(pod) else (*TALK, succeeded())))

    def _succeed(self, pod: Object) -> None:
        if trains(pod):
            self.proven.add(run_uid(pod))
        (self.proving if trains(pod) else self.reporting).add(pod["metadata"]["uid"])
        self._end(pod, 0, succeeded() if trains(pod) else make_report().to_message())

    def fail(self) -> None:
        """A trainer fails, by any exit code, with or without a word."""
        for pod in self._some(self._pods("running")):
            code = self.chance.pick((1, 64, 65, 66, 70, 71, 72, 73, 74, 75, 76, 77, 78, 137, 143))
            stated = failed(Reason.DATASET_INVALID, f"line 3 is no JSON: {self.chance.pick(TALK)}")
            reason = "OOMKilled" if code == 137 and self.chance.number(0, 1) else "Error"
            self._end(pod, code, self.chance.pick((*TALK, stated)), reason=reason)

    def disrupt(self) -> None:
        """The cluster takes a pod away: drained, preempted, tainted, or short of disk."""
        for pod in self._some(self._pods("waiting", "running")):
            reasons = (
                "EvictionByEvictionAPI",
                "PreemptionByScheduler",
                "DeletionByTaintManager",
                "TerminationByKubelet",
            )
            reason = self.chance.pick(reasons)
            known = [c for c in pod["status"].get("conditions", []) if c["type"] != "DisruptionTarget"]
            mark = {"type": "DisruptionTarget", "status": "True", "reason": reason, "lastTransitionTime": self._time()}
            path = self.path("pods", pod["metadata"]["name"], "status")
            self.client.patch(path, {"status": {"conditions": [*known, mark]}})
            self.client.delete(self.path("pods", pod["metadata"]["name"]))

    def stop_pod(self) -> None:
        """A trainer that was told to stop does so: it saved, it was killed, or it took that for its end."""
        for pod in self._some([pod for pod in self._stopping() if state_of(pod) in {"waiting", "running"}]):
            if state_of(pod) == "waiting":
                self._finish(pod)
                return
            self._end(pod, self.chance.pick((143, 143, 137, 0, 1)), self.chance.pick(TALK))

    def _stopping(self) -> list[Object]:
        return [pod for pod in self.objects("pods") if "deletionTimestamp" in pod["metadata"]]

    def stop_all(self) -> None:
        """Every trainer that was told to stop does so."""
        for pod in self._stopping():
            with contextlib.suppress(ApiError):
                if state_of(pod) == "running":
                    self._end(pod, 143, "")
                else:
                    self._finish(pod)

    def end_all(self) -> None:
        """Every pod starts, and does what it is for."""
        for pod in self._pods("waiting", "running"):
            with contextlib.suppress(ApiError):
                self._succeed(pod)

    def silence_node(self) -> None:
        """A node is heard of no more, or again."""
        for pod in self._some(self._pods("running")):
            others = [c for c in pod["status"].get("conditions", []) if c["type"] != "Ready"]
            status = self.chance.pick(("Unknown", "True"))
            ready = {"type": "Ready", "status": status, "lastTransitionTime": self._time()}
            path = self.path("pods", pod["metadata"]["name"], "status")
            self.client.patch(path, {"status": {"conditions": [*others, ready]}})

    # -- the kubelet's writes

    def _end(self, pod: Object, code: int, message: str, *, reason: str = "Error") -> None:
        ended = {
            "exitCode": code,
            "reason": reason if code else "Completed",
            "message": message,
            "startedAt": self._time(),
            "finishedAt": self._time(),
        }
        if code:
            self.note_failure(pod)
        self._write(pod, "Failed" if code else "Succeeded", {"terminated": ended})
        if "deletionTimestamp" in pod["metadata"]:
            self._finish(pod)

    def _finish(self, pod: Object) -> None:
        """The node is done with a pod that was deleted."""
        if not is_over(pod) and state_of(pod) == "waiting":
            self.note_failure(pod)
            self.client.patch(self.path("pods", pod["metadata"]["name"], "status"), {"status": {"phase": "Failed"}})
        self.client.delete(self.path("pods", pod["metadata"]["name"], query="gracePeriodSeconds=0"))

    def note_failure(self, pod: Object) -> None:
        """A pod of a run has failed, or is about to."""
        uid = pod["metadata"]["uid"]
        # A Job adopts a forged pod that has its labels, and counts its failure, too.
        self.failed.setdefault(self.forged.get(uid) or run_uid(pod), set()).add(uid)

    def _write(self, pod: Object, phase: str, state: Object, conditions: Sequence[Object] | None = None) -> None:
        name = pod["metadata"]["name"]
        if not pod["spec"].get("nodeName"):
            target = {"apiVersion": "v1", "kind": "Node", "name": self.node}
            self.client.post(self.path("pods", name, "binding"), {"metadata": {"name": name}, "target": target})
        container = {
            "name": "trainer",
            "image": "registry.example/lora-trainer:test",
            "imageID": "",
            "ready": "running" in state,
            "restartCount": 0,
            "state": state,
        }
        status: Object = {"phase": phase, "containerStatuses": [container]}
        if conditions is not None:
            known = [c for c in pod["status"].get("conditions", []) if c["type"] != "Ready"]
            ip = f"127.82.0.{int(pod['metadata']['uid'][-2:], 16) % 250 + 1}"
            status |= {"conditions": [*known, *conditions], "podIP": ip, "podIPs": [{"ip": ip}]}
        self.client.patch(self.path("pods", name, "status"), {"status": status})

    def _time(self) -> str:
        return instant(self.now() + timedelta(seconds=self.node_ahead_s))


def _ours(child: Object) -> list[str]:
    """The operator's labels that are there."""
    labels = child["metadata"].get("labels") or {}
    return sorted(key for key in labels if "lora-operator" in key or key == MANAGED_BY_LABEL)


ACTS: tuple[Callable[[Life], None], ...] = (
    Life.create,
    Life.edit,
    Life.label,
    Life.delete,
    Life.delete_job,
    Life.suspend_job,
    Life.plant,
    Life.delete_child,
    Life.strip_labels,
    *[Life.relabel] * 2,
    Life.disown,
    Life.forge,
    Life.delete_pod,
    Life.force_delete_pod,
    *[Life.start_pod] * 4,
    *[Life.succeed] * 2,
    *[Life.fail] * 2,
    Life.disrupt,
    Life.stop_pod,
    Life.silence_node,
)
"""Everything that can happen, the more often the more follows from it."""
