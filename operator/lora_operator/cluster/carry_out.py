"""Carrying out the writes of a plan, one at a time; each can be repeated after a crash before or after it."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from lora_operator.cluster.api import BY_KIND, FINETUNES, JOBS, WORKLOADS, Api, ApiError, Object, UnreachableError
from lora_operator.cluster.cache import Cache, Key, Store, key_of
from lora_operator.cluster.kueue import Kueue
from lora_operator.cluster.look import read_finetune
from lora_operator.cluster.omissions import Omissions
from lora_operator.views.model import FineTune, ObjectRef, Patch, Rejection
from lora_operator.views.observe import owner_of
from lora_operator.views.wording import UNANSWERED

# What the API server answers to something that it will not have: bad request, forbidden (rights, quota, pod security,
# a terminating namespace), method not allowed, too large, unprocessable.
_REFUSALS = frozenset({400, 403, 405, 406, 413, 415, 422})
# These say nothing of the object, however often they come: our credentials, a conflict, an overload.
_OF_THE_MOMENT = frozenset({401, 409, 429})


class TryAgainError(Exception):
    """The cluster is in the middle of something; the work is to be tried again after a while."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Creation:
    """How it went: refused, or there already, left by an attempt that was interrupted. Neither: made."""

    rejection: Rejection | None = None
    adopted: bool = False


class Writer:
    """The operator's writes to the cluster; what the server answers goes into the cache at once."""

    def __init__(self, api: Api, cache: Cache, kueue: Kueue) -> None:
        self._api = api
        self._cache = cache
        self._kueue = kueue
        self._omissions = Omissions()

    async def create(self, finetune: FineTune, manifest: Mapping[str, Any], *, patient: bool) -> Creation:
        """Create a Service or a Job, or adopt the one that an interrupted attempt left.

        What a webhook denies is refused, whatever code it chose. `patient`: so is what fails otherwise, because it has
        failed several times in a row; also without an answer, which webhooks that hang can cause, where a read has one.
        """
        resource = BY_KIND[manifest["kind"]]
        name = manifest["metadata"]["name"]
        try:
            stored = await self._api.create(resource, finetune.namespace, manifest)
        except ApiError as error:
            if _is_refusal(error, patient=patient):
                return Creation(rejection=_rejection(resource.kind, name, error))
            if error.code == 409 and error.reason == "AlreadyExists":
                return await self._adopt(finetune, resource.kind, name)
            raise
        except UnreachableError:
            if not patient:
                raise
            return Creation(rejection=await self._unanswered(finetune, resource.kind, name))
        self._remember(resource.kind, stored)
        return Creation()

    async def _adopt(self, finetune: FineTune, kind: str, name: str) -> Creation:
        before = self._cache.jobs.version
        try:
            stored = await self._api.get(BY_KIND[kind], finetune.namespace, name)
        except ApiError as error:
            if error.code == 404:
                raise TryAgainError(f"{kind} {name} existed and was deleted a moment later") from error
            raise
        if owner_of(stored)[1] != finetune.uid:
            message = f"{kind} {name} exists and belongs to another owner"
            return Creation(
                rejection=Rejection(kind=kind, name=name, code=409, reason="AlreadyExists", message=message)
            )
        if stored["metadata"].get("deletionTimestamp"):
            raise TryAgainError(f"{kind} {name} is being deleted")
        self._remember(kind, stored, as_of=before)
        return Creation(adopted=True)

    async def patch(self, finetune: FineTune, patch: Patch, *, patient: bool) -> Rejection | None:
        """Change a Job or its Workload; say if it was refused. One that is gone is looked for at the next turn.

        `patient`: as for `create`; a webhook that does not answer makes a server error of every change.
        """
        resource = self._kueue.workloads if patch.kind == WORKLOADS.kind else JOBS
        store, place = self._store_of(patch), Key(finetune.namespace, patch.name)
        uid = store.uid_at(place)
        try:
            stored = await self._api.merge_patch(resource, finetune.namespace, patch.name, patch.body)
        except ApiError as error:
            if error.code == 404 and not error.is_of_webhook:
                store.mark_deleted(place, uid)
                raise TryAgainError(f"{patch.kind} {patch.name} is gone") from error
            if _is_refusal(error, patient=patient):
                return _rejection(patch.kind, patch.name, error)
            raise
        except UnreachableError:
            if not patient:
                raise
            return await self._unanswered(finetune, patch.kind, patch.name)
        self._remember(patch.kind, stored)
        return None

    def uid_of(self, run: Key, patch: Patch) -> str:
        """The uid of the object that a patch of a run would change, as far as it is known."""
        return self._store_of(patch).uid_at(Key(run.namespace, patch.name))

    def _store_of(self, patch: Patch) -> Store[Any]:
        return self._cache.workloads if patch.kind == WORKLOADS.kind else self._cache.jobs

    async def _unanswered(self, finetune: FineTune, kind: str, name: str) -> Rejection:
        """A write was not answered. Whether it was done is seen later, as after a crash.

        Raises `UnreachableError` where a read, of which no webhook is asked, is not answered either.
        """
        await read_finetune(self._cache, self._api, finetune)
        return Rejection(kind=kind, name=name, code=504, reason="Timeout", message=UNANSWERED)

    async def write_status(self, finetune: FineTune, status: Mapping[str, Any]) -> bool:
        """Write the whole status; False if the resource changed or went meanwhile, as the cache then says."""
        identity = {"namespace": finetune.namespace, "name": finetune.name, "uid": finetune.uid}
        document = {
            "apiVersion": FINETUNES.api_version,
            "kind": FINETUNES.kind,
            "metadata": {**identity, "resourceVersion": finetune.resource_version},
            "status": status,  # the server keeps all else as it is
        }
        try:
            stored = await self._api.replace_status(FINETUNES, finetune.namespace, finetune.name, document)
        except ApiError as error:
            if error.is_of_webhook:
                raise
            if error.code == 409:
                await read_finetune(self._cache, self._api, finetune)
                return False
            if error.code == 404:
                self._cache.finetunes.mark_deleted(key_of(finetune), finetune.uid)
                return False
            raise
        self._omissions.note(finetune.uid, status, stored)
        self._cache.finetunes.put(stored)
        return True

    def is_written(self, finetune: FineTune, status: Mapping[str, Any]) -> bool:
        """Whether the status is stored, or as much of it as the definition in the cluster knows."""
        return status == finetune.status or self._omissions.covers(finetune, status)

    async def delete(self, finetune: FineTune, target: ObjectRef) -> None:
        """Delete a child."""
        await self._api.delete(BY_KIND[target.kind], finetune.namespace, target.name, target.uid)

    def _remember(self, kind: str, stored: Object, *, as_of: str = "") -> None:
        if kind == JOBS.kind:
            self._cache.jobs.put(stored, as_of=as_of)
        elif kind == WORKLOADS.kind:
            self._cache.workloads.put(stored)


def _is_refusal(error: ApiError, *, patient: bool) -> bool:
    if error.is_of_webhook or error.code in _REFUSALS:
        return True
    return patient and error.code not in _OF_THE_MOMENT


def _rejection(kind: str, name: str, error: ApiError) -> Rejection:
    return Rejection(kind=kind, name=name, code=error.code, reason=error.reason, message=error.message)
