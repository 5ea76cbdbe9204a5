"""The operator's writes, against an API that answers from a script."""

from collections.abc import Mapping
from typing import Any, cast

import pytest
from tests.unit.builders import NAME, NAMESPACE, UID, condition_object, make_finetune

from lora_operator.cluster.api import JOBS, Api, ApiError, Resource, UnreachableError
from lora_operator.cluster.apply import RefusedError, TryAgainError, Writer
from lora_operator.cluster.kueue import Kueue
from lora_operator.cluster.observe import read_finetune
from lora_operator.cluster.store import Key, Stores
from lora_operator.model.names import child_labels, child_name
from lora_operator.model.objects import Patch
from lora_trainer.spec.manifest import API_VERSION, KIND

FINETUNE = make_finetune()
KEY = Key(NAMESPACE, NAME)
Object = dict[str, Any]


def job(name: str = "j", *, owner_uid: str = UID, **metadata: Any) -> Object:
    owners = [{"apiVersion": API_VERSION, "kind": KIND, "name": NAME, "uid": owner_uid, "controller": True}]
    labels = child_labels(NAME, UID, 1)
    fixed = {"name": name, "namespace": NAMESPACE, "uid": "u", "labels": labels, "ownerReferences": owners}
    return {"kind": "Job", "metadata": {**fixed, "resourceVersion": "5", **metadata}}


class ScriptedApi:
    """Each call answers with what the test put down for it; an exception is raised."""

    def __init__(self, **answers: Object | Exception) -> None:
        self.answers = answers
        self.jobs: dict[str, Object | ApiError] = {}
        self.deleted: list[str] = []
        self.written: list[Mapping[str, Any]] = []

    def _answer(self, call: str) -> Object:
        answer = self.answers[call]
        if isinstance(answer, Exception):
            raise answer
        return answer

    async def create(self, resource: Resource, namespace: str, manifest: Mapping[str, Any]) -> Object:
        return self._answer("create")

    async def get(self, resource: Resource, namespace: str, name: str) -> Object:
        answer = self.jobs[name] if resource is JOBS and name in self.jobs else self.answers["get"]
        if isinstance(answer, Exception):
            raise answer
        return answer

    async def merge_patch(self, resource: Resource, namespace: str, name: str, body: Mapping[str, Any]) -> Object:
        return self._answer("patch")

    async def replace_status(
        self, resource: Resource, namespace: str, name: str, manifest: Mapping[str, Any]
    ) -> Object:
        self.written.append(manifest)
        return self._answer("status")

    async def delete(self, resource: Resource, namespace: str, name: str, uid: str) -> None:
        self.deleted.append(uid)


def make_writer(api: ScriptedApi) -> tuple[Writer, Stores]:
    cache = Stores()
    cache.finetunes.put(FINETUNE.manifest)
    return Writer(cast("Api", api), cache, Kueue()), cache


EXISTS = ApiError(409, "AlreadyExists", 'jobs.batch "j" already exists')
CONFLICT = ApiError(409, "Conflict", "the object has been modified")
NOT_FOUND = ApiError(404, "NotFound", "not found")
DENIED = ApiError(403, "Forbidden", "exceeded quota: none")
BUSY = ApiError(429, "TooManyRequests", "slow down")
LOCKED_OUT = ApiError(401, "Unauthorized", "Unauthorized")
BROKEN = ApiError(500, "InternalError", "failed calling webhook")
SILENT = UnreachableError("POST /apis/batch/v1/namespaces/team-a/jobs: TimeoutError")


async def test_what_was_created_is_in_the_cache_at_once() -> None:
    """The next decision sees it, whatever the watch does."""
    writer, cache = make_writer(ScriptedApi(create=job()))
    assert await writer.create(FINETUNE, job())
    assert [view.name for view in cache.jobs.of(KEY, UID)] == ["j"]


async def test_an_object_of_ours_that_is_there_already_is_adopted() -> None:
    """A crash came between its creation and the status."""
    writer, cache = make_writer(ScriptedApi(create=EXISTS, get=job()))
    assert not await writer.create(FINETUNE, job())
    assert len(cache.jobs) == 1


async def test_an_object_of_somebody_else_is_a_conflict() -> None:
    """Told by the uid of its controller, never by its name."""
    writer, cache = make_writer(ScriptedApi(create=EXISTS, get=job(owner_uid="other")))
    with pytest.raises(RefusedError) as refused:
        await writer.create(FINETUNE, job())
    refusal = refused.value.refusal
    assert (refusal.code, refusal.kind, refusal.name) == (409, "Job", "j")
    assert len(cache.jobs) == 0


@pytest.mark.parametrize("found", [NOT_FOUND, job(deletionTimestamp="2026-01-01T00:00:00Z")], ids=["gone", "going"])
async def test_an_object_that_is_just_going_is_waited_for(found: Object | ApiError) -> None:
    """Neither adopted nor called a conflict."""
    writer, _ = make_writer(ScriptedApi(create=EXISTS, get=found))
    with pytest.raises(TryAgainError):
        await writer.create(FINETUNE, job())


def config_map(text: str) -> Object:
    return {**job(child_name(NAME, UID, 1)), "kind": "ConfigMap", "data": {"config.json": text}}


def ended(name: str) -> Object:
    return {**job(name), "status": {"conditions": [condition_object("Complete")]}}


@pytest.mark.parametrize("error", [DENIED, BROKEN], ids=["quota", "a webhook that does not answer"])
async def test_a_refusal_carries_the_servers_own_words(error: ApiError) -> None:
    """Quota, pod security, admission."""
    writer, _ = make_writer(ScriptedApi(create=error))
    with pytest.raises(RefusedError) as refused:
        await writer.create(FINETUNE, job())
    assert (refused.value.refusal.code, refused.value.refusal.message) == (error.code, error.message)


@pytest.mark.parametrize("error", [CONFLICT, BUSY, LOCKED_OUT], ids=["conflict", "busy", "credentials"])
async def test_what_is_about_the_moment_or_the_operator_is_never_a_refusal_of_the_job(error: ApiError) -> None:
    """The quota controller's conflicts, an overload, a token that has run out."""
    writer, _ = make_writer(ScriptedApi(create=error, patch=error))
    with pytest.raises(ApiError):
        await writer.create(FINETUNE, job())
    with pytest.raises(ApiError):
        await writer.patch(FINETUNE, Patch(name="j", body={"metadata": {"uid": "1"}}))


CODES_OF_WEBHOOKS = (400, 401, 402, 403, 404, 409, 410, 412, 422, 429, 451, 503)


@pytest.mark.parametrize("code", CODES_OF_WEBHOOKS)
async def test_what_a_webhook_denies_is_refused_at_once_whatever_code_it_chose(code: int) -> None:
    """Its code says nothing of our credentials, of a name that is taken, or of a Job that is gone."""
    reason = "AlreadyExists" if code == 409 else ""
    denial = ApiError(code, reason, 'admission webhook "costs.example" denied the request: no budget', retry_after_s=9)
    writer, cache = make_writer(ScriptedApi(create=denial, patch=denial, get=NOT_FOUND))
    cache.jobs.put(job())
    patch = Patch(name="j", body={"metadata": {"uid": "1"}})
    for write in (writer.create(FINETUNE, job()), writer.patch(FINETUNE, patch)):
        with pytest.raises(RefusedError) as refused:
            await write
        assert (refused.value.refusal.code, refused.value.refusal.message) == (code, denial.message)
    assert [view.name for view in cache.jobs.of(KEY, UID)] == ["j"]


@pytest.mark.parametrize("code", [404, 409])
async def test_a_webhook_that_denies_a_status_makes_nobody_forget_the_resource(code: int) -> None:
    """Neither is it gone, nor did somebody else write it."""
    denial = ApiError(code, "", 'admission webhook "costs.example" denied the request: not now')
    writer, cache = make_writer(ScriptedApi(status=denial))
    with pytest.raises(ApiError):
        await writer.write_status(FINETUNE, {})
    assert cache.finetunes.get(KEY) is not None


async def test_a_job_that_went_before_its_patch_is_looked_for_again() -> None:
    """The cache was behind."""
    writer, _ = make_writer(ScriptedApi(patch=NOT_FOUND))
    with pytest.raises(TryAgainError):
        await writer.patch(FINETUNE, Patch(name="j", body={"metadata": {"uid": "1"}}))


async def test_of_a_resource_only_the_status_is_written() -> None:
    """The API server keeps all else as it is; uid and version make it a conflict where somebody wrote in between."""
    api = ScriptedApi(status={**FINETUNE.manifest, "status": {"attempt": 1}})
    writer, _ = make_writer(api)
    assert await writer.write_status(FINETUNE, {"attempt": 1})
    identity = {"namespace": NAMESPACE, "name": NAME, "uid": UID, "resourceVersion": FINETUNE.resource_version}
    whole = {"apiVersion": API_VERSION, "kind": KIND, "metadata": identity, "status": {"attempt": 1}}
    assert api.written == [whole]


async def test_a_status_that_somebody_overtook_is_read_again() -> None:
    """The present state is in the cache, for the next decision."""
    newer = {**FINETUNE.manifest, "metadata": {**FINETUNE.manifest["metadata"], "resourceVersion": "8"}}
    writer, cache = make_writer(ScriptedApi(status=CONFLICT, get=newer))
    assert not await writer.write_status(FINETUNE, {})
    found = cache.finetunes.get(KEY)
    assert found is not None
    assert found.resource_version == "8"


async def test_after_etcd_was_restored_a_live_read_replaces_what_is_of_a_history_that_is_no_more() -> None:
    """A verdict of that would stop a Job that goes on."""
    restored = {**FINETUNE.manifest, "metadata": {**FINETUNE.manifest["metadata"], "resourceVersion": "3"}}
    api = ScriptedApi(get=restored)
    _, cache = make_writer(api)
    await read_finetune(cache, cast("Api", api), FINETUNE)
    assert cache.finetunes.version_at(KEY) == "3"


async def test_what_a_watch_brings_meanwhile_is_newer_than_a_live_read() -> None:
    """The answer was on its way when the resource changed."""
    newer = {**FINETUNE.manifest, "metadata": {**FINETUNE.manifest["metadata"], "resourceVersion": "8"}}
    _, cache = make_writer(ScriptedApi())

    class Overtaken(ScriptedApi):
        async def get(self, *_: Any) -> Object:
            cache.finetunes.put(newer)
            return dict(FINETUNE.manifest)

    await read_finetune(cache, cast("Api", Overtaken()), FINETUNE)
    assert cache.finetunes.version_at(KEY) == "8"


async def test_a_status_of_a_resource_that_went_is_forgotten_with_it() -> None:
    """404 is an answer."""
    writer, cache = make_writer(ScriptedApi(status=NOT_FOUND))
    assert not await writer.write_status(FINETUNE, {})
    assert cache.finetunes.get(KEY) is None
