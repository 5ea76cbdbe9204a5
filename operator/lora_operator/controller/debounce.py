"""How often statuses are written: verdicts and counts at once, all else after a moment in which more may come.

What waits is not lost with the process: a status follows from what is observed, so the next start writes it.
"""

from collections.abc import Callable, Mapping
from typing import Any

from lora_operator.cluster.store import Key
from lora_operator.decide.states import Group, group_of
from lora_operator.model.conditions import Type, result_of
from lora_operator.model.config import OperatorConfig
from lora_operator.model.wording import maps_of

MOST_PROGRESS_PER_S = 18
"""Of the 20 statuses a second that a thousand trainings may write; the rest is for what else befalls them."""
_COUNTS = ("attempt", "retries", "runSeconds", "progress")
_TICK_S = 0.001


def progress_interval_s(config: OperatorConfig, running: int) -> float:
    """Seconds between two questions to a pod where so many train, each answer being a status that is written.

    It stays well below the time after which a training without news is taken for one that stalls.
    """
    return max(config.progress_interval_s, min(running / MOST_PROGRESS_PER_S, config.stall_timeout_s / 4))


def is_urgent(before: Mapping[str, Any], after: Mapping[str, Any]) -> bool:
    """Whether a status says how the run ended, counts more than the one before, or tells of a refusal.

    Where a pod has failed for good, its Job says so within a moment, and that ends the run. Until the first attempt has
    a status, its Job tells as much. What was refused is tried again by each turn that has not told it.
    """
    if result_of(after) or (_is_refused(after) and not _is_refused(before)):
        return True
    if "attempt" not in before or group_of(after) is Group.FAILING:
        return False
    return any(before.get(name) != after.get(name) for name in _COUNTS)


def _is_refused(status: Mapping[str, Any]) -> bool:
    conditions = maps_of(status.get("conditions"))
    return any(one.get("type") == Type.ACCEPTED and one.get("status") == "False" for one in conditions)


class Debounce:
    """Since when each run's status is wanted that is not written yet."""

    def __init__(self, clock: Callable[[], float], delay_s: float) -> None:
        self._clock = clock
        self._delay_s = delay_s
        self._wanted_s: dict[Key, float] = {}

    def wait_s(self, key: Key, before: Mapping[str, Any], after: Mapping[str, Any]) -> float:
        """Seconds that this status may yet wait, from the moment on at which one was first wanted; 0 for none."""
        if is_urgent(before, after):
            return 0.0
        now_s = self._clock()
        wait_s = self._wanted_s.setdefault(key, now_s) + self._delay_s - now_s
        return wait_s if wait_s > _TICK_S else 0.0  # by a rounding error a clock does not move on

    def forget(self, key: Key) -> None:
        """The status is as it is wanted, or the run is gone."""
        self._wanted_s.pop(key, None)
