"""torchrun, with its own stack traces kept from the user, and the cause of a process that could not report it itself.

Started as `python -m lora_trainer.host.torchrun [OPTION]... --module lora_trainer.stage ARGUMENT... --report FD`, where
FD is the descriptor of the supervisor's pipe. torchrun closes all descriptors in the processes that it starts, so
these open the pipe by its path.
"""

import logging
import os
import sys
from collections.abc import Callable, Sequence
from typing import Any

from torch.distributed.elastic.multiprocessing.api import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.run import get_args_parser, run

from lora_trainer.contract.exit_codes import ExitCode
from lora_trainer.errors import explain
from lora_trainer.ranks.reports import Report, Reporter, failure_of_status


def main(arguments: Sequence[str]) -> int:
    """Run torchrun to its end; the exit status of the process that failed first, or 0."""
    *options, descriptor = arguments
    reporter = Reporter(int(descriptor))
    # It repeats with stack traces what the processes report in one sentence.
    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL + 1)
    start: Callable[[Any], None] = run
    try:
        start(get_args_parser().parse_args([*options, f"/proc/{os.getpid()}/fd/{descriptor}"]))
    except ChildFailedError as error:
        # A signal before all else: the others can only say that this process is gone.
        status = min(failure.exitcode for failure in error.failures.values())
        if status > 0:
            return int(error.get_first_failure()[1].exitcode)
        killed = failure_of_status(status)
        reporter.send(Report(failure=killed))
        return killed.code
    except SignalException:
        return ExitCode.TERMINATED
    except Exception as error:  # torchrun's own: a node that did not come in time, a store that is gone
        known = explain(error)
        reporter.failure(known)
        return known.code
    return ExitCode.OK


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
