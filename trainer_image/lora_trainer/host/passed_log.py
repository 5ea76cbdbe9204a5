"""What processes write to stderr: passed on, and its end kept, for some end without any other word."""

import contextlib
import os
import threading
from collections import deque

_KEPT_PIECES, _PIECE = 64, 4096
"""How much of the end of the log is kept: what NCCL's watchdog says, with its stack frames, of each of eight GPUs."""
_LOG_ENDS_S = 5.0


class PassedLog:
    """Passes on to stderr what is written to `write_end`, a descriptor for processes that are started, and keeps the
    end of it."""

    def __init__(self) -> None:
        read_end, self.write_end = os.pipe()
        self._to = os.dup(2)
        self._kept: deque[bytes] = deque(maxlen=_KEPT_PIECES)
        self._ended = False
        self._passing = threading.Thread(target=pass_on, args=(read_end, self._to, self._kept), name="log", daemon=True)
        self._passing.start()

    def end(self) -> str:
        """The end of the log, once those who write it are gone."""
        if not self._ended:
            self._ended = True
            os.close(self.write_end)
            self._passing.join(_LOG_ENDS_S)
            # Its end may still be on its way where a process that outlives the stage holds stderr.
            if not self._passing.is_alive():
                os.close(self._to)
        return b"".join(self._kept).decode(errors="replace")


class OwnLog(PassedLog):
    """The same of all that this process and its children write to stderr."""

    def __init__(self) -> None:
        super().__init__()
        os.dup2(self.write_end, 2)

    def end(self) -> str:
        """See `PassedLog`; from now on stderr is what it was."""
        if not self._ended:
            os.dup2(self._to, 2)
        return super().end()


def pass_on(read_end: int, to: int, kept: deque[bytes]) -> None:
    """Copy one descriptor to another until nobody writes any more, and keep the last pieces.

    What nobody takes is dropped: a pipe that fills up would stop whoever writes into it.
    """
    with os.fdopen(read_end, "rb", buffering=0) as written:
        while piece := written.read(_PIECE):
            kept.append(piece)
            with contextlib.suppress(OSError):
                while piece:
                    piece = piece[os.write(to, piece) :]
