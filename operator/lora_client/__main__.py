"""The commands `lora` and `kubectl lora`: whatever goes wrong ends in a sentence and a status, never in a traceback."""

import errno
import io
import os
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from types import FrameType

from lora_client.errors import FAILED, INTERRUPTED, ClientError
from lora_client.typed import completed
from lora_operator.model.visible import visible

_READ_ENOUGH = (errno.EPIPE, *([errno.EINVAL] if os.name == "nt" else []))
"""The reader, such as head, has closed its end."""
_NOT_WRITTEN = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO)
# Windows has no SIGHUP.
_ENDS = [getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name)]


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; the process's exit status."""
    with _open_streams():
        _read_and_write_utf8()
        before = {number: signal.signal(number, _end) for number in _ENDS}
        try:
            return _run(sys.argv[1:] if arguments is None else arguments)
        except KeyboardInterrupt:
            sys.stderr.write("\n")
            return INTERRUPTED
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


def _run(arguments: Sequence[str]) -> int:
    code = FAILED
    try:
        from lora_client.commands import run_command  # noqa: PLC0415 - Ctrl-C may come while it is imported

        code = run_command(arguments)
        sys.stdout.flush()
    except ClientError as error:
        for line in completed(str(error)).splitlines():
            sys.stderr.write(f"lora: {visible(line)}\n")
    except OSError as error:
        code = _unwritten(error) if error.errno in (*_READ_ENOUGH, *_NOT_WRITTEN) else _bug(error)
    except ModuleNotFoundError as error:
        sys.stderr.write(
            f"lora: The Python package {error.name} is missing: pip install '.[client]', in the project's folder, "
            "brings what the client needs\n"
        )
    except Exception as error:
        code = _bug(error)
    return code


def _unwritten(error: OSError) -> int:
    """What standard output did not take: of a reader such as head, which has seen enough, nothing is said."""
    # What is left in the buffer would fail again at the process's end.
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    if error.errno in _READ_ENOUGH:
        return 0
    sys.stderr.write(f"lora: Standard output cannot be written ({error.strerror}): name another place for it\n")
    return FAILED


def _bug(error: Exception) -> int:
    text = visible(" ".join(str(error).split())[:300])
    sys.stderr.write(f"lora: This is a bug in lora ({type(error).__name__}: {text}): report it to the project\n")
    return FAILED


@contextmanager
def _open_streams() -> Iterator[None]:
    """In the place of those that a shell has closed, or that a program without a console lacks, the null device."""
    with ExitStack() as opened:
        for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
            if getattr(sys, name) is None:
                opened.callback(setattr, sys, name, None)
                setattr(sys, name, opened.enter_context(Path(os.devnull).open(mode, encoding="utf-8")))
        yield


def _read_and_write_utf8() -> None:
    """Through pipes and files, for which Windows has its ANSI code page; a terminal keeps its encoding, in which
    a question mark stands for what it lacks."""
    for stream in (sys.stdin, sys.stdout, sys.stderr):
        # A test has what it likes.
        if not isinstance(stream, io.TextIOWrapper):
            continue
        if not stream.isatty():
            with suppress(io.UnsupportedOperation):  # who calls main() has read some of it
                stream.reconfigure(encoding="utf-8", errors=stream.errors)
        elif stream is sys.stdout:
            stream.reconfigure(errors="replace")


def _end(number: int, _frame: FrameType | None) -> None:
    # So that what a command has begun is cleaned up: a pod, a picture.
    raise SystemExit(128 + number)


if __name__ == "__main__":
    sys.exit(main())
