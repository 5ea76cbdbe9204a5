"""What every verb reads of a LoRAFineTune. Nothing here raises: an odd resource reads as an empty one."""

import re
from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import Any

from lora_client.errors import ClientError
from lora_operator.model.conditions import condition_in, is_untouched, result_of, state_of
from lora_operator.model.wording import duration, parse_instant

Object = Mapping[str, Any]
TYPE = "lorafinetune.lora-operator.io"
_NAME = re.compile(
    r"(?i:(lft|lorafinetunes?)(\.(v1alpha1\.)?lora-operator\.io)?/)?(?P<name>[a-z0-9]([-.a-z0-9]{0,251}[a-z0-9])?)"
)
_WAITING = ("Suspended", "Accepted", "QuotaReserved", "PodsReady")
_TAKEN_WITHIN = timedelta(seconds=30)
"""By an operator that is there, however busy it and the clocks of two machines are."""


def run_name(typed: str) -> str:
    """The name, also out of `-o name`'s lorafinetune.lora-operator.io/NAME. Raises `ClientError` for what is none.

    An empty one, of a script's unset variable, would address all runs.
    """
    found = _NAME.fullmatch(typed)
    if found is None:
        rule = "must be the name of a run, of lower-case letters, digits and '-'"
        raise ClientError(f'NAME is "{typed}": {rule}; lora list lists them')
    return found["name"]


def part(document: object, *keys: str) -> dict[str, Any]:
    """The object at this path; an empty one where there is none."""
    for key in keys:
        document = document.get(key) if isinstance(document, Mapping) else None
    return dict(document) if isinstance(document, Mapping) else {}


def text(document: object, *keys: str) -> str:
    """The scalar at this path as text; empty where there is none."""
    value = part(document, *keys[:-1]).get(keys[-1])
    return "" if value is None or isinstance(value, Mapping | list) else str(value)


def name_of(resource: Object) -> str:
    """Its name."""
    return text(resource, "metadata", "name")


def namespace_of(resource: Object) -> str:
    """Its namespace."""
    return text(resource, "metadata", "namespace")


def state(resource: Object) -> str:
    """What `kubectl get` shows as STATE: the reason of the condition Complete."""
    return state_of(part(resource, "status")) or "Pending"


def message(resource: Object) -> str:
    """The sentence of the condition Complete, or of Failed for a run that failed."""
    kind = "Failed" if result(resource) == "failed" else "Complete"
    return str(condition_in(part(resource, "status"), kind).get("message") or "")


def result(resource: Object) -> str:
    """`succeeded`, `failed`, or empty for a run that has not ended."""
    return result_of(part(resource, "status"))


def advances(resource: Object) -> bool:
    """Whether its state is what its trainer reports: one that stalled has a phase, too."""
    return state(resource) == text(resource, "status", "progress", "phase")


def waiting_for(resource: Object, now: datetime) -> str:
    """Why a run does not advance, as reason and sentence; empty for one that does or has ended."""
    status = part(resource, "status")
    if result_of(status) or advances(resource):
        return ""
    created = parse_instant(text(resource, "metadata", "creationTimestamp"))
    if is_untouched(status) and created and now - created > _TAKEN_WITHIN:
        return (
            f"{state(resource)}: No operator has taken this run: none is running, or none watches namespace "
            f"{namespace_of(resource)}; ask the cluster's administrator"
        )
    for kind in _WAITING:
        found = condition_in(status, kind)
        if found.get("status") == ("True" if kind == "Suspended" else "False") and found.get("message"):
            return f"{found.get('reason', kind)}: {found['message']}"
    sentence = message(resource)
    return f"{state(resource)}: {sentence}" if sentence else ""


def age(resource: Object, now: datetime) -> str:
    """Since its creation: 45s, 3m20s."""
    return since(text(resource, "metadata", "creationTimestamp"), now)


def since(instant: str, now: datetime) -> str:
    """How long ago; empty for no time."""
    moment = parse_instant(instant)
    return duration(max(0, int((now - moment).total_seconds()))) if moment else ""
