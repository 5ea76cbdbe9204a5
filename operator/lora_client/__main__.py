"""The commands `lora` and `kubectl lora`: whatever goes wrong ends in a sentence and a status, never in a traceback."""

import io
import os
import signal
import sys
from collections.abc import Sequence
from contextlib import suppress
from types import FrameType

from lora_client.errors import FAILED, INTERRUPTED, ClientError
from lora_client.typed import completed

# Windows has no SIGHUP.
_ENDS = [getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name)]


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; the process's exit status."""
    _read_and_write_utf8()
    before = {number: signal.signal(number, _end) for number in _ENDS}
    try:
        from lora_client.commands import run_command  # noqa: PLC0415 - Ctrl-C may come while it is imported

        code = run_command(sys.argv[1:] if arguments is None else arguments)
        sys.stdout.flush()
    except ClientError as error:
        for line in completed(str(error)).splitlines():
            sys.stderr.write(f"lora: {line}\n")
        return FAILED
    except KeyboardInterrupt:
        sys.stderr.write("\n")
        return INTERRUPTED
    except BrokenPipeError:  # the reader, such as head, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except ModuleNotFoundError as error:
        sys.stderr.write(
            f"lora: The Python package {error.name} is missing: pip install '.[client]', in the project's folder, "
            "brings what the client needs\n"
        )
        return FAILED
    except Exception as error:
        text = " ".join(str(error).split())[:300]
        sys.stderr.write(
            f"lora: This is a mistake of the client itself ({type(error).__name__}: {text}): report it to the project\n"
        )
        return FAILED
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    return code


def _read_and_write_utf8() -> None:
    """Through pipes and files, for which Windows has its ANSI code page; a terminal keeps what it shows."""
    for stream in (sys.stdin, sys.stdout, sys.stderr):
        # A program without a console has None, and a test what it likes.
        if isinstance(stream, io.TextIOWrapper) and not stream.isatty():
            with suppress(io.UnsupportedOperation):  # who calls main() has read some of it
                stream.reconfigure(encoding="utf-8", errors=stream.errors)


def _end(number: int, _frame: FrameType | None) -> None:
    # So that what a command has begun is cleaned up: a pod, a picture.
    raise SystemExit(128 + number)


if __name__ == "__main__":
    sys.exit(main())
