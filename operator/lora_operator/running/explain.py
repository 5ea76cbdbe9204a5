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

from lora_operator.cluster.api import FINETUNES, JOBS, PODS, Api, ApiError, Object, UnreachableError
from lora_operator.cluster.cache import Key
from lora_operator.cluster.child_events import read_events, unexplained
from lora_operator.cluster.listing import list_into
from lora_operator.cluster.login import LoginError, load_configuration
from lora_operator.cluster.look import look, read_live
from lora_operator.decision.decide import decide
from lora_operator.running.operator import Operator, make_operator
from lora_operator.views import names
from lora_operator.views.conditions import condition_in, is_untouched
from lora_operator.views.config import OperatorConfig
from lora_operator.views.model import Answer, EventView, FineTune, Observed, Plan
from lora_operator.views.observe import parse_finetune
from lora_operator.views.plain import plain
from lora_operator.views.visible import visible

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
    api, cache, kueue, config = operator.api, operator.cache, operator.kueue, operator.config
    found = list(notes)
    if config.namespaces and place.namespace not in config.namespaces:
        found.append(f"The operator with this configuration does not watch namespace {place.namespace}")
    finetune = parse_finetune(await api.get(FINETUNES, place.namespace, place.name))
    mine = {"labelSelector": f"{names.UID_LABEL}={finetune.uid}"}
    for resource, store in ((JOBS, cache.jobs), (PODS, cache.pods)):
        await list_into(store, api, resource, namespace=place.namespace, query=mine, news=set())
    await kueue.discover(api)
    if kueue.served:
        listed = list_into(cache.workloads, api, kueue.workloads, namespace=place.namespace, query={}, news=set())
        await _unless_forbidden(listed, "Kueue's Workloads cannot be read, so what its queue says is missing", found)
    # What has lost its labels is read by name, as the operator does it.
    await read_live(
        cache, api, finetune, decide(finetune, _look(operator, finetune), config, api.clock.now()).job_names
    )
    uids = unexplained(cache.jobs.of(place, finetune.uid), cache.pods.of(place, finetune.uid))
    read = read_events(api, place.namespace, uids)
    missing = "The Events of the children cannot be read, so a reason may be missing"
    events = await _unless_forbidden(read, missing, found)
    observed = _look(operator, finetune, events or ())
    return describe(finetune, observed, decide(finetune, observed, config, api.clock.now()), found)


def _look(operator: Operator, finetune: FineTune, events: tuple[EventView, ...] = ()) -> Observed:
    """What the operator would see, with a pod's progress as the status has it."""
    return look(operator.cache, finetune, events=events, ask=lambda _: Answer(), kueue=operator.kueue.served)


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
