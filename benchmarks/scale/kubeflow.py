"""(d) The same creations against Kubeflow Trainer with JobSet and against this operator, on one full cluster.

Its webhooks need a network of pods, so this part has a cluster with a node. Nothing there has a GPU, so all pods wait.
This operator runs as a process in the node's network, as the other controllers do. It is measured without a preflight,
and with one that passes as soon as it has a pod: then until the Job of the training.
"""

import itertools
import json
import statistics
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial

from benchmarks.scale.connections import Object
from benchmarks.scale.creation import WARM_UP, Creation, Kind, create
from benchmarks.scale.fleet import finetunes, looked_at, make_namespaces
from benchmarks.scale.machine import Busy, percentile
from benchmarks.scale.playing import Preflights
from benchmarks.scale.processes import a_full_cluster, define, operator_in, wait_until
from benchmarks.scale.rows import Measure, Row

from localcluster import lifecycle, settings
from localcluster.api import Api
from localcluster.client import HACK_CLUSTER

NAME = "bench-kubeflow"
_THEIRS, _OURS, _WITH_PREFLIGHT = "Kubeflow Trainer", "this operator", "this operator with a preflight"
Round = dict[str, Creation]
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
    """So many creations, at a rate or as fast as the API server takes them, once or several times."""

    count: int
    rate: float | None
    rounds: int = 1
    wanted: Mapping[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        return f"{self.count:,} at {self.rate:g}/s" if self.rate else f"{self.count:,} as fast as possible"


def compare(loads: list[Load]) -> Iterator[Row]:
    """Each load in turns for Kubeflow Trainer and for this operator, with time in between for the pods to be made.

    A few creations of each kind go before, which are not counted.
    """
    with a_full_cluster(NAME, "jobset", "trainer") as cluster:
        places = settings.places(NAME)
        record = lifecycle.load_record(places)
        assert record is not None
        api = lifecycle.api(places, record.api_port)
        cluster.kubectl("apply", "--server-side", "--filename=-", stdin=_as_json(_RUNTIME))
        define(NAME)
        inside = (str(HACK_CLUSTER), "exec", f"--name={NAME}", "--")
        # No node has so many CPUs: preflights wait, too, and their life is played.
        with operator_in(places.pki / "admin.conf", prefix=inside, preflightCPU="1000"):
            _both(api, Load(count=WARM_UP, rate=20), "warm")
            for number, load in enumerate(loads):
                busy = Busy()
                rounds = [_both(api, load, f"{number}-{again}") for again in range(load.rounds)]
                yield from _rows(load, rounds, busy.share())


def _both(api: Api, load: Load, suffix: str) -> Round:
    """Kubeflow Trainer's and this operator's, one after the other, each in a namespace of its own."""
    with_preflight = partial(finetunes, manifest=looked_at)
    sides: dict[str, Callable[[str], Kind]] = {
        _THEIRS: _trainjobs,
        _OURS: finetunes,
        _WITH_PREFLIGHT: with_preflight,
    }
    return {who: _one(api, load, f"bench-{suffix}-{side}", kind) for side, (who, kind) in enumerate(sides.items())}


def _one(api: Api, load: Load, namespace: str, kind: Callable[[str], Kind]) -> Creation:
    make_namespaces(api, [namespace])
    with Preflights(api, namespace):
        done = create(api, kind(namespace), [f"run-{i:05}" for i in range(load.count)], load.rate)
    _wait_for_pods(api, namespace, load.count)
    return done


def _rows(load: Load, rounds: list[Round], busy: float) -> Iterator[Row]:
    """The last round of each, and how they compare: the medians where there were several."""
    several = f" (the last of {load.rounds} rounds)" if load.rounds > 1 else ""
    for who, done in rounds[-1].items():
        yield Row(what=f"{who}: apply to Job, {load}{several}", found=done.measures(), busy=busy)
    facts = (
        ("p99", lambda done: percentile(done.latencies_s, 0.99)),
        ("last creation to last Job", lambda done: done.after_last_s),
        ("last Job", lambda done: done.last_job_s),
    )
    for side, (name, read) in itertools.product((_OURS, _WITH_PREFLIGHT), facts):
        theirs, ours = (statistics.median(read(done[who]) for done in rounds) for who in (_THEIRS, side))
        with_preflight = " with a preflight" if side == _WITH_PREFLIGHT else ""
        yield Row(
            what=f"{name}{with_preflight} against Kubeflow Trainer's, {load}",
            wanted="" if with_preflight else load.wanted.get(name, ""),
            found=[
                Measure("ratio", ours / max(theirs, 0.001)),
                Measure("this operator, median", ours, "s"),
                Measure("Kubeflow Trainer, median", theirs, "s"),
            ],
            busy=busy,
        )


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


def _as_json(document: Object) -> str:
    return json.dumps(document)
