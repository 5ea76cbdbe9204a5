"""(d) The same creations against Kubeflow Trainer with JobSet and against this operator, on one full cluster.

Its webhooks need a network of pods, so this part has a cluster with a node. Nothing there has a GPU, so all pods wait.
This operator runs as a process in the node's network, as the other controllers do.
"""

import json
import random
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from benchmarks.scale.connections import Object
from benchmarks.scale.creation import WARM_UP, Kind, create
from benchmarks.scale.fleet import finetunes, make_namespaces
from benchmarks.scale.machine import Busy
from benchmarks.scale.processes import REPOSITORY, define, operator_in, wait_until
from benchmarks.scale.rows import Row

from localcluster import lifecycle, ports, settings
from localcluster.api import Api
from localcluster.client import HACK_CLUSTER, Client, local

NAME = "bench-kubeflow"
_GROUP = "trainer.kubeflow.org/v1alpha1"
_RUNTIME: Object = {
    "apiVersion": _GROUP,
    "kind": "ClusterTrainingRuntime",
    "metadata": {"name": "bench", "labels": {"trainer.kubeflow.org/framework": "torch"}},
    "spec": {
        "mlPolicy": {"numNodes": 1, "torch": {"numProcPerNode": "auto"}},
        "template": {
            "spec": {
                "replicatedJobs": [
                    {
                        "name": "node",
                        "template": {
                            "metadata": {"labels": {"trainer.kubeflow.org/trainjob-ancestor-step": "trainer"}},
                            "spec": {
                                "template": {
                                    "spec": {
                                        "containers": [{"name": "node", "image": "registry.example/trainer:bench"}]
                                    }
                                }
                            },
                        },
                    }
                ]
            }
        },
    },
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """So many creations, at a rate or as fast as the API server takes them."""

    count: int
    rate: float | None

    def __str__(self) -> str:
        return f"{self.count:,} at {self.rate:g}/s" if self.rate else f"{self.count:,} as fast as possible"


def compare(loads: list[Load]) -> Iterator[Row]:
    """Each load first for Kubeflow Trainer and then for this operator, with time in between for the pods to be made.

    A few creations of each kind go before, which are not counted.
    """
    with _full_cluster() as cluster:
        places = settings.places(NAME)
        record = lifecycle.load_record(places)
        assert record is not None
        api = lifecycle.api(places, record.api_port)
        cluster.kubectl("apply", "--server-side", "--filename=-", stdin=_as_json(_RUNTIME))
        define(NAME)
        inside = (str(HACK_CLUSTER), "exec", f"--name={NAME}", "--")
        with operator_in(places.pki / "admin.conf", prefix=inside):
            for number, load in enumerate([Load(count=WARM_UP, rate=20), *loads]):
                for who, kind in (("Kubeflow Trainer", _trainjobs), ("this operator", finetunes)):
                    namespace = f"{'kubeflow' if kind is _trainjobs else 'lora'}-{number}"
                    make_namespaces(api, [namespace])
                    busy = Busy()
                    done = create(api, kind(namespace), [f"run-{i:05}" for i in range(load.count)], load.rate)
                    if number > 0:
                        what = f"{who}: apply to Job, {load}"
                        yield Row(what=what, wanted="", measured=str(done), busy=busy.share())
                    _wait_for_pods(api, namespace, load.count)


def _trainjobs(namespace: str) -> Kind:
    return Kind(
        path=f"/apis/{_GROUP}/namespaces/{namespace}/trainjobs",
        manifest=_trainjob,
        jobs_path=f"/apis/batch/v1/namespaces/{namespace}/jobs",
        owner_of=lambda job: str(job["metadata"].get("labels", {}).get("jobset.sigs.k8s.io/jobset-name")),
    )


def _trainjob(name: str) -> Object:
    return {
        "apiVersion": _GROUP,
        "kind": "TrainJob",
        "metadata": {"name": name},
        "spec": {
            "runtimeRef": {"name": "bench"},
            "trainer": {"numNodes": 1, "resourcesPerNode": {"limits": {"nvidia.com/gpu": "1"}}},
        },
    }


def _wait_for_pods(api: Api, namespace: str, count: int) -> None:
    """The Job controller makes some 20 pods a second, and would work on while the next load is measured."""
    path = f"/api/v1/namespaces/{namespace}/pods"
    wait_until(lambda: len(api.get(path)["items"]) >= count, "every Job has its pod", interval_s=2, timeout_s=600)


@contextmanager
def _full_cluster() -> Iterator[Client]:
    (api_port, registry_port) = ports.choose(2, random.Random())  # noqa: S311 - a port number is no secret
    try:
        _hack_cluster("up", f"--name={NAME}", f"--api-port={api_port}", f"--registry-port={registry_port}")
        _hack_cluster("addon", f"--name={NAME}", "jobset", "trainer")
        yield local(NAME)
    finally:
        _hack_cluster("down", f"--name={NAME}")


def _hack_cluster(*arguments: str) -> None:
    subprocess.run([str(HACK_CLUSTER), *arguments], check=True, stdout=subprocess.DEVNULL, cwd=Path(REPOSITORY))


def _as_json(document: Object) -> str:
    return json.dumps(document)
