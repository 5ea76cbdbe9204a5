"""What processes write to stderr: passed on, and its end kept, for some end without any other word."""

import contextlib
import os
import threading

_KEPT, _PIECE = 256 * 1024, 4096
"""How many bytes of the end of the log are kept, in however many writes: what NCCL's watchdog says, with its stack
frames, of each of eight GPUs."""
_LOG_ENDS_S = 5.0


class PassedLog:
    """Passes on to stderr what is written to `write_end`, a descriptor for processes that are started, and keeps the
    end of it."""

    def __init__(self) -> None:
        read_end, self.write_end = os.pipe()
        self._to = os.dup(2)
        self._kept = bytearray()
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
        return self._kept.decode(errors="replace")


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


def pass_on(read_end: int, to: int, kept: bytearray) -> None:
    """Copy one descriptor to another until nobody writes any more, and keep the end of it.

    What nobody takes is dropped: a pipe that fills up would stop whoever writes into it.
    """
    with os.fdopen(read_end, "rb", buffering=0) as written:
        while piece := written.read(_PIECE):
            kept += piece
            del kept[:-_KEPT]
            with contextlib.suppress(OSError):
                while piece:
                    piece = piece[os.write(to, piece) :]
