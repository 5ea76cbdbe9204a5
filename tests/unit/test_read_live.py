"""A live read takes in what is the run's, whoever has a name of its Jobs by now."""

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
