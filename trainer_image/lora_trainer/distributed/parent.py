"""What a process has of the one that started it: that it ends with it, and where it meets the others."""

import ctypes
import signal

STORE = "LORA_PROCESS_STORE"
"""Names the file by which the processes of one node find each other; those of several meet at node 0's port."""
_PR_SET_PDEATHSIG = 1  # of prctl(2)


def end_with_parent() -> None:
    """Let the kernel kill this process when its parent ends: nobody else would end what a killed supervisor or torchrun
    started, and what it went on to write would meet the next attempt. Linux alone can: elsewhere nothing happens."""
    library = ctypes.CDLL(None)
    if hasattr(library, "prctl"):
        library.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
