"""The outermost part of a process of the trainer: no stack trace leaves it but into the log."""

import logging
import os
import sys
from collections.abc import Callable, Mapping
from typing import NoReturn

from lora_trainer.distributed.reports import Reporter
from lora_trainer.errors import InternalError, TerminatedError, TrainerError, explain
from lora_trainer.spec.exit_codes import ExitCode

log = logging.getLogger(__name__)


def guarded(action: Callable[[], None], reporter: Reporter) -> int:
    """Run `action`; whatever it raises becomes one sentence in a report, and the exit code that belongs to it."""
    try:
        action()
    except TrainerError as error:
        return _failed(error, reporter)
    except SystemExit:
        return _failed(TerminatedError("the run was asked to stop before its end"), reporter)
    except Exception as error:
        known = explain(error)
        if isinstance(known, InternalError):
            log.exception("unexpected error")
        return _failed(known, reporter)
    return ExitCode.OK


def leave(status: int, environment: Mapping[str, str]) -> NoReturn:
    """End the process with `status`: one of several that failed at once, without Python's own end.

    That would abort NCCL's communicators and wait for kernels which themselves wait for the others, who in turn hear
    of the failure only when the process is gone.
    """
    if status != ExitCode.OK and "LOCAL_RANK" in environment:
        logging.shutdown()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
    sys.exit(status)


def _failed(error: TrainerError, reporter: Reporter) -> int:
    if isinstance(error, TerminatedError):
        # Nothing failed, and where Ctrl-C was pressed nobody was evicted.
        log.warning("%s", error)
    else:
        log.error("%s: %s", error.reason.value, error)
    reporter.failure(error)
    return int(error.code)
