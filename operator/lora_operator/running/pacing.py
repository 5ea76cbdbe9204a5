"""How often statuses are written: the more trainings report, the seldomer each, and what is not urgent waits a while.

What waits is not lost with the process: a status follows from what is observed, so the next start writes it.
"""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from lora_operator.cluster.cache import Key
from lora_operator.decision.states import Group, group_of
from lora_operator.views.conditions import state_of
from lora_operator.views.config import OperatorConfig
from lora_operator.views.wording import maps_of
from lora_trainer.contract.reasons import Reason

MOST_PROGRESS_PER_S = 18
"""Of the 20 statuses a second that a thousand trainings may write; the rest is for what else befalls them."""
SCHEDULER_S = 1.0
_TICK_S = 0.001
JOB_S = 3.0


def shortest_interval_s(config: OperatorConfig, running: int) -> float:
    """Seconds between two questions to a pod where so many train, each answer being a status that is written.

    It stays well below the time after which a training without news is taken for one that stalls.
    """
    return max(config.progress_interval_s, min(running / MOST_PROGRESS_PER_S, config.stall_timeout_s / 4))


def paced(config: OperatorConfig, *, running: int) -> OperatorConfig:
    """The settings where so many train."""
    interval_s = shortest_interval_s(config, running)
    return config if interval_s == config.progress_interval_s else replace(config, progress_interval_s=interval_s)


def delay_s(
    before: Mapping[str, Any], after: Mapping[str, Any], *, wanted_for_s: float, placed: bool, longest_s: float
) -> float:
    """Seconds that a status may yet wait for what would change it again; 0 for one that is to be written now.

    The first one waits for the scheduler or the queue, and one that says that the run fails for its Job, which ends it:
    all of them speak within a moment. Others wait where only sentences differ; what counts pods and seconds, or says
    how the run ended, never does. `placed`: scheduler or queue have spoken. None waits more than `longest_s`.
    """
    if "jobName" not in before and state_of(after) in (Reason.PENDING, Reason.QUEUED):
        return 0.0 if placed else _rest_s(min(SCHEDULER_S, longest_s), wanted_for_s)
    if group_of(after) is Group.FAILING and group_of(before) is not Group.FAILING:
        return _rest_s(min(JOB_S, longest_s), wanted_for_s)
    return _rest_s(longest_s, wanted_for_s) if _facts(before) == _facts(after) else 0.0


def _rest_s(longest_s: float, waited_s: float) -> float:
    """What is left of a wait; none where that may be a rounding error, by which a clock does not move on."""
    rest_s = longest_s - waited_s
    return rest_s if rest_s > _TICK_S else 0.0


def _facts(status: Mapping[str, Any]) -> Mapping[str, Any]:
    """The status without its sentences."""
    listed = maps_of(status.get("conditions"))
    silent = [{key: value for key, value in condition.items() if key != "message"} for condition in listed]
    return {**status, "conditions": silent, "advice": None}


class Pacing:
    """Since when each run's status is wanted that is not written yet."""

    def __init__(self, clock: Callable[[], float], longest_s: float) -> None:
        self._clock = clock
        self._longest_s = longest_s
        self._wanted_s: dict[Key, float] = {}

    def delay_s(self, key: Key, before: Mapping[str, Any], after: Mapping[str, Any], *, placed: bool) -> float:
        """Seconds that this status may yet wait, from the moment on at which one was first wanted."""
        now_s = self._clock()
        waited_s = now_s - self._wanted_s.setdefault(key, now_s)
        return delay_s(before, after, wanted_for_s=waited_s, placed=placed, longest_s=self._longest_s)

    def forget(self, key: Key) -> None:
        """The status is as it is wanted, or the run is gone."""
        self._wanted_s.pop(key, None)
