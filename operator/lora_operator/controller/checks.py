"""Before the first list: what the cluster has and allows, and which namespaces can be looked after; `lora-operator
verify`. Each no is one sentence with the remedy.
"""

import asyncio
import contextlib
import logging
import re
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import yaml
from kubernetes.aio.client.api_client import ApiClient

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
    UnreachableError,
)
from lora_operator.cluster.login import LoginError, load_configuration
from lora_operator.controller.supervision import OperatorFailedError
from lora_operator.model.config import OperatorConfig
from lora_trainer.spec.api import paths
from lora_trainer.spec.resource import Spec
from lora_trainer.spec.status import Status

if TYPE_CHECKING:
    from lora_operator.cluster.lease import Election
    from lora_operator.controller.operator import Operator

logger = logging.getLogger(__name__)

REVIEW_INTERVAL_S = 30.0
LEADER_S = 20.0
"""How long `verify` waits for a leader, which may have begun a moment ago."""
_DEFINITION_S = 5.0
# So long at the start an API server may give no answer; a process that ends has its pod say so.
_SERVER_LATE_S = 150.0
_PAUSE_S = 0.5
_MOST_NAMED = 3
_FIELDS = frozenset(("spec", *paths(Spec, "spec"), "status", *paths(Status, "status")))
"""That this operator reads or writes."""
_POLICY = re.compile(r"ValidatingAdmissionPolicy '([^']+)'")
_INVALID = 422


class SelfCheckError(Exception):
    """The operator cannot work here; the text is one sentence that names what is missing and the remedy."""


class VerifyError(Exception):
    """The installation is not whole; the text has one sentence with the remedy for each fault, one a line."""


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


async def can_look_after(api: Api, namespace: str, rights: Sequence[Right]) -> bool:
    """Whether no right to list or watch is missing in a namespace."""
    return not await _missing(api, list(filter(_is_sight, rights)), namespace)


def _is_sight(right: Right) -> bool:
    """Whether it is one of those without which the operator does not see what goes on in a namespace."""
    return right.verb in ("list", "watch") and right.resource is not EVENTS


async def _missing(api: Api, rights: Sequence[Right], namespace: str) -> list[Right]:
    allowed = await asyncio.gather(*(_is_allowed(api, right, namespace) for right in rights))
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


async def check_lease(api: Api, namespace: str, name: str) -> None:
    """Raise `SelfCheckError` where a right on the Lease is missing, `UnreachableError` where nothing answers."""
    # A Lease that does not exist yet has no name by which a role could allow to create it.
    named = {right: "" if right.verb == "create" else name for right in LEASE_RIGHTS}
    reviews = (_is_allowed(api, right, namespace, named[right]) for right in LEASE_RIGHTS)
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
    lacking = sorted(_FIELDS - set(field_paths(next(known, {}))))
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


async def _is_allowed(api: Api, right: Right, namespace: str, name: str = "") -> bool:
    attributes = {
        "verb": right.verb,
        "group": right.resource.group,
        "version": right.resource.version,
        "resource": right.resource.plural,
        "subresource": right.subresource,
        "namespace": namespace,
        "name": name,
    }
    review = {
        "apiVersion": "authorization.k8s.io/v1",
        "kind": "SelfSubjectAccessReview",
        "spec": {"resourceAttributes": {key: value for key, value in attributes.items() if value}},
    }
    answer = await api.request("POST", "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews", body=review)
    return bool(answer.get("status", {}).get("allowed"))


async def prepare(operator: "Operator", election: "Election") -> None:
    """Check the cluster, once it answers; an API server may be later than its operator, or busy."""
    deadline_s = time.monotonic() + _SERVER_LATE_S
    reported = False
    while True:
        try:
            await check_definition(operator.api)
            await _find_out(operator)
            await check_lease(operator.api, election.namespace, election.name)
            operator.hindrance = ""
            return
        except NoDefinitionError as error:
            if not operator.hindrance:
                logger.error("waiting: %s", error)
            operator.hindrance = str(error)
            deadline_s = time.monotonic() + _SERVER_LATE_S  # the API server has answered
            await asyncio.sleep(min(operator.config.retry_max_s, _DEFINITION_S))
        except (ApiError, UnreachableError) as error:
            if isinstance(error, ApiError) and not error.is_passing:
                raise
            if time.monotonic() > deadline_s:
                raise OperatorFailedError(f"The API server does not answer: {error}") from error
            if not reported:
                logger.warning("waiting for the API server: %s", error)
                reported = True
            await asyncio.sleep(operator.config.retry_base_s)


async def _find_out(operator: "Operator") -> None:
    """Whether there is Kueue, and which namespaces can be looked after."""
    kueue, config = operator.kueue, operator.config
    await kueue.discover(operator.api)
    rights = rights_used(kueue=kueue.served)
    operator.left_out = tuple(await check_rights(operator.api, config.namespaces, rights))
    operator.namespaces = tuple(place for place in config.namespaces if place not in operator.left_out)
    operator.metrics.left_out(operator.left_out)


async def wait_for_namespaces(operator: "Operator") -> None:
    """End the process, by raising, when a namespace that was left out can be looked after: a restart takes it up."""
    rights = rights_used(kueue=operator.kueue.served)
    while True:
        await asyncio.sleep(min(operator.config.resync_interval_s, REVIEW_INTERVAL_S))
        for namespace in operator.left_out:
            with contextlib.suppress(ApiError, UnreachableError):
                if await can_look_after(operator.api, namespace, rights):
                    raise OperatorFailedError(f"Namespace {namespace} can be watched now: a restart takes it up")


async def verify(sample: str, namespace: str, config: OperatorConfig) -> None:
    """Print what of an installation was found to be well: what the Job of `helm test` runs, with an account of its own.

    `sample` is a manifest in YAML that must be accepted in the namespace, the operator's; it is sent as a dry run. A
    leader has looked for its own rights before it began. Raises `VerifyError`.
    """
    manifest = yaml.safe_load(sample)
    try:
        async with ApiClient(await load_configuration()) as client:
            api = Api(client)
            await check_definition(api)
            found = [
                *await faults_of_sample(api, namespace, manifest),
                *await faults_of_leader(api, config.lease_namespace or namespace, config.lease_name),
            ]
    except (ApiError, LoginError, SelfCheckError, UnreachableError) as error:
        raise VerifyError(str(error)) from error
    if found:
        raise VerifyError("\n".join(found))


async def faults_of_sample(api: Api, namespace: str, sample: Mapping[str, Any]) -> list[str]:
    """A sentence where the API server does not accept the sample, by a dry run.

    A policy is asked only for what the definition accepts, so that its refusal is none of the installation's faults.
    """
    # A run of the sample's own name may be there, by somebody who has pasted it.
    body = {**sample, "metadata": {**sample.get("metadata", {}), "generateName": "verify-"}}
    del body["metadata"]["name"]
    try:
        await api.request("POST", FINETUNES.path(namespace), query={"dryRun": "All"}, body=body)
    except ApiError as error:
        policy = _POLICY.search(error.message)
        if policy is None:
            return [_refused(error, namespace)]
        _report(f"the definition accepts the sample, and the policy {policy[1]} refuses it: {error.message}")
    else:
        _report(f"the API server accepts the sample in {namespace}")
    return []


def _refused(error: ApiError, namespace: str) -> str:
    remedy = "the message names what refuses it"
    if error.code == _INVALID:
        remedy = "the definition is another release's, so upgrade the chart with crds.install=true"
    return f"The API server does not accept the sample of the notes in {namespace} ({error.message}): {remedy}"


async def faults_of_leader(api: Api, namespace: str, name: str, wait_s: float = LEADER_S) -> list[str]:
    """A sentence where no operator renews the Lease within `wait_s`: of its times none is believed."""
    end_s, before = time.monotonic() + wait_s, ""
    while True:
        holder, version = await _holder(api, namespace, name)
        if holder and before not in ("", version):
            _report(f"{holder} leads, by the Lease {namespace}/{name}")
            return []
        if time.monotonic() > end_s:
            said = f"{holder} no longer renews" if holder else "nobody holds"
            remedy = "look at its pods with kubectl get pods and kubectl logs, or raise replicas where that is 0"
            return [f"No operator is at work, since {said} the Lease {namespace}/{name}: {remedy}"]
        before = version
        await asyncio.sleep(_PAUSE_S)


async def _holder(api: Api, namespace: str, name: str) -> tuple[str, str]:
    """Of the Lease, and its version; empty where there is none."""
    try:
        lease = await api.get(LEASES, namespace, name)
    except ApiError as error:
        if error.code != 404:
            raise
        return "", ""
    return str(lease.get("spec", {}).get("holderIdentity") or ""), str(lease["metadata"].get("resourceVersion", ""))


def _report(text: str) -> None:
    sys.stdout.write(f"ok: {text}\n")
