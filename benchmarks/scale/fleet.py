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
from lora_operator.views.names import NAME_LABEL, UID_LABEL, child_name
from lora_trainer.contract.reasons import Reason

GROUP = "/apis/lora-operator.io/v1alpha1"
STRATEGIC = "application/strategic-merge-patch+json"
_SEED = "seed"
# The Job controller leaves alone what says that somebody else looks after it: copies of finished Jobs.
_PLAYED = "example.com/played"
_NOW = "2026-01-01T00:00:00Z"


def finetunes_path(namespace: str) -> str:
    """URL path of the LoRAFineTunes of a namespace."""
    return f"{GROUP}/namespaces/{namespace}/lorafinetunes"


def finetune(name: str) -> Object:
    """A LoRAFineTune as most users write it, but for its preflight: what is compared has none."""
    return {
        "apiVersion": "lora-operator.io/v1alpha1",
        "kind": "LoRAFineTune",
        "metadata": {"name": name},
        "spec": {
            "model": {"uri": "hf://acme/model"},
            "dataset": {"uri": "hf://acme/data"},
            "output": {"uri": f"pvc://adapters/{name}"},
            "preflight": "Skip",
        },
    }


def suspended(name: str, annotation: int) -> Object:
    """One that is held from the start, with an annotation of so many bytes, which nothing reads."""
    document = finetune(name)
    document["spec"]["suspend"] = True
    document["metadata"]["annotations"] = {"example.com/notes": "x" * annotation}
    return document


def finetunes(namespace: str, manifest: Callable[[str], Object] = finetune) -> Kind:
    """LoRAFineTunes of a namespace and their Jobs."""
    return Kind(
        path=finetunes_path(namespace),
        manifest=manifest,
        jobs_path=f"/apis/batch/v1/namespaces/{namespace}/jobs",
        owner_of=lambda job: str(job["metadata"].get("labels", {}).get(NAME_LABEL)),
    )


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
        return failed(self.reason, f"Played: {self.reason.value}") if self.exit_code else succeeded()


SUCCESS = Ending(exit_code=0, reason=Reason.SUCCEEDED)


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


def pods_of_runs(api: Api, namespace: str) -> dict[str, str]:
    """Name of the pod of each run, by the name of the run."""
    pods = api.get(f"/api/v1/namespaces/{namespace}/pods")["items"]
    return {pod["metadata"]["labels"][NAME_LABEL]: pod["metadata"]["name"] for pod in pods}


@dataclass(frozen=True, slots=True, kw_only=True)
class Finished:
    """A run that a real operator has brought to its end, with its Job and its pod, to be copied."""

    finetune: Object
    job: Object
    pod: Object


def finish_one(api: Api, namespace: str) -> Finished:
    """Take one run through its life; an operator must be running."""
    api.post(finetunes_path(namespace), finetune(_SEED))
    wait_until(lambda: _SEED in pods_of_runs(api, namespace), "the run has a pod")
    path = f"/api/v1/namespaces/{namespace}/pods/{pods_of_runs(api, namespace)[_SEED]}"
    for status in (running("127.0.0.1"), ended(SUCCESS)):
        api.patch(f"{path}/status", {"status": status})
    place = f"{finetunes_path(namespace)}/{_SEED}"
    wait_until(lambda: bool(api.get(place)["status"].get("completionTime")), "the run has ended")
    done = api.get(place)
    job = api.get(f"/apis/batch/v1/namespaces/{namespace}/jobs/{done['status']['jobName']}")
    return Finished(finetune=done, job=job, pod=api.get(path))


def add_finished(api: Api, like: Finished, namespace: str, names: Sequence[str]) -> None:
    """Copies of a finished run with Job and pod. No operator may run: it would start them before they have a status."""
    connections = Connections(api, CONNECTIONS)
    try:
        path = finetunes_path(namespace)
        connections.send_all("POST", [(path, finetune(name)) for name in names])
        uids = _uids(api, path)
        copies = [_copy(like, name, uids[name]) for name in names]
        connections.send_all(
            "PATCH", [(f"{path}/{name}/status", {"status": c.finetune["status"]}) for name, c in copies], MERGE_PATCH
        )
        jobs = f"/apis/batch/v1/namespaces/{namespace}/jobs"
        connections.send_all("POST", [(jobs, copy.job) for _, copy in copies])
        status = {key: value for key, value in like.job["status"].items() if key != "uncountedTerminatedPods"}
        connections.send_all(
            "PATCH",
            [(f"{jobs}/{c.job['metadata']['name']}/status", {"status": status}) for _, c in copies],
            MERGE_PATCH,
        )
        uids = _uids(api, jobs)
        pods = f"/api/v1/namespaces/{namespace}/pods"
        connections.send_all("POST", [(pods, _owned(copy.pod, uids)) for _, copy in copies])
        connections.send_all(
            "PATCH",
            [(f"{pods}/{c.pod['metadata']['name']}/status", {"status": like.pod["status"]}) for _, c in copies],
            MERGE_PATCH,
        )
    finally:
        connections.close()


def _uids(api: Api, path: str) -> dict[str, str]:
    items = api.get(path)["items"]
    return {item["metadata"]["name"]: item["metadata"]["uid"] for item in items}


def _copy(like: Finished, name: str, uid: str) -> tuple[str, Finished]:
    job_name = child_name(name, uid, 1)
    replaced = {
        str(like.pod["metadata"]["name"]): f"{job_name}-0-abcde",
        str(like.job["metadata"]["name"]): job_name,
        str(like.finetune["metadata"]["uid"]): uid,
        f"/{_SEED}": f"/{name}",
    }
    done, job, pod = (_renamed(document, replaced) for document in (like.finetune, like.job, like.pod))
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
    return name, Finished(finetune=done, job=job, pod=pod)


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
