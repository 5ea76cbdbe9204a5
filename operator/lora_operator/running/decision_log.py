"""One line in the log for each decision that had an effect: what was decided, why, and what was written for it."""

import logging
from collections.abc import Mapping
from types import TracebackType
from typing import Any, Self

from lora_operator.running import logs
from lora_operator.views.conditions import condition_in, result_of, state_of
from lora_operator.views.model import FineTune, Plan
from lora_operator.views.wording import maps_of

logger = logging.getLogger(__name__)

_CHANGES_WITH_PROGRESS = ("progress", "resolved", "conditions")


class DecisionLine:
    """Collects what is written for one plan, and logs it in one line, also where a request cut the plan short.

    At INFO; at DEBUG for a plan that wrote nothing, or nothing but new progress, of which a thousand runs would fill
    the log and nobody reads it there.
    """

    def __init__(self, finetune: FineTune, plan: Plan) -> None:
        self._finetune = finetune
        self._plan = plan
        self._wrote: list[str] = []
        self._stated = False
        self.next_look_s: float | None = None
        """When the run is looked at again, set by whoever carries the plan out."""

    def wrote(self, verb: str, kind: str, name: str) -> None:
        """A child was created, adopted, patched or deleted."""
        self._wrote.append(f"{verb} {kind}/{name}")

    def wrote_status(self) -> None:
        """The plan's status is stored."""
        self._wrote.append("status")
        self._stated = True

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        level = logging.INFO if self._wrote and not self._is_progress() else logging.DEBUG
        if not logger.isEnabledFor(level):
            return
        before, status = self._finetune.status, self._plan.status
        reason, was = state_of(status), state_of(before)
        fields = logs.about(
            (self._finetune.namespace, self._finetune.name),
            self._finetune.uid,
            type="decision",
            attempt=status.get("attempt"),
            reason=reason,
            previous=was if self._stated and was != reason else "",
            result=result_of(status) if self._stated and not result_of(before) else "",
            wrote=self._wrote,
            nextLookSeconds=None if self.next_look_s is None else round(self.next_look_s, 1),
        )
        logger.log(level, "%s: %s", reason or "No state yet", self._sentence(), extra=fields)

    def _sentence(self) -> str:
        if result_of(self._finetune.status) and any(what.startswith(("deleted", "patched")) for what in self._wrote):
            return "the run has ended, and what is left of its attempt is cleaned up"
        return str(condition_in(self._plan.status, "Complete").get("message", ""))

    def _is_progress(self) -> bool:
        """Whether all that was written is a status in which nothing has changed but how far the run is."""
        before, status = self._finetune.status, self._plan.status
        return (
            self._wrote == ["status"]
            and before.get("progress") != status.get("progress")
            and _rest(before) == _rest(status)
        )


def _rest(status: Mapping[str, Any]) -> tuple[object, ...]:
    conditions = maps_of(status.get("conditions"))
    known = sorted((str(c.get("type")), str(c.get("status")), str(c.get("reason"))) for c in conditions)
    return known, {key: value for key, value in status.items() if key not in _CHANGES_WITH_PROGRESS}
