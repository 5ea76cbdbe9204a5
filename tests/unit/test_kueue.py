"""What the shell does about Kueue: asking for it, keeping the Workloads of our Jobs, patching and watching them."""

from collections.abc import Mapping
from typing import Any, cast

import pytest
from tests.unit.builders import (
    NAME,
    NAMESPACE,
    UID,
    Object,
    condition_object,
    make_finetune,
    make_workload_object,
)

from lora_operator.cluster.api import Api, ApiError, Chunk, Resource
from lora_operator.cluster.apply import TryAgainError, Writer
from lora_operator.cluster.kueue import Kueue
from lora_operator.cluster.observe import observe
from lora_operator.cluster.store import Key, Stores
from lora_operator.controller.checks import rights_used
from lora_operator.controller.watch import sources_of
from lora_operator.model.objects import Answer, Patch

KEY = Key(NAMESPACE, NAME)
GROUP = "/apis/kueue.x-k8s.io"


class Discovery:
    """An API server that serves Kueue in these versions; `kinds` are the plurals that each has."""

    def __init__(self, *versions: str, kinds: tuple[str, ...] = ("localqueues", "workloads")) -> None:
        self.versions = versions
        self.kinds = kinds
        self.listed: list[tuple[str, str]] = []
        self.patched: list[tuple[str, str]] = []

    async def request(self, method: str, path: str) -> Object:
        if path == GROUP and self.versions:
            return {"versions": [{"groupVersion": f"kueue.x-k8s.io/{v}", "version": v} for v in self.versions]}
        if path.removeprefix(f"{GROUP}/") in self.versions:
            return {"resources": [{"name": kind} for kind in self.kinds]}
        raise ApiError(404, "NotFound", "the server could not find the requested resource")

    async def list_chunks(self, resource: Resource, namespace: str | None, query: Mapping[str, str]) -> Any:
        self.listed.append((resource.plural, resource.version))
        documents = [make_workload_object()] if resource.plural == "workloads" else []
        yield Chunk(documents=documents, version="9")

    async def merge_patch(self, resource: Resource, namespace: str, name: str, body: Mapping[str, Any]) -> Object:
        self.patched.append((resource.api_version, name))
        stored = make_workload_object(active=body["spec"]["active"])
        return {**stored, "metadata": {**stored["metadata"], "resourceVersion": "8", "managedFields": [{}]}}


async def found(server: Discovery) -> Kueue:
    """What discovery says of it."""
    kueue = Kueue()
    await kueue.discover(cast("Api", server))
    return kueue


@pytest.mark.parametrize(
    ("server", "served", "version"),
    [
        (Discovery(), False, "v1beta2"),
        (Discovery("v1beta2", "v1beta1"), True, "v1beta2"),
        (Discovery("v1beta1"), True, "v1beta1"),
        (Discovery("v1alpha1"), False, "v1beta2"),
        (Discovery("v1beta2", kinds=("localqueues",)), False, "v1beta2"),
    ],
    ids=["none", "new", "old", "too old", "half installed"],
)
async def test_kueue_is_found_in_the_newest_version_that_both_know(
    server: Discovery, served: bool, version: str
) -> None:
    """A group alone is not enough: its Workloads must be there."""
    kueue = await found(server)
    assert (kueue.served, kueue.workloads.version) == (served, version)
    assert not await kueue.has_changed(cast("Api", server))


async def test_an_api_server_in_trouble_is_not_taken_for_one_without_kueue() -> None:
    """Only a 404 says that there is none."""

    class Broken:
        async def request(self, method: str, path: str) -> Object:
            raise ApiError(503, "ServiceUnavailable", "etcd is down")

    with pytest.raises(ApiError):
        await Kueue().discover(cast("Api", Broken()))


@pytest.mark.parametrize("versions", [(), ("v1beta1",), ("v1beta2",)])
async def test_workloads_are_followed_only_where_they_are_served(versions: tuple[str, ...]) -> None:
    """A watch of a kind that does not exist would never be heard."""
    sources = sources_of(Stores(), await found(Discovery(*versions)), lambda key: None)
    served = [source.resource.version for source in sources if source.resource.kind == "Workload"]
    assert served == list(versions)


def test_rights_on_workloads_are_asked_for_only_where_the_cluster_has_them() -> None:
    """To list, to watch and to patch: nothing else."""
    more = set(rights_used(kueue=True)) - set(rights_used(kueue=False))
    assert sorted(map(str, more)) == [f"{verb} workloads.kueue.x-k8s.io" for verb in ("list", "patch", "watch")]


def test_only_workloads_of_our_jobs_are_kept() -> None:
    """A cluster may have thousands of others; ours are known by the labels of their pods."""
    workloads = Stores().workloads
    assert workloads.put(make_workload_object()) == KEY
    assert [view.job_uid for view in workloads.of(KEY, UID)] == ["job-1"]
    assert workloads.of(KEY, "another") == ()
    for labels in ({}, {"app.kubernetes.io/managed-by": "Helm", "lora-operator.io/name": NAME}, None):
        foreign = make_workload_object(job_uid="foreign")
        foreign["spec"]["podSets"][0]["template"]["metadata"] = {} if labels is None else {"labels": labels}
        assert workloads.put(foreign) is None
        assert workloads.remove(foreign) is None
    assert len(workloads) == 1


def test_an_odd_workload_belongs_to_nobody() -> None:
    """Nothing that a server says ends the operator."""
    workloads = Stores().workloads
    specs: tuple[Object, ...] = ({}, {"podSets": []}, {"podSets": [7]}, {"podSets": [{"template": None}]})
    for spec in specs:
        odd: Object = {"metadata": {"name": "w", "namespace": "n", "uid": "u", "resourceVersion": "1"}, "spec": spec}
        assert workloads.put(odd) is None
    assert len(workloads) == 0


def test_a_look_at_a_run_shows_its_workloads_and_whether_there_is_kueue() -> None:
    """As decisions and `explain` need it."""
    cache = Stores()
    cache.workloads.put(make_workload_object(condition_object("QuotaReserved")))
    observed = observe(cache, make_finetune(), events=(), ask=lambda _: Answer(), kueue=True)
    assert (observed.kueue, [w.name for w in observed.workloads]) == (True, ["job-job-1"])


async def test_a_workload_is_patched_in_the_version_that_is_served_and_remembered_at_once() -> None:
    """The next decision sees it, whatever the watch does."""
    server, cache = Discovery("v1beta1"), Stores()
    writer = Writer(cast("Api", server), cache, await found(server))
    patch = Patch(kind="Workload", name="job-job-1", body={"metadata": {"uid": "1"}, "spec": {"active": False}})
    await writer.patch(make_finetune(), patch)
    assert server.patched == [("kueue.x-k8s.io/v1beta1", "job-job-1")]
    assert [view.active for view in cache.workloads.of(KEY, UID)] == [False]


async def test_a_workload_that_went_before_its_patch_is_looked_for_again() -> None:
    """Kueue makes another when a Job changes."""

    class Gone(Discovery):
        async def merge_patch(self, resource: Resource, namespace: str, name: str, body: Mapping[str, Any]) -> Object:
            raise ApiError(404, "NotFound", "not found")

    server = Gone("v1beta2")
    writer = Writer(cast("Api", server), Stores(), await found(server))
    with pytest.raises(TryAgainError, match="Workload w is gone"):
        await writer.patch(
            make_finetune(),
            Patch(kind="Workload", name="w", body={"metadata": {"uid": "1"}, "spec": {"active": False}}),
        )
