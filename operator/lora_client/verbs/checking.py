"""Asking the API server, without writing, whether it would take a manifest."""

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

from lora_client.cluster.connection import APPLY_PATCH, MANAGER, ApiError, Cluster
from lora_client.errors import ClientError
from lora_client.output import note
from lora_client.views.checked import Checked, checked, generated, own_problems, shown
from lora_client.views.needed import needed
from lora_client.views.refusals import Refusal, forbids_the_object, problems
from lora_client.views.resources import name_of, namespace_of

_STRICT = {"fieldValidation": "Strict", "fieldManager": MANAGER}
_DRY = {"dryRun": "All"}
_INVALID = (400, 422)


def check(cluster: Cluster, manifest: Mapping[str, Any]) -> Checked:
    """A sentence for every problem. Raises `ClientError` where the server cannot be asked."""
    own = own_problems(manifest)
    if not name_of(manifest) and generated(manifest):  # which the server would take, and an apply cannot
        return Checked(problems=(*map(shown, own), *generated(manifest)))
    refusals = _refusals(cluster, manifest)
    found = checked(own, refusals)
    return found if found.problems else replace(found, notes=(*found.notes, *_missing(cluster, manifest)))


def _missing(cluster: Cluster, manifest: Mapping[str, Any]) -> Iterator[str]:
    """What the run would wait for. Where that may not be looked at, nothing is missing."""
    for one in needed(manifest, cluster.namespace):
        if not cluster.may_exist(one.plural, one.name):
            yield one.sentence(cluster.namespace)


def require_good(cluster: Cluster, manifest: Mapping[str, Any]) -> None:
    """Print what is noted. Raises `ClientError` with a line for each problem."""
    found = check(cluster, manifest)
    if found.problems:
        raise ClientError("\n".join(found.problems))
    print_notes(found)


def print_notes(found: Checked) -> None:
    """On standard error."""
    for text in found.notes:
        note(f"Note: {text}")


def _refusals(cluster: Cluster, manifest: Mapping[str, Any]) -> list[Refusal]:
    path = cluster.path("lorafinetunes")
    found: list[Refusal] = []
    # Unknown fields are refused before anything else is looked at; the rest is asked for without them.
    for validation in ("Strict", "Ignore"):
        try:
            cluster.request("POST", path, query={**_DRY, **_STRICT, "fieldValidation": validation}, body=manifest)
        except ApiError as error:
            if error.code == 409 or _is_of_creation(cluster, manifest, error.refusal):
                return found + _changes(cluster, manifest)
            if not _is_of_the_manifest(error.refusal):
                raise
            found.append(error.refusal)
            if error.code == 400:
                continue
        break
    return found


def _changes(cluster: Cluster, manifest: Mapping[str, Any]) -> list[Refusal]:
    """What may not be changed of a run that exists."""
    try:
        apply(cluster, manifest, dry=True)
    except ApiError as error:
        if not _is_of_the_manifest(error.refusal):
            raise
        return [error.refusal]
    return []


def _is_of_creation(cluster: Cluster, manifest: Mapping[str, Any], refusal: Refusal) -> bool:
    """Whether a quota, a policy or a webhook refuses to create a run that is there: the API server asks them before it
    finds the name taken, and a change may be nothing to them."""
    if not _is_of_the_manifest(refusal) or any(problems(refusal)):
        return False
    return existing(cluster, name_of(manifest)) is not None


def existing(cluster: Cluster, name: str) -> dict[str, Any] | None:
    """The run of this name; None where there is none, or none that the user may read."""
    try:
        return cluster.get("lorafinetunes", name)
    except ApiError as error:
        if error.code in (403, 404):
            return None
        raise


def _is_of_the_manifest(refusal: Refusal) -> bool:
    return refusal.code in _INVALID or forbids_the_object(refusal)


def apply(cluster: Cluster, manifest: Mapping[str, Any], *, dry: bool = False) -> dict[str, Any]:
    """Create the run or change it, by server-side apply; the resource as it is stored. Raises `ApiError`."""
    query = {"fieldManager": MANAGER, "force": "true", "fieldValidation": "Strict", **(_DRY if dry else {})}
    path = cluster.path("lorafinetunes", name_of(manifest))
    return cluster.request("PATCH", path, query=query, body=manifest, content_type=APPLY_PATCH)


def placed(cluster: Cluster, manifest: Mapping[str, Any], *, asked: bool) -> dict[str, Any]:
    """The manifest with its namespace, which the cluster then has and `-n` must not contradict.

    Raises `ClientError`.
    """
    metadata = manifest.get("metadata")
    named = namespace_of(manifest)
    if asked and named and named != cluster.namespace:
        raise ClientError(
            f"The file names the namespace {named}, and -n the namespace {cluster.namespace}: remove one of the two"
        )
    cluster.namespace = named or cluster.namespace
    if not isinstance(metadata, Mapping):
        return dict(manifest)
    return {**manifest, "metadata": {**metadata, "namespace": cluster.namespace}}
