"""Before the first watch: is the definition installed, and may the operator do what it does? A no is one sentence."""

import asyncio
import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lora_operator.cluster.api import (
    EVENTS,
    FINETUNES,
    JOBS,
    LEASES,
    PODS,
    SERVICES,
    WORKLOADS,
    Api,
    ApiError,
    Resource,
)
from lora_operator.views.definition import FIELDS

logger = logging.getLogger(__name__)

_MOST_NAMED = 3


class SelfCheckError(Exception):
    """The operator cannot work here; the text is one sentence that names what is missing and the remedy."""


class NoDefinitionError(SelfCheckError):
    """The cluster does not know LoRAFineTunes, or not all of their fields: not yet, or no more."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Right:
    """One verb on one kind of object, or on a subresource of it."""

    verb: str
    resource: Resource
    subresource: str = ""

    def __str__(self) -> str:
        group = f".{self.resource.group}" if self.resource.group else ""
        return f"{self.verb} {self.resource.plural}{group}" + (f"/{self.subresource}" if self.subresource else "")


@dataclass(frozen=True, slots=True, kw_only=True)
class Account:
    """A service account whose rights somebody else looks for."""

    namespace: str
    name: str

    def review(self, namespace: str) -> tuple[str, Mapping[str, Any]]:
        """Path, and spec without the question, of a review of its rights in a namespace or, if empty, everywhere."""
        spec = {
            "user": f"system:serviceaccount:{self.namespace}:{self.name}",
            "groups": ["system:serviceaccounts", f"system:serviceaccounts:{self.namespace}", "system:authenticated"],
        }
        place = f"namespaces/{namespace}/localsubjectaccessreviews" if namespace else "subjectaccessreviews"
        return place, spec


def _rights(resource: Resource, *verbs: str) -> tuple[Right, ...]:
    return tuple(Right(verb=verb, resource=resource) for verb in verbs)


RIGHTS = (
    *_rights(FINETUNES, "get", "list", "watch"),
    Right(verb="update", resource=FINETUNES, subresource="status"),
    *_rights(JOBS, "get", "list", "watch", "create", "patch", "delete"),
    *_rights(PODS, "list", "watch"),
    *_rights(SERVICES, "get", "create"),
    *_rights(EVENTS, "list", "create"),
    *_rights(WORKLOADS, "list", "watch", "patch"),
)
"""Every right that the operator uses; those on Kueue's kind only where the cluster has it."""


LEASE_RIGHTS = _rights(LEASES, "get", "create", "update")
"""Every right that the operator uses on the Lease, in its namespace."""


def rights_used(*, kueue: bool) -> tuple[Right, ...]:
    """The rights that the operator uses in a cluster with or without Kueue."""
    return tuple(right for right in RIGHTS if kueue or right.resource is not WORKLOADS)


async def check_rights(api: Api, namespaces: Sequence[str], rights: Sequence[Right]) -> list[str]:
    """Look for these rights in each of the namespaces, or in the whole cluster if none is named.

    Returns the namespaces that cannot be looked after, because a right to list or watch is missing there. Any other
    right that is missing in some namespaces is logged, and reported by each run that needs it. Raises `SelfCheckError`
    where no namespace has all of them: that is a mistake of the installation rather than of a namespace.
    """
    shortages = {}
    for namespace in namespaces or [""]:
        missing = await _missing(api, rights, namespace)
        if missing:
            shortages[namespace] = missing
    if len(shortages) == len(namespaces or [""]):
        raise SelfCheckError(_shortage(shortages))
    for namespace, missing in shortages.items():
        logger.error("%s", _shortage({namespace: missing}))
    return [namespace for namespace, missing in shortages.items() if any(map(_is_sight, missing))]


async def shortage(api: Api, account: Account, namespaces: Sequence[str], rights: Sequence[Right]) -> str:
    """A sentence where an account lacks one of these rights, by reviews that whoever asks must be allowed to create."""
    found = {namespace: await _missing(api, rights, namespace, account) for namespace in namespaces or [""]}
    shortages = {namespace: missing for namespace, missing in found.items() if missing}
    return _shortage(shortages) if shortages else ""


async def can_look_after(api: Api, namespace: str, rights: Sequence[Right]) -> bool:
    """Whether no right to list or watch is missing in a namespace."""
    return not await _missing(api, list(filter(_is_sight, rights)), namespace)


def _is_sight(right: Right) -> bool:
    """Whether it is one of those without which the operator does not see what goes on in a namespace."""
    return right.verb in ("list", "watch") and right.resource is not EVENTS


async def _missing(api: Api, rights: Sequence[Right], namespace: str, account: Account | None = None) -> list[Right]:
    allowed = await asyncio.gather(*(_is_allowed(api, right, namespace, account=account) for right in rights))
    return [right for right, yes in zip(rights, allowed, strict=True) if not yes]


def _shortage(shortages: Mapping[str, Sequence[Right]]) -> str:
    """One sentence, which names a few namespaces of many."""
    named = list(shortages.items())[:_MOST_NAMED]
    lacks = [f"{', '.join(map(str, rights))} {_where(namespace)}" for namespace, rights in named]
    others = f"; and in {len(shortages) - len(named)} more namespaces" if len(shortages) > len(named) else ""
    remedy = "grant its service account these rights, as the chart does with rbac.create=true"
    or_else = ", or take a namespace that is gone from the list" if "" not in shortages else ""
    return f"The operator may not {'; '.join(lacks)}{others}: {remedy}{or_else}"


def _where(namespace: str) -> str:
    return f"in namespace {namespace}" if namespace else "in the whole cluster"


async def check_lease(api: Api, namespace: str, name: str, account: Account | None = None) -> None:
    """Raise `SelfCheckError` where a right on the Lease is missing, `UnreachableError` where nothing answers."""
    # A Lease that does not exist yet has no name by which a role could allow to create it.
    named = {right: "" if right.verb == "create" else name for right in LEASE_RIGHTS}
    reviews = (_is_allowed(api, right, namespace, named[right], account=account) for right in LEASE_RIGHTS)
    allowed = await asyncio.gather(*reviews)
    missing = [str(right) for right, yes in zip(LEASE_RIGHTS, allowed, strict=True) if not yes]
    if missing:
        raise SelfCheckError(
            f"Leader election may not {', '.join(missing)} in namespace {namespace} for the Lease {name}: grant the "
            "operator's service account these rights, as the chart does with rbac.create=true"
        )


async def check_definition(api: Api) -> None:
    """Raise `NoDefinitionError` where the cluster does not know the definition or has an older one, `SelfCheckError`
    where it does not know the operator's credentials."""
    path = f"/apis/{FINETUNES.group}/{FINETUNES.version}"
    try:
        answer = await api.request("GET", path)
    except ApiError as error:
        if error.code == 401:
            raise SelfCheckError(
                f"The API server does not accept the operator's credentials ({error.message}): check its service "
                "account token or kubeconfig"
            ) from error
        if error.code != 404:
            raise
        answer = {}
    if all(entry.get("name") != FINETUNES.plural for entry in answer.get("resources") or ()):
        raise NoDefinitionError(
            f"The cluster does not know {FINETUNES.plural}.{FINETUNES.group} in version {FINETUNES.version}: "
            "apply crds/lorafinetunes.yaml, or install the chart with crds.install=true"
        )
    await check_fields(api)


async def check_fields(api: Api) -> None:
    """Raise `NoDefinitionError` where the definition in the cluster lacks fields, of which nothing would be stored.

    A cluster that shows its service accounts no OpenAPI, or not yet, says nothing of that.
    """
    try:
        document = await api.request("GET", f"/openapi/v3/apis/{FINETUNES.group}/{FINETUNES.version}")
    except ApiError as error:
        if error.code in (403, 404):
            return
        raise
    schemas = document.get("components", {}).get("schemas", {})
    known = (schema for name, schema in schemas.items() if name.endswith(f".{FINETUNES.kind}"))
    lacking = sorted(FIELDS - set(field_paths(next(known, {}))))
    if lacking:
        others = f" and {len(lacking) - _MOST_NAMED} more fields" if len(lacking) > _MOST_NAMED else ""
        raise NoDefinitionError(
            f"The definition in the cluster is older than the operator, and lacks {', '.join(lacking[:_MOST_NAMED])}"
            f"{others}: apply crds/lorafinetunes.yaml, or upgrade the chart with crds.install=true"
        )


def field_paths(schema: Mapping[str, Any], above: str = "") -> Iterator[str]:
    """The path of each field of spec and status, as in `status.progress.step`, whatever lists and maps it is in."""
    for name, field in schema.get("properties", {}).items():
        path = f"{above}.{name}" if above else name
        if path.partition(".")[0] in ("spec", "status"):
            yield path
            yield from field_paths(field, path)
    for inner in (schema.get("items"), schema.get("additionalProperties")):
        if isinstance(inner, Mapping):
            yield from field_paths(inner, above)


async def _is_allowed(
    api: Api, right: Right, namespace: str, name: str = "", *, account: Account | None = None
) -> bool:
    attributes = {
        "verb": right.verb,
        "group": right.resource.group,
        "version": right.resource.version,
        "resource": right.resource.plural,
        "subresource": right.subresource,
        "namespace": namespace,
        "name": name,
    }
    place, subject = account.review(namespace) if account is not None else ("selfsubjectaccessreviews", {})
    kind = (
        "SelfSubjectAccessReview"
        if account is None
        else "LocalSubjectAccessReview"
        if namespace
        else "SubjectAccessReview"
    )
    review = {
        "apiVersion": "authorization.k8s.io/v1",
        "kind": kind,
        "metadata": {"namespace": namespace} if kind.startswith("Local") else {},
        "spec": {**subject, "resourceAttributes": {key: value for key, value in attributes.items() if value}},
    }
    answer = await api.request("POST", f"/apis/authorization.k8s.io/v1/{place}", body=review)
    return bool(answer.get("status", {}).get("allowed"))
