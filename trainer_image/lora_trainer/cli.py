"""`lora-trainer`: the entry of the command line. It imports next to nothing, so that Ctrl-C never shows a traceback."""

import os
import signal
import sys
from collections.abc import Sequence

INTERRUPTED = 143
"""The exit status of a process that was asked to stop: `ExitCode.TERMINATED`, which is not imported for it."""


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; the process's exit status."""
    try:
        from lora_trainer.commands import run_command  # noqa: PLC0415 - Ctrl-C may come while it is imported

        try:
            return run_command(arguments)
        finally:
            _flush()
    except KeyboardInterrupt:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        print("Interrupted before it was done.", file=sys.stderr)
        return INTERRUPTED


def _flush() -> None:
    """Write what was printed: here, for Python's own end has a status of its own where the reader is gone."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except BrokenPipeError:  # the reader, such as head, has seen enough
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


if __name__ == "__main__":
    sys.exit(main())
