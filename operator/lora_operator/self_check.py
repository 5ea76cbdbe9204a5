"""Before the first watch: is the definition installed, and may the operator do what it does? A no is one sentence."""

import asyncio
from collections.abc import Iterable
from dataclasses import dataclass

from lora_operator.api import CONFIG_MAPS, EVENTS, FINETUNES, JOBS, PODS, SERVICES, Api, ApiError, Resource


class SelfCheckError(Exception):
    """The operator cannot work here; the text is one sentence that names what is missing and the remedy."""


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
    *_rights(CONFIG_MAPS, "get", "create", "delete"),
    *_rights(SERVICES, "get", "create", "delete"),
    *_rights(EVENTS, "list", "create"),
)
"""Every right that the operator uses."""


async def check(api: Api, namespaces: Iterable[str]) -> None:
    """Raise `SelfCheckError` where the definition or a right is missing, `UnreachableError` where nothing answers."""
    await _check_definition(api)
    for namespace in list(namespaces) or [""]:
        allowed = await asyncio.gather(*(_is_allowed(api, right, namespace) for right in RIGHTS))
        missing = [str(right) for right, yes in zip(RIGHTS, allowed, strict=True) if not yes]
        if missing:
            where = f"in namespace {namespace}" if namespace else "in the whole cluster"
            raise SelfCheckError(
                f"The operator may not {', '.join(missing)} {where}: "
                "grant its service account these rights, as the chart does with rbac.create=true"
            )


async def _check_definition(api: Api) -> None:
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
        raise SelfCheckError(
            f"The cluster does not know {FINETUNES.plural}.{FINETUNES.group} in version {FINETUNES.version}: "
            "apply crds/lorafinetunes.yaml, or install the chart with crds.install=true"
        )


async def _is_allowed(api: Api, right: Right, namespace: str) -> bool:
    attributes = {
        "verb": right.verb,
        "group": right.resource.group,
        "version": right.resource.version,
        "resource": right.resource.plural,
        "subresource": right.subresource,
        "namespace": namespace,
    }
    review = {
        "apiVersion": "authorization.k8s.io/v1",
        "kind": "SelfSubjectAccessReview",
        "spec": {"resourceAttributes": {key: value for key, value in attributes.items() if value}},
    }
    answer = await api.request("POST", "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews", body=review)
    return bool(answer.get("status", {}).get("allowed"))
