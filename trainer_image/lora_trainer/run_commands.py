"""`lora-trainer run` and `preflight`: what the operator's pods do, and people on a machine of theirs."""

import argparse
import dataclasses
import logging
import os
import signal
import sys
import threading
from pathlib import Path
from types import FrameType

from lora_trainer.command_options import local_config, read, say, view, volumes
from lora_trainer.distributed import logs
from lora_trainer.errors import ConfigError, DoesNotFitError, InternalError, explain
from lora_trainer.host.launch import grace_s
from lora_trainer.host.supervisor import Ending, Settings, Supervisor
from lora_trainer.local_run import last_uid, show_summary
from lora_trainer.preflight_lines import show_preflight
from lora_trainer.spec import codec
from lora_trainer.spec.config import TrainConfig
from lora_trainer.spec.exit_codes import ExitCode
from lora_trainer.spec.progress import PORT
from lora_trainer.spec.summary import Summary
from lora_trainer.spec.uri import ClaimUri, parse_uri
from lora_trainer.storage.volumes import CLAIMS

log = logging.getLogger(__name__)
TERMINATION_LOG = Path("/dev/termination-log")


def run(options: argparse.Namespace) -> int:
    """Train, verify and publish; the exit status."""
    local = options.file is not None
    try:
        if options.work is not None and not options.work.is_dir():
            raise ConfigError(f"--work is {options.work}: must be a folder that exists")
        if not local and (options.resume or options.uid):
            option = "--resume" if options.resume else "--uid"
            raise ConfigError(f"{option} goes with -f: a configuration of the operator names its run itself")
        config = local_config(options.file, options.uid) if local else TrainConfig.from_json(read(options.config))
        if options.resume:
            config = _last_run(config, options)
        if local and options.claims != CLAIMS:
            _make_output_claim(config, options.claims)
        grace = grace_s(os.environ)
    except Exception as error:
        ending = _ended(error)
    else:
        logs.set_up(form=options.log_format, run=codec.encode(config.run))
        port = options.metrics_port if options.metrics_port is not None or local else PORT
        settings = Settings(
            volumes=volumes(options),
            port=port,
            work=options.work,
            grace_s=grace,
            log_format=options.log_format,
            tried_again=not local,
        )
        stopping = threading.Event()
        # Until the supervisor takes over, and from its return on, Ctrl-C is remembered and tears nothing away.
        signal.signal(signal.SIGINT, lambda _signal, _frame: stopping.set())
        with view(options.log_format) as shown:
            ending = Supervisor(config=config, settings=settings, stopping=stopping, view=shown).run()
    _write_summary(ending, options.termination_log)
    if local:
        say(show_summary(ending))
    return ending.code


def preflight(options: argparse.Namespace) -> int:
    """Check the inputs of a run, and plan it; the exit status."""
    signal.signal(signal.SIGTERM, _terminate)
    try:
        config = local_config(options.file) if options.file else TrainConfig.from_json(read(options.config))
        # NumPy and HTTP, which the supervisor of a run does without.
        from lora_trainer.storage.hub import Hub  # noqa: PLC0415
        from lora_trainer.train.preflight import preflight as check_inputs  # noqa: PLC0415

        with view(options.log_format):
            summary = check_inputs(config, volumes(options), Hub(), fill=options.fill_cache)
        ending = Ending(code=int(ExitCode.OK), summary=summary)
    except Exception as error:
        ending = _ended(error)
    _write_summary(ending, options.termination_log)
    say(show_preflight(ending.summary), sys.stdout if ending.code == ExitCode.OK else sys.stderr)
    return ending.code


def _terminate(_signal: int, _frame: FrameType | None) -> None:
    # SystemExit and not a TrainerError: libraries that catch Exception must not swallow it.
    raise SystemExit(ExitCode.TERMINATED)


def _ended(error: Exception) -> Ending:
    known = explain(error)
    if isinstance(known, InternalError):
        log.exception("unexpected error")
    plan = known.plan if isinstance(known, DoesNotFitError) else None
    return Ending(code=int(known.code), summary=Summary(reason=known.reason, message=str(known), plan=plan))


def _last_run(config: TrainConfig, options: argparse.Namespace) -> TrainConfig:
    """The run of this name that was saved last, which every later attempt finds by its uid."""
    uid = last_uid(config, volumes(options))
    return dataclasses.replace(config, run=dataclasses.replace(config.run, uid=uid))


def _make_output_claim(config: TrainConfig, claims: Path) -> None:
    """On a cluster somebody creates the claim; here the folder that stands for it may as well be made."""
    uri = parse_uri(config.output.uri)
    if isinstance(uri, ClaimUri):
        (claims / uri.claim).mkdir(parents=True, exist_ok=True)


def _write_summary(ending: Ending, path: Path | None) -> None:
    target = path or (TERMINATION_LOG if os.access(TERMINATION_LOG, os.W_OK) else None)
    if target is None:
        return
    try:
        target.write_text(ending.summary.to_message(), encoding="utf-8")
    except OSError as error:
        say(f"the summary cannot be written to {target}: {error.strerror}", sys.stderr)
