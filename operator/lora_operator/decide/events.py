"""Events: one for every change of the state that `kubectl get` shows, so that `kubectl describe` has the story."""

from collections.abc import Mapping
from typing import Any

from lora_operator.decide.states import is_good_news
from lora_operator.model.conditions import Type, condition_in
from lora_operator.model.objects import EventRecord
from lora_operator.model.stored import Stored
from lora_trainer.spec.reasons import Reason
from lora_trainer.spec.summary import clip

EVENT_LENGTH = 1000


def events_of(stored: Stored, status: Mapping[str, Any]) -> tuple[EventRecord, ...]:
    """The Events that the step from the present status to `status` is worth."""
    records: list[EventRecord] = []
    accepted = condition_in(status, Type.ACCEPTED)
    if accepted.get("status") == "True" and stored.holds(Type.ACCEPTED) is not True:
        records.append(_record("Normal", accepted))
    state = condition_in(status, Type.COMPLETE)
    before = stored.state or Reason.PENDING.value
    if state and state["reason"] != before:
        records.append(_record("Normal" if is_good_news(state["reason"]) else "Warning", state))
    return tuple(records)


def recreated(name: str, attempt: int, lost: str) -> EventRecord:
    """Job `lost` was deleted, and Job `name` takes its place."""
    message = f"Job {lost or 'of the last attempt'} was deleted before it was done: Job {name} is attempt {attempt}"
    return EventRecord(type="Warning", reason=Reason.JOB_RECREATED.value, message=clip(message, EVENT_LENGTH))


def _record(kind: str, condition: Mapping[str, Any]) -> EventRecord:
    return EventRecord(type=kind, reason=condition["reason"], message=clip(condition["message"], EVENT_LENGTH))
