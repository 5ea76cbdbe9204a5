"""A second operator at work on the same runs, without leader election: noticed by its writes, and never raced with."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from lora_operator.cluster.cache import Key
from lora_operator.cluster.carry_out import TryAgainError
from lora_operator.views.conditions import Type, condition_in, result_of
from lora_operator.views.model import FineTune

LONGEST_PAUSE_S = 60.0


@dataclass(frozen=True, slots=True, kw_only=True)
class _Written:
    """The status that this process wrote last of a run, and how often in a row somebody else had replaced it."""

    uid: str
    status: Mapping[str, Any]
    at_s: float
    replaced: int = 0


class Contention:
    """Remembers the statuses that this process wrote, of runs that go on."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._written: dict[Key, _Written] = {}

    def is_disputed(self, key: Key, finetune: FineTune, status: Mapping[str, Any]) -> bool:
        """Whether somebody else put another status in the place of ours, and `status` would replace that in turn.

        One of the two is behind the cluster. Who only wrote again would be answered by the other, without an end. So
        each answer takes twice as long as the one before: raises `TryAgainError` where it is too early.
        """
        written = self._written.get(key)
        if written is None or status == finetune.status or not _is_replaced(written, finetune):
            return False
        pause_s = min(2.0 ** min(written.replaced, 10), LONGEST_PAUSE_S) if written.replaced else 0.0
        if self._clock() - written.at_s < pause_s:
            raise TryAgainError("another client writes another status of this run: is there a second operator?")
        return True

    def wrote(self, key: Key, before: FineTune, stored: FineTune | None) -> None:
        """A status was written in the place of the one `before`; None where the run is gone."""
        if stored is None or result_of(stored.status):
            self.forget(key)
            return
        written = self._written.get(key)
        replaced = written.replaced + 1 if written is not None and _is_replaced(written, before) else 0
        self._written[key] = _Written(uid=stored.uid, status=stored.status, at_s=self._clock(), replaced=replaced)

    def forget(self, key: Key) -> None:
        """The run is over, or gone."""
        self._written.pop(key, None)


def _is_replaced(written: _Written, finetune: FineTune) -> bool:
    return written.uid == finetune.uid and _our_part(written.status) != _our_part(finetune.status)


def _our_part(status: Mapping[str, Any]) -> Mapping[str, Any]:
    """Without the conditions that other controllers add, which they may change as often as they like."""
    ours = [entry for kind in Type if (entry := condition_in(status, kind.value))]
    return {**status, "conditions": ours}
