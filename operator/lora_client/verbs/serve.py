"""`lora serve`: the manifest that serves a run's adapter, printed for `kubectl apply`."""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from typing import Any

from lora_client.cluster.connection import ApiError, Cluster
from lora_client.cluster.helper import template_of
from lora_client.errors import ClientError
from lora_client.output import Form, data, note, put, say
from lora_client.views.resources import Object, name_of, namespace_of
from lora_client.views.serving import SERVERS, claims, manifests, note_of_claim, notes
from lora_client.yaml_text import yaml_text


def serve(cluster: Cluster, name: str, kind: str, form: Form) -> None:
    """Print it. Raises `ClientError` where the result cannot be served."""
    _require_known(kind)
    run = cluster.get("lorafinetunes", name)
    template, unread = _template(cluster, run)
    documents = manifests(run, kind, template)
    if form is Form.NAME:
        for document in documents:
            say(_title(document))
        return
    if form is Form.JSON:
        data(form, {"apiVersion": "v1", "kind": "List", "items": documents})
    else:
        for document in documents:
            put("---\n" + yaml_text(document))
    for sentence in [*_of_claims(cluster, documents), *notes(run, template, kind=kind, unread=unread)]:
        note(sentence)
    if kind == "vllm":
        _note_the_way(run)


def served(cluster: Cluster, run: Object, kind: str) -> list[dict[str, Any]]:
    """The objects that serve a run's adapter. Raises `ClientError` where it cannot be served."""
    _require_known(kind)
    return manifests(run, kind, _template(cluster, run)[0])


def _template(cluster: Cluster, run: Object) -> tuple[Object, str]:
    """Of the run's Job, empty where that is gone; why it cannot be read, empty where it can."""
    try:
        return template_of(cluster, run), ""
    except ApiError as error:
        return {}, str(error)


def _of_claims(cluster: Cluster, documents: Iterable[Object]) -> Iterator[str]:
    """What servers that keep claims mean for runs; of one that cannot be read it is said as well."""
    for name in claims(documents):
        claim: Object | None = None
        with suppress(ApiError):
            claim = cluster.get("persistentvolumeclaims", name)
        if sentence := note_of_claim(name, claim):
            yield sentence


def _note_the_way(run: Object) -> None:
    name, namespace = name_of(run), namespace_of(run)
    note(
        f"Once it is ready, kubectl port-forward -n {namespace} service/{name} 8000:80 brings it to "
        f"http://localhost:8000/v1/chat/completions, where the model is named {name}"
    )


def _require_known(kind: str) -> None:
    if kind not in SERVERS:
        raise ClientError(f"--with is {kind}: must be {' or '.join(SERVERS)}")


def _title(document: Mapping[str, Any]) -> str:
    """As kubectl names it: deployment.apps/tone, service/tone."""
    group, slash, _ = document["apiVersion"].partition("/")
    kind = document["kind"].lower()
    return f"{kind}.{group}/{name_of(document)}" if slash else f"{kind}/{name_of(document)}"
