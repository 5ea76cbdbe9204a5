"""Carrying out the writes of a plan, one at a time; each can be repeated after a crash before or after it."""

from collections.abc import Mapping
from typing import Any

from lora_operator.cluster.api import BY_KIND, FINETUNES, JOBS, WORKLOADS, Api, ApiError, Object
from lora_operator.cluster.kueue import Kueue
from lora_operator.cluster.observe import read_finetune
from lora_operator.cluster.store import Key, Stores, key_of
from lora_operator.model.objects import FineTune, ObjectRef, Patch, Refusal
from lora_operator.model.observe import owner_of

# What the API server answers to something that it will not have: bad request, forbidden (rights, quota, pod security,
# a terminating namespace), method not allowed, too large, unprocessable.
_REFUSALS = frozenset({400, 403, 405, 406, 413, 415, 422})


# A webhook that does not answer, of which the API server makes an error of its own.
_UNREACHED = "failed calling webhook"


class TryAgainError(Exception):
    """The cluster is in the middle of something; the work is to be tried again after a while."""


class RefusedError(Exception):
    """The API server will not have what was to be written."""

    def __init__(self, refusal: Refusal) -> None:
        super().__init__(refusal.message)
        self.refusal = refusal


class Writer:
    """The operator's writes to the cluster; what the server answers goes into the stores at once.

    Each raises `ApiError` or `UnreachableError` where it is to be tried again.
    """

    def __init__(self, api: Api, stores: Stores, kueue: Kueue) -> None:
        self._api = api
        self._stores = stores
        self._kueue = kueue

    async def create(self, finetune: FineTune, manifest: Mapping[str, Any]) -> bool:
        """Create a Service or a Job; False where it is there already, left by an attempt that was interrupted.

        Raises `RefusedError`; what a webhook denies is refused, whatever code it chose.
        """
        resource, name = BY_KIND[manifest["kind"]], manifest["metadata"]["name"]
        try:
            stored = await self._api.create(resource, finetune.namespace, manifest)
        except ApiError as error:
            if error.code == 409 and error.reason == "AlreadyExists" and not error.is_of_webhook:
                await self._adopt(finetune, resource.kind, name)
                return False
            raise _as_refusal(error, resource.kind, name) from error
        self._remember(resource.kind, stored)
        return True

    async def _adopt(self, finetune: FineTune, kind: str, name: str) -> None:
        try:
            stored = await self._api.get(BY_KIND[kind], finetune.namespace, name)
        except ApiError as error:
            if error.code == 404:
                raise TryAgainError(f"{kind} {name} existed and was deleted a moment later") from error
            raise
        if owner_of(stored)[1] != finetune.uid:
            message = f"{kind} {name} exists and belongs to another owner"
            raise RefusedError(Refusal(kind=kind, name=name, code=409, reason="AlreadyExists", message=message))
        if stored["metadata"].get("deletionTimestamp"):
            raise TryAgainError(f"{kind} {name} is being deleted")
        self._remember(kind, stored)

    async def patch(self, finetune: FineTune, patch: Patch) -> None:
        """Change a Job or its Workload. Raises `RefusedError`; one that is gone is looked for at the next turn."""
        resource = self._kueue.workloads if patch.kind == WORKLOADS.kind else JOBS
        try:
            stored = await self._api.merge_patch(resource, finetune.namespace, patch.name, patch.body)
        except ApiError as error:
            if error.code == 404 and not error.is_of_webhook:
                store = self._stores.workloads if patch.kind == WORKLOADS.kind else self._stores.jobs
                store.drop(Key(finetune.namespace, patch.name), patch.body["metadata"]["uid"])
                raise TryAgainError(f"{patch.kind} {patch.name} is gone") from error
            raise _as_refusal(error, patch.kind, patch.name, patch) from error
        self._remember(patch.kind, stored)

    async def write_status(self, finetune: FineTune, status: Mapping[str, Any]) -> bool:
        """Write the whole status; False if the resource changed or went meanwhile, as its store then says."""
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
                await read_finetune(self._stores, self._api, finetune)
                return False
            if error.code == 404:
                self._stores.finetunes.drop(key_of(finetune), finetune.uid)
                return False
            raise
        self._stores.finetunes.put(stored)
        return True

    async def delete(self, finetune: FineTune, target: ObjectRef) -> None:
        """Delete a child, if it is still the one with this uid."""
        await self._api.delete(BY_KIND[target.kind], finetune.namespace, target.name, target.uid)

    def _remember(self, kind: str, stored: Object) -> None:
        if kind == JOBS.kind:
            self._stores.jobs.put(stored)
        elif kind == WORKLOADS.kind:
            self._stores.workloads.put(stored)


def _as_refusal(error: ApiError, kind: str, name: str, patch: Patch | None = None) -> Exception:
    """The error itself where it says nothing of the object: our credentials, a conflict, an overload."""
    if not error.is_of_webhook and error.code not in _REFUSALS and _UNREACHED not in error.message:
        return error
    refusal = Refusal(kind=kind, name=name, code=error.code, reason=error.reason, message=error.message, patch=patch)
    return RefusedError(refusal)
