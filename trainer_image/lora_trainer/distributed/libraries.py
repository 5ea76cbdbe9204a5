"""How libraries are imported that take seconds."""

import atexit
import contextlib
import gc
from collections.abc import Iterator

from lora_trainer.distributed.activity import begun


@contextlib.contextmanager
def importing_libraries() -> Iterator[None]:
    """Without Python's garbage collector: what libraries define stays, and it would look through all of that again and
    again, for a third of the time that their import takes. It leaves it alone until the process ends."""
    begun("loading libraries")
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        # Else a library in C++ takes what is left then for leaks, and prints them.
        atexit.register(gc.unfreeze)
        gc.enable()
