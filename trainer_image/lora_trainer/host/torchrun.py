"""torchrun, with its own stack traces kept from the user, and the cause of a process that could not report it itself.

Started as `python -m lora_trainer.host.torchrun [OPTION]... --module lora_trainer.stage ARGUMENT... --report FD`, where
FD is the descriptor of the supervisor's pipe. torchrun closes all descriptors in the processes that it starts, so
these open the pipe by its path.
"""

import contextlib
import logging
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from torch.distributed.elastic.multiprocessing.api import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.run import get_args_parser, run

from lora_trainer.distributed import logs
from lora_trainer.distributed.parent import STORE
from lora_trainer.distributed.reports import Failure, Report, Reporter, failure_of_status
from lora_trainer.errors import PeerFailedError, explain, explain_abort, explain_exit
from lora_trainer.host.passed_log import OwnLog
from lora_trainer.host.rendezvous import use_rendezvous
from lora_trainer.spec.exit_codes import ExitCode
from lora_trainer.storage.temporary import temporary_folder

_ROUND_OVER = Failure.of(PeerFailedError("its node is gone or began again", accounted=True))
_STACK_S = 0.2
"""Time for a process to write its stack before the next one does."""


def leave_out_a_timer_s_end(unraisable: "sys.UnraisableHookArgs") -> None:
    """For `sys.unraisablehook`: torchrun's rendezvous has a timer whose thread may be the last that knows it, and then
    fails to wait for itself. Nothing is wrong then, and nobody is to read a stack trace."""
    if "cannot join current thread" not in str(unraisable.exc_value):
        sys.__unraisablehook__(unraisable)


def pass_to_children(number: int, _frame: object) -> None:
    """For `signal.signal`: the processes that this one started get the signal in its place."""
    for process in (path for path in Path("/proc").iterdir() if path.name.isdigit()):
        # One that ends meanwhile needs no signal.
        with contextlib.suppress(OSError):
            stat = (process / "stat").read_text(encoding="utf-8", errors="replace")
            _state, parent, *_ = stat.rpartition(")")[2].split()
            if int(parent) == os.getpid():
                os.kill(int(process.name), number)
                # All write to one log, piece by piece.
                time.sleep(_STACK_S)


def main(arguments: Sequence[str]) -> int:
    """Run torchrun to its end; the exit status of the process that failed first, or 0."""
    *options, descriptor = arguments
    reporter = Reporter(int(descriptor))
    # It repeats with stack traces what the processes report in one sentence.
    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL + 1)
    sys.unraisablehook = leave_out_a_timer_s_end
    # By which the supervisor has stacks logged: torchrun knows nothing of it.
    signal.signal(signal.SIGUSR1, pass_to_children)
    start: Callable[[Any], None] = run
    log = OwnLog()
    try:
        parsed = get_args_parser().parse_args([*options, f"/proc/{os.getpid()}/fd/{descriptor}"])
        # The supervisor ends what does not end by itself after this report.
        with (
            logs.inherited(os.environ, logging.WARNING),
            _stores(parsed),
            use_rendezvous(lambda: reporter.send(Report(failure=_ROUND_OVER))),
        ):
            start(parsed)
    except ChildFailedError as error:
        # A signal before all else: the others can only say that this process is gone.
        status = min(failure.exitcode for failure in error.failures.values())
        if status > 0:
            return int(error.get_first_failure()[1].exitcode)
        said = log.end()
        known = explain_exit(said) or (explain_abort(said) if status == -signal.SIGABRT else None)
        if known is not None:
            reporter.failure(known)
            return known.code
        killed = failure_of_status(status)
        reporter.send(Report(failure=killed))
        return killed.code
    except SignalException:
        return ExitCode.TERMINATED
    except Exception as error:  # torchrun's own: a node that did not come in time, a store that is gone
        known = explain(error)
        reporter.failure(known)
        return known.code
    finally:
        log.end()
    return ExitCode.OK


@contextlib.contextmanager
def _stores(parsed: Any) -> Iterator[None]:
    """On one node, the files by which torchrun and its processes meet: new ones at each start, for this user alone."""
    if parsed.rdzv_backend != "c10d":
        yield
        return
    with temporary_folder("lora-processes-") as folder:
        parsed.rdzv_endpoint = str(folder / "torchrun")
        os.environ[STORE] = str(folder / "processes")
        yield


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
