"""SIGTERM: an end at once where nothing is at stake, and in the training one that loses no step."""

import contextlib
import logging
from collections.abc import Iterator
from types import FrameType

from lora_trainer.spec.exit_codes import ExitCode

log = logging.getLogger(__name__)


class Interrupted(Exception):  # noqa: N818 - no error: the part of the training at hand is given up
    """Somebody asked the run to stop while a micro-batch or an evaluation was at work."""


class Stop:
    """The request to stop. Its first signal counts, all others change nothing."""

    def __init__(self) -> None:
        self.requested = False
        self._deferring = False

    def handle(self, _signal: int, _frame: FrameType | None) -> None:
        """The signal's handler: raises `SystemExit`, unless deferred."""
        if self.requested:
            return
        self.requested = True
        if not self._deferring:
            # SystemExit and not a TrainerError: libraries that catch Exception must not swallow it.
            raise SystemExit(ExitCode.TERMINATED)

    @contextlib.contextmanager
    def deferred(self) -> Iterator[None]:
        """Within, a signal only sets `requested`; what is at work there looks at it and ends by itself.

        Raises `SystemExit` at its end where a signal came that nobody looked at.
        """
        self._deferring = True
        try:
            yield
        finally:
            self._deferring = False
        if self.requested:
            raise SystemExit(ExitCode.TERMINATED)

    def interrupt(self) -> None:
        """Raises `Interrupted` where a stop was requested."""
        if self.requested:
            raise Interrupted
