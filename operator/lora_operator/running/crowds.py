"""Runs with more pods than are looked at: reported once, until they have fewer."""

import logging

from lora_operator.cluster.cache import Key

logger = logging.getLogger(__name__)


class Crowds:
    """Remembers of which runs this was reported."""

    def __init__(self) -> None:
        self._reported: set[Key] = set()

    def note(self, key: Key, *, looked_at: int, left_out: int) -> None:
        """So many pods have a run's labels or are its Jobs', and so many of them are not looked at."""
        if not left_out:
            self.forget(key)
        elif key not in self._reported:
            self._reported.add(key)
            logger.warning(
                "%d pods are this run's by label or Job, and %d of them are looked at, first those of its Jobs and the "
                "newest: find out who makes pods with the run's labels",
                looked_at + left_out,
                looked_at,
            )

    def forget(self, key: Key) -> None:
        """The run is gone, or has no more pods than are looked at."""
        self._reported.discard(key)
