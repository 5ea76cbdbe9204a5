"""That a process ends with the one that started it."""

import ctypes
import signal

_PR_SET_PDEATHSIG = 1  # of prctl(2)


def end_with_parent() -> None:
    """Let the kernel kill this process when its parent ends: nobody else would end what a killed supervisor or torchrun
    started, and what it went on to write would meet the next attempt. Linux alone can: elsewhere nothing happens."""
    library = ctypes.CDLL(None)
    if hasattr(library, "prctl"):
        library.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
