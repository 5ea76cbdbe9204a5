"""`lora-operator explain NAMESPACE/NAME`: reads one LoRAFineTune and its children, and prints what would be decided.

It sends nothing but GET requests, so whoever may read these objects may ask, and the operator's work is not touched.
"""

import json
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import yaml
from kubernetes.aio.client.api_client import ApiClient

from lora_operator.cluster.api import FINETUNES, JOBS, PODS, Api, ApiError, Object, UnreachableError
from lora_operator.cluster.cache import Key, key_of
from lora_operator.cluster.child_events import read_events, unexplained
from lora_operator.cluster.listing import list_into
from lora_operator.cluster.login import LoginError, load_configuration
from lora_operator.cluster.look import look, read_live
from lora_operator.decision.decide import decide
from lora_operator.running.explain import Document, describe, render
from lora_operator.running.operator import Operator, make_operator
from lora_operator.views import names
from lora_operator.views.config import OperatorConfig
from lora_operator.views.model import Answer, EventView, FineTune, Observed
from lora_operator.views.observe import parse_finetune
from lora_operator.views.visible import visible

_PLACE = re.compile(r"([a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?)/([a-z0-9]([-.a-z0-9]{0,251}[a-z0-9])?)")


def _yaml(document: Document) -> str:
    """With letters of every script, unless some are escaped: a plain scalar would then read as another one."""
    text: str = yaml.safe_dump(document, sort_keys=False, allow_unicode=True)
    return text if visible(text) == text else str(yaml.safe_dump(document, sort_keys=False))


FORMS: Mapping[str, Callable[[Document], str]] = {
    "text": render,
    "json": lambda document: json.dumps(document, indent=2, ensure_ascii=False, default=str) + "\n",
    "yaml": _yaml,
}


class ExplainError(Exception):
    """It cannot be explained; the text is one sentence with the remedy."""


class ReadOnlyApi(Api):
    """Refuses every request that could change something, whatever the caller intends."""

    async def request(
        self,
        method: str,
        path: str,
        *,
        query: Mapping[str, str] | None = None,
        body: Mapping[str, Any] | None = None,
        content_type: str = "application/json",
    ) -> Object:
        """Send a GET request. Raises `ValueError` for any other."""
        if method != "GET" or body is not None:
            raise ValueError(f"explain only reads, and this is {method} {path}")
        return await super().request(method, path, query=query, content_type=content_type)


def parse_place(text: str) -> Key:
    """NAMESPACE/NAME. Raises `ExplainError` for anything else."""
    match = _PLACE.fullmatch(text)
    if match is None:
        raise ExplainError(
            f"{text!r} is not NAMESPACE/NAME: give the namespace and the name, as in team-a/support-tone"
        )
    return Key(match[1], match[3])


async def explain(
    place: Key,
    config: OperatorConfig,
    form: str,
    *,
    notes: Sequence[str] = (),
) -> None:
    """Print the explanation in the form text, json or yaml. Raises `ExplainError`."""
    try:
        configuration = await load_configuration()
        async with ApiClient(configuration) as client:
            document = await _read_and_describe(make_operator(config, ReadOnlyApi(client)), place, notes)
    except LoginError as error:
        raise ExplainError(str(error)) from error
    except UnreachableError as error:
        raise ExplainError(f"The API server does not answer ({error}): check the kubeconfig and the network") from error
    except ApiError as error:
        raise ExplainError(_sentence(error, place)) from error
    sys.stdout.write(visible(FORMS[form](document)))


async def _read_and_describe(operator: Operator, place: Key, notes: Sequence[str]) -> Document:
    api, cache, kueue, config = operator.api, operator.cache, operator.kueue, operator.config
    finetune = parse_finetune(await api.get(FINETUNES, place.namespace, place.name))
    query = {"labelSelector": f"{names.UID_LABEL}={finetune.uid}"}
    for resource, store in ((JOBS, cache.jobs), (PODS, cache.pods)):
        await list_into(store, api, resource, namespace=place.namespace, query=query, news=set())
    await kueue.discover(api)
    unread = await _list_workloads(operator, finetune.namespace) if kueue.served else []
    # What has lost its labels is read by name, as the operator does it.
    await read_live(
        cache, api, finetune, decide(finetune, _look(operator, finetune), config, api.clock.now()).job_names
    )
    events, missing = await _events(operator, finetune)
    observed = _look(operator, finetune, events)
    moment = api.clock.now()
    plan = decide(finetune, observed, config, moment)
    return describe(finetune, observed, plan, config=config, now=moment, notes=[*notes, *unread, *missing])


def _look(operator: Operator, finetune: FineTune, events: tuple[EventView, ...] = ()) -> Observed:
    """What the operator would see, with a pod's progress as the status has it."""
    return look(operator.cache, finetune, events=events, ask=lambda _: Answer(), kueue=operator.kueue.served)


async def _list_workloads(operator: Operator, namespace: str) -> list[str]:
    """Read Kueue's Workloads into the cache; a note where they may not be read."""
    store, kind = operator.cache.workloads, operator.kueue.workloads
    try:
        await list_into(store, operator.api, kind, namespace=namespace, query={}, news=set())
    except ApiError as error:
        if error.code != 403:
            raise
        return [f"Kueue's Workloads cannot be read, so what its queue says is missing: {error.message}"]
    return []


async def _events(operator: Operator, finetune: FineTune) -> tuple[tuple[EventView, ...], list[str]]:
    """The children's Events, and a note where they may not be read: they only explain."""
    key, cache = key_of(finetune), operator.cache
    uids = unexplained(cache.jobs.of(key, finetune.uid), cache.pods.of(key, finetune.uid))
    try:
        found = await read_events(operator.api, finetune.namespace, uids)
        return tuple(event for uid in uids for event in found[uid]), []
    except ApiError as error:
        if error.code != 403:
            raise
        return (), [f"The Events of the children cannot be read, so a reason may be missing: {error.message}"]


def _sentence(error: ApiError, place: Key) -> str:
    if error.code == 401:
        return f"The API server does not accept these credentials ({error.message}): log in again"
    if error.code == 403:
        return f"You lack a right ({error.message}): ask for get and list on lorafinetunes, jobs, pods and events"
    if error.code == 404 and f'"{place.name}"' in error.message:
        return (
            f"There is no LoRAFineTune {place.namespace}/{place.name}: kubectl get lft -n {place.namespace} lists them"
        )
    if error.code == 404:
        return (
            f"The cluster does not know {FINETUNES.plural}.{FINETUNES.group} in version {FINETUNES.version}: "
            "is this the right cluster, and is the chart installed?"
        )
    return f"The API server refused to answer: {error}"
