"""A live read takes in what is the run's, whoever has a name of its Jobs by now."""

import gc
import weakref
from collections.abc import Mapping
from typing import Any

import pytest
from tests.unit.builders import UID, make_finetune, make_job_object, make_pod_object

from lora_operator.cluster.api import PODS, Api, ApiError
from lora_operator.cluster.cache import Cache, key_of
from lora_operator.cluster.look import read_live
from lora_operator.views.names import CONTROLLER_UID_LABEL

Object = dict[str, Any]


class Shelf(Api):
    """One Job, or none, and its pods, by whatever they are asked for."""

    def __init__(self, job: Object | None, pods: list[Object]) -> None:
        self.job = job
        self.pods = pods

    async def request(self, method: str, path: str, **_: Any) -> Object:
        """The Job."""
        if self.job is None:
            raise ApiError(404, "NotFound", f"{path} not found")
        return self.job

    async def read(self, path: str, query: Mapping[str, str]) -> tuple[Object, int]:
        """The pods."""
        assert path.endswith(PODS.plural)
        return {"metadata": {"resourceVersion": "9"}, "items": self.pods}, 1


@pytest.mark.parametrize(
    ("owner", "labelled", "taken"),
    [("of-a-stranger", False, 0), ("of-a-stranger", True, 1), (UID, False, 1), (None, False, 1)],
)
async def test_pods_of_a_strangers_job_by_the_name_of_ours_are_not_the_runs(
    owner: str | None, labelled: bool, taken: int
) -> None:
    """They would be taken for what a Job that is gone left behind, and waited for. What carries our label is ours: that
    its owner was taken off starts no second writer."""
    finetune, cache = make_finetune(), Cache()
    job = None
    if owner is not None:
        job = make_job_object(owner_uid=owner, uid="job-uid", version="8")
        if not labelled:
            job["metadata"]["labels"] = {}
    pod = make_pod_object(job_uid="job-uid")
    pod["metadata"]["labels"][CONTROLLER_UID_LABEL] = "job-uid"
    name = make_job_object()["metadata"]["name"]
    await read_live(cache, Shelf(job, [pod]), finetune, [name], resource=False)
    assert len(cache.pods.of(key_of(finetune), UID)) == taken


class Document(dict[str, Any]):
    """A document of which is known whether anybody still holds it."""


class LargePods(Shelf):
    """Pods of one Job without end; notes how many of them are held whenever more are asked for."""

    def __init__(self, count: int) -> None:
        super().__init__(None, [])
        self.count = count
        self.limits: list[int] = []
        self.made: list[weakref.ref[Document]] = []
        self.most_held = 0

    async def read(self, path: str, query: Mapping[str, str]) -> tuple[Object, int]:
        """So many more."""
        self.limits.append(int(query["limit"]))
        pods = [self._pod(len(self.made) + number) for number in range(self.limits[-1])]
        self.made += [weakref.ref(pod) for pod in pods]
        gc.collect()
        self.most_held = max(self.most_held, sum(pod() is not None for pod in self.made))
        token = "more" if len(self.made) < self.count else ""
        return {"metadata": {"resourceVersion": "9", "continue": token}, "items": pods}, len(pods) * 1_200_000

    def _pod(self, number: int) -> Document:
        pod = make_pod_object(name=f"pod-{number}", node="")
        pod["metadata"]["resourceVersion"] = "8"
        pod["spec"]["volumes"] = [{"persistentVolumeClaim": {"claimName": "c" * 100_000}}] * 12
        return Document(pod)


async def test_a_live_read_holds_no_more_than_a_few_pods_at_once_however_many_there_are() -> None:
    """Whoever may create pods may give any number of them a Job's label, each as large as etcd takes it."""
    finetune, cache = make_finetune(), Cache()
    api = LargePods(200)
    await read_live(cache, api, finetune, [make_job_object()["metadata"]["name"]], resource=False)
    pods = cache.pods.of(key_of(finetune), UID)
    assert len(pods) == len(api.made) >= 200
    assert api.most_held <= 2 * max(api.limits)
    assert max(api.limits) <= 20
    assert max(sum(map(len, pod.claims)) for pod in pods) <= 253


async def test_a_live_read_drops_the_pods_that_no_chunk_holds() -> None:
    """And none that a chunk before the last one holds."""
    finetune, cache = make_finetune(), Cache()
    gone = make_pod_object(name="gone")
    gone["metadata"]["resourceVersion"] = "3"
    cache.pods.put(gone)
    await read_live(cache, LargePods(40), finetune, [make_job_object()["metadata"]["name"]], resource=False)
    assert sorted(pod.name for pod in cache.pods.of(key_of(finetune), UID)) == sorted(f"pod-{n}" for n in range(40))
