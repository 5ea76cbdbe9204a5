"""`lora-operator explain NAMESPACE/NAME`: what `decide` sees of one LoRAFineTune, and the plan that it makes of that.

It sends nothing but GET requests, so whoever may read these objects may ask, and the operator's work is not touched.
"""

import dataclasses
import re
import sys
from collections.abc import Awaitable, Mapping, Sequence
from typing import Any, TypeVar

import yaml
from kubernetes.aio.client.api_client import ApiClient

from lora_operator.cluster.api import FINETUNES, JOBS, PODS, Api, ApiError, Object, Resource, UnreachableError
from lora_operator.cluster.child_events import read_events, unexplained
from lora_operator.cluster.login import LoginError, load_configuration
from lora_operator.cluster.observe import Live, observe, read_live
from lora_operator.cluster.store import Key, Store
from lora_operator.controller.operator import Operator, make_operator
from lora_operator.decide.decide import decide
from lora_operator.decide.run import Run
from lora_operator.model import names
from lora_operator.model.conditions import condition_in, is_untouched
from lora_operator.model.config import OperatorConfig
from lora_operator.model.objects import Answer, EventView, FineTune, Observed, Plan
from lora_operator.model.observe import parse_finetune
from lora_operator.model.plain import plain
from lora_operator.model.visible import visible

T = TypeVar("T")
Document = dict[str, Any]
UNTAKEN = "No operator has written a status yet: look whether one runs, and watches this namespace"
_PLACE = re.compile(r"([a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?)/([a-z0-9]([-.a-z0-9]{0,251}[a-z0-9])?)")


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


def describe(finetune: FineTune, observed: Observed, plan: Plan, notes: Sequence[str] = ()) -> Document:
    """State, what was observed, and the plan: of the status what the plan changes, of the pod that it asks the name."""
    complete = condition_in(plan.status, "Complete")
    changed = {key: value for key, value in plan.status.items() if finetune.status.get(key) != value}
    document = {
        "run": f"{finetune.namespace}/{finetune.name}",
        "uid": finetune.uid,
        "state": complete.get("reason"),
        "message": complete.get("message"),
        "notes": [*notes, *([UNTAKEN] if is_untouched(finetune.status) else [])],
        "observed": observed,
        "plan": dataclasses.replace(plan, status=changed, ask_progress=None),
        "asks_for_progress": plan.ask_progress and plan.ask_progress.name,
    }
    return {key: plain(value) for key, value in document.items() if value}


async def explain(place: Key, config: OperatorConfig, *, notes: Sequence[str] = ()) -> None:
    """Print the explanation as YAML. Raises `ExplainError`."""
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
    text = yaml.safe_dump(document, sort_keys=False, allow_unicode=True, width=120)
    if visible(text) != text:  # a plain scalar with an escape would read as another one
        text = yaml.safe_dump(document, sort_keys=False, width=120)
    sys.stdout.write(text)


async def _read_and_describe(operator: Operator, place: Key, notes: Sequence[str]) -> Document:
    api, stores, kueue, config = operator.api, operator.stores, operator.kueue, operator.config
    found = list(notes)
    if config.namespaces and place.namespace not in config.namespaces:
        found.append(f"The operator with this configuration does not watch namespace {place.namespace}")
    finetune = parse_finetune(await api.get(FINETUNES, place.namespace, place.name))
    mine = {"labelSelector": f"{names.UID_LABEL}={finetune.uid}"}
    for resource, store in ((JOBS, stores.jobs), (PODS, stores.pods)):
        await _list(store, api, resource, place.namespace, mine)
    await kueue.discover(api)
    if kueue.served:
        listed = _list(stores.workloads, api, kueue.workloads, place.namespace, {})
        await _unless_forbidden(listed, "Kueue's Workloads cannot be read, so what its queue says is missing", found)
    uids = unexplained(stores.jobs.of(place, finetune.uid), stores.pods.of(place, finetune.uid))
    read = read_events(api, place.namespace, uids)
    missing = "The Events of the children cannot be read, so a reason may be missing"
    told = await _unless_forbidden(read, missing, found) or {}
    events = tuple(event for uid in uids for event in told.get(uid, ()))
    plan, observed = _decide(operator, finetune, events)
    if plan.verify:
        plan, observed = _decide(operator, finetune, events, await read_live(stores, api, finetune, plan.verify))
    return describe(finetune, observed, plan, found)


async def _list(store: Store[Any], api: Api, resource: Resource, namespace: str, query: Mapping[str, str]) -> None:
    async for chunk in api.list_chunks(resource, namespace, query):
        for document in chunk.documents:
            store.put(document)


def _decide(
    operator: Operator, finetune: FineTune, events: tuple[EventView, ...], live: Live | None = None
) -> tuple[Plan, Observed]:
    """The plan, and what it rests on, with a pod's progress as the status has it."""
    observed = observe(
        operator.stores, finetune, events=events, ask=lambda _: Answer(), kueue=operator.kueue.served, live=live
    )
    run = Run(finetune=finetune, observed=observed, config=operator.config, now=operator.api.clock.now())
    return decide(run), observed


async def _unless_forbidden(read: Awaitable[T], missing: str, notes: list[str]) -> T | None:
    """What only explains; where it may not be read, a note says what is missing."""
    try:
        return await read
    except ApiError as error:
        if error.code != 403:
            raise
        notes.append(f"{missing}: {error.message}")
        return None


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
