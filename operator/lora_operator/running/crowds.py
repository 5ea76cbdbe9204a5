"""Runs with more pods or Jobs than are looked at: reported once, until they have fewer."""

import logging

from lora_operator.cluster.cache import Key
from lora_operator.views.model import Observed

logger = logging.getLogger(__name__)


class Crowds:
    """Remembers of which runs this was reported."""

    def __init__(self) -> None:
        self._reported: set[Key] = set()

    def note(self, key: Key, observed: Observed) -> None:
        """What is looked at of a run, and how much more there is by its labels, Jobs or controller references."""
        jobs, pods = len(observed.jobs), len(observed.pods)
        if not observed.jobs_left_out and not observed.pods_left_out:
            self.forget(key)
        elif key not in self._reported:
            self._reported.add(key)
            logger.warning(
                "%d Jobs and %d pods are this run's by label, Job or controller reference, and %d and %d of them are "
                "looked at, first those that the run needs and the newest: find out who makes the others",
                jobs + observed.jobs_left_out,
                pods + observed.pods_left_out,
                jobs,
                pods,
            )

    def forget(self, key: Key) -> None:
        """The run is gone, or has no more than are looked at."""
        self._reported.discard(key)
