"""A training that stands still: seen by the supervisor, which has a clock and reports, and needs no help of it.

Every step, micro-batch of a long step, evaluated batch and save is a report. A hang in a driver, in a collective of
several GPUs or in a file system gives none.
"""

import statistics
import threading
import time
from collections import deque
from collections.abc import Callable

from lora_trainer.distributed.reports import Report
from lora_trainer.spec.progress import Phase

WATCHED = (Phase.TRAINING, Phase.EVALUATING, Phase.CHECKPOINTING)
"""Where reports come regularly; to load a large model takes as long as it takes."""

MEDIANS = 20
"""A training whose steps are long may stand still for so many of them."""


class StallWatch:
    """Calls `on_stall` once, from a thread of its own, with the seconds that passed without a report: more than
    `timeout_s`, and more than `MEDIANS` times the median step."""

    def __init__(
        self, timeout_s: float, on_stall: Callable[[float], None], clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._timeout_s = timeout_s
        self._on_stall = on_stall
        self._clock = clock
        self._steps_s: deque[float] = deque(maxlen=101)
        self._watched = False
        self._heard_at_s = clock()
        self._ended = threading.Event()

    def hear(self, report: Report) -> None:
        """Take a report of the training."""
        self._heard_at_s = self._clock()
        if report.progress is not None:
            self._watched = report.progress.phase in WATCHED
        if report.counters is not None and report.counters.step_seconds is not None:
            self._steps_s.append(report.counters.step_seconds)

    @property
    def watches(self) -> bool:
        """Whether something should report now."""
        return self._watched

    @property
    def limit_s(self) -> float:
        """The longest silence that is no stall."""
        return max(self._timeout_s, MEDIANS * statistics.median(self._steps_s) if self._steps_s else 0.0)

    def silence_s(self) -> float:
        """How long nothing was heard of a training that should report something; 0 elsewhere."""
        return self._clock() - self._heard_at_s if self._watched else 0.0

    @property
    def healthy(self) -> bool:
        """Whether the supervisor itself still does its work: it ends a stalled training long before twice the limit."""
        return self.silence_s() <= 2 * self.limit_s

    def check(self) -> bool:
        """Whether there is a stall; reports it."""
        silence = self.silence_s()
        if silence <= self.limit_s:
            return False
        self._on_stall(silence)
        return True

    def start(self) -> None:
        """Watch until `stop`."""
        self._heard_at_s, self._watched = self._clock(), False
        self._ended.clear()
        threading.Thread(target=self._watch, name="stall", daemon=True).start()

    def stop(self) -> None:
        """Watch no longer."""
        self._watched = False
        self._ended.set()

    def _watch(self) -> None:
        while not self._ended.wait(min(1.0, self._timeout_s / 10)):
            if self.check():
                return
