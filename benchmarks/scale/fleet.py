"""LoRAFineTunes for the benchmark: new ones, finished ones by the thousand, and a kubelet that is played."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

from benchmarks.scale.connections import MERGE_PATCH, Connections, Object
from benchmarks.scale.creation import CONNECTIONS, Kind
from benchmarks.scale.processes import IMAGE, wait_until
from tests.component.documents import failed, succeeded

from localcluster.api import Api
from lora_operator.model.names import NAME_LABEL, ROLE_LABEL, UID_LABEL, child_name
from lora_trainer.spec.reasons import Reason
from lora_trainer.spec.summary import Summary

TRAIN, PREFLIGHT = "train", "preflight"
GROUP = "/apis/lora-operator.io/v1alpha1"
STRATEGIC = "application/strategic-merge-patch+json"
_SEED = "seed"
# The Job controller leaves alone what says that somebody else looks after it: copies of finished Jobs.
_PLAYED = "example.com/played"
_NOW = "2026-01-01T00:00:00Z"


def finetunes_path(namespace: str) -> str:
    """URL path of the LoRAFineTunes of a namespace."""
    return f"{GROUP}/namespaces/{namespace}/lorafinetunes"


def finetune(name: str, preflight: str = "Skip") -> Object:
    """A LoRAFineTune as most users write it, but for its preflight: what is compared has none."""
    return {
        "apiVersion": "lora-operator.io/v1alpha1",
        "kind": "LoRAFineTune",
        "metadata": {"name": name},
        "spec": {
            "model": {"uri": "hf://acme/model"},
            "dataset": {"uri": "hf://acme/data"},
            "output": {"uri": f"pvc://adapters/{name}"},
            "preflight": preflight,
        },
    }


def suspended(name: str, annotation: int) -> Object:
    """One that is held from the start, with an annotation of so many bytes, which nothing reads."""
    document = finetune(name)
    document["spec"]["suspend"] = True
    document["metadata"]["annotations"] = {"example.com/notes": "x" * annotation}
    return document


def looked_at(name: str) -> Object:
    """One with a preflight, as by default."""
    return finetune(name, "Run")


def finetunes(namespace: str, manifest: Callable[[str], Object] = finetune) -> Kind:
    """LoRAFineTunes of a namespace and the Jobs of their training."""
    return Kind(
        path=finetunes_path(namespace),
        manifest=manifest,
        jobs_path=f"/apis/batch/v1/namespaces/{namespace}/jobs",
        owner_of=lambda job: _run_of(job, TRAIN),
    )


def unplayed_preflight(pod: Object) -> str | None:
    """The run whose preflight a pod is."""
    return _run_of(pod, PREFLIGHT)


def _run_of(child: Object, role: str) -> str | None:
    labels = child["metadata"].get("labels", {})
    return str(labels[NAME_LABEL]) if labels.get(ROLE_LABEL) == role else None


def make_namespaces(api: Api, names: Sequence[str]) -> None:
    """Namespaces, with the service account without which they take no pod."""
    for name in names:
        api.post("/api/v1/namespaces", {"metadata": {"name": name}})
    for name in names:
        wait_until(partial(api.exists, f"/api/v1/namespaces/{name}/serviceaccounts/default"), "a service account")


@dataclass(frozen=True, slots=True, kw_only=True)
class Ending:
    """How a trainer ends: the exit code and its termination message, and the reason that a user must see."""

    exit_code: int
    reason: Reason

    @property
    def message(self) -> str:
        """What the trainer writes at its end."""
        if self.reason is Reason.PREFLIGHT_PASSED:
            return Summary(reason=self.reason, message="Played").to_message()
        return failed(self.reason, f"Played: {self.reason.value}") if self.exit_code else succeeded()


SUCCESS = Ending(exit_code=0, reason=Reason.SUCCEEDED)
PASSED = Ending(exit_code=0, reason=Reason.PREFLIGHT_PASSED)


def running(ip: str) -> Object:
    """The status of a pod whose trainer runs."""
    return _pod_status("Running", {"running": {"startedAt": _NOW}}) | {"podIP": ip, "podIPs": [{"ip": ip}]}


def ended(ending: Ending) -> Object:
    """The status of a pod whose trainer has ended."""
    terminated = {
        "exitCode": ending.exit_code,
        "reason": "Error" if ending.exit_code else "Completed",
        "message": ending.message,
        "startedAt": _NOW,
        "finishedAt": _NOW,
    }
    return _pod_status("Failed" if ending.exit_code else "Succeeded", {"terminated": terminated})


def _pod_status(phase: str, state: Object) -> Object:
    container = {
        "name": "trainer",
        "image": IMAGE,
        "imageID": "",
        "ready": "running" in state,
        "restartCount": 0,
        "state": state,
    }
    return {"phase": phase, "containerStatuses": [container]}


def pods_of_runs(api: Api, namespace: str, role: str = TRAIN) -> dict[str, str]:
    """Name of the pod of each run that has one for this, by the name of the run."""
    pods = api.get(f"/api/v1/namespaces/{namespace}/pods?labelSelector={ROLE_LABEL}%3D{role}")["items"]
    return {pod["metadata"]["labels"][NAME_LABEL]: pod["metadata"]["name"] for pod in pods}


@dataclass(frozen=True, slots=True, kw_only=True)
class Finished:
    """A run that a real operator has brought to its end, with the Job and the pod of its preflight and its training, to
    be copied."""

    finetune: Object
    children: Sequence[tuple[Object, Object]]


def finish_one(api: Api, namespace: str) -> Finished:
    """Take one run through its life; an operator must be running."""
    api.post(finetunes_path(namespace), looked_at(_SEED))
    names = []
    for role, ending in ((PREFLIGHT, PASSED), (TRAIN, SUCCESS)):
        names.append(_pod_of_seed(api, namespace, role))
        for status in (running("127.0.0.1"), ended(ending)):
            api.patch(f"/api/v1/namespaces/{namespace}/pods/{names[-1]}/status", {"status": status})
    place = f"{finetunes_path(namespace)}/{_SEED}"
    wait_until(lambda: bool(api.get(place)["status"].get("completionTime")), "the run has ended")
    pods = [api.get(f"/api/v1/namespaces/{namespace}/pods/{name}") for name in names]
    owners = [pod["metadata"]["ownerReferences"][0]["name"] for pod in pods]
    jobs = [api.get(f"/apis/batch/v1/namespaces/{namespace}/jobs/{owner}") for owner in owners]
    return Finished(finetune=api.get(place), children=list(zip(jobs, pods, strict=True)))


def _pod_of_seed(api: Api, namespace: str, role: str) -> str:
    wait_until(lambda: _SEED in pods_of_runs(api, namespace, role), "the run has a pod")
    return pods_of_runs(api, namespace, role)[_SEED]


def add_finished(api: Api, like: Finished, namespace: str, names: Sequence[str]) -> None:
    """Copies of a finished run with Jobs and pods. No operator may run: it would start those without a status."""
    connections = Connections(api, CONNECTIONS)
    try:
        path = finetunes_path(namespace)
        connections.send_all("POST", [(path, looked_at(name)) for name in names])
        uids = _uids(api, path)
        copies = {name: _copy(like, name, uids[name]) for name in names}
        statuses = [(f"{path}/{name}", copy.finetune["status"]) for name, copy in copies.items()]
        _state(connections, statuses)
        jobs, pods = f"/apis/batch/v1/namespaces/{namespace}/jobs", f"/api/v1/namespaces/{namespace}/pods"
        children = [
            (job, pod, like_job["status"], like_pod["status"])
            for copy in copies.values()
            for (job, pod), (like_job, like_pod) in zip(copy.children, like.children, strict=True)
        ]
        connections.send_all("POST", [(jobs, job) for job, *_ in children])
        _state(connections, [(f"{jobs}/{job['metadata']['name']}", _counted(status)) for job, _, status, _ in children])
        uids = _uids(api, jobs)
        connections.send_all("POST", [(pods, _owned(pod, uids)) for _, pod, *_ in children])
        _state(connections, [(f"{pods}/{pod['metadata']['name']}", status) for _, pod, _, status in children])
    finally:
        connections.close()


def _state(connections: Connections, statuses: Sequence[tuple[str, Object]]) -> None:
    patches = [(f"{path}/status", {"status": status}) for path, status in statuses]
    connections.send_all("PATCH", patches, MERGE_PATCH)


def _counted(status: Object) -> Object:
    return {key: value for key, value in status.items() if key != "uncountedTerminatedPods"}


def _uids(api: Api, path: str) -> dict[str, str]:
    items = api.get(path)["items"]
    return {item["metadata"]["name"]: item["metadata"]["uid"] for item in items}


def _copy(like: Finished, name: str, uid: str) -> Finished:
    replaced = {
        # Names of all Jobs and pods of a run begin so.
        str(like.finetune["status"]["jobName"]): child_name(name, uid, 1),
        str(like.finetune["metadata"]["uid"]): uid,
        f"/{_SEED}": f"/{name}",
    }
    return Finished(
        finetune=_renamed(like.finetune, replaced),
        children=[
            _copy_of_child(_renamed(job, replaced), _renamed(pod, replaced), name, uid) for job, pod in like.children
        ],
    )


def _copy_of_child(job: Object, pod: Object, name: str, uid: str) -> tuple[Object, Object]:
    for document in (job, pod):
        metadata = document["metadata"]
        labels = {**metadata["labels"], NAME_LABEL: name, UID_LABEL: uid}
        kept = {key: value for key, value in labels.items() if not key.endswith("controller-uid")}
        document["metadata"] = {
            "name": metadata["name"],
            "labels": kept,
            "ownerReferences": metadata["ownerReferences"],
        }
        document.pop("status")
    job["metadata"]["ownerReferences"][0]["name"] = name
    job["spec"].pop("selector")
    job["spec"]["managedBy"] = _PLAYED
    template = job["spec"]["template"]["metadata"]
    template["labels"] = {key: value for key, value in template["labels"].items() if not key.endswith("controller-uid")}
    pod["spec"]["schedulerName"] = "played"
    return job, pod


def _renamed(document: Object, replaced: dict[str, str]) -> Object:
    text = json.dumps(document)
    for old, new in replaced.items():
        text = text.replace(old, new)
    renamed: Object = json.loads(text)
    return renamed


def _owned(pod: Object, uids: dict[str, str]) -> Object:
    owner = pod["metadata"]["ownerReferences"][0]
    owner["uid"] = uids[owner["name"]]
    return pod
