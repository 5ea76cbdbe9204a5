"""The commands: run a fine-tuning, look at its inputs, plan it, verify and publish results, ask models questions."""

import argparse
import dataclasses
import logging
import os
import shutil
import signal
import sys
import threading
import uuid
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from types import FrameType

from lora_trainer.by_hand import check_checkpoint, check_question, check_result
from lora_trainer.contract import codec
from lora_trainer.contract.config import MergePrecision, TrainConfig
from lora_trainer.contract.exit_codes import ExitCode
from lora_trainer.contract.progress import PORT
from lora_trainer.contract.release import RELEASE
from lora_trainer.contract.summary import Summary
from lora_trainer.contract.uri import ClaimUri, parse_uri
from lora_trainer.errors import ConfigError, DoesNotFitError, InternalError, explain, one_sentence
from lora_trainer.host.child import stage_environment
from lora_trainer.host.launch import grace_s
from lora_trainer.host.live import is_live, shown
from lora_trainer.host.supervisor import Ending, Settings, Supervisor
from lora_trainer.host.view import View
from lora_trainer.local_run import last_uid, load_manifest, show_summary
from lora_trainer.manifest_file import MOST_CHARACTERS
from lora_trainer.places.model_folder import check_on_claim
from lora_trainer.places.publishing import publish_folder
from lora_trainer.places.volumes import CLAIMS, CONFIG_MAPS, Volumes
from lora_trainer.preflight_lines import show_preflight
from lora_trainer.ranks import logs
from lora_trainer.result.serving import merged_command

log = logging.getLogger(__name__)
_ABOUT = "Run a fine-tuning, look at its inputs, plan it, verify and publish results, ask models questions."
TERMINATION_LOG = Path("/dev/termination-log")


def run_command(arguments: Sequence[str] | None = None) -> int:
    """Run what the command line says; the process's exit status."""
    options = _parser().parse_args(arguments)
    logs.set_up(form=getattr(options, "log_format", logs.TEXT))
    # PyTorch, which `verify` and `ask` load into this process, reads it when it is imported.
    os.environ.update(stage_environment())
    commands = {
        "run": _run,
        "plan": _plan,
        "preflight": _preflight,
        "publish": _publish,
        "verify": _verify,
        "export": _export,
        "merge": _merge,
        "ask": _ask,
    }
    return int(commands[options.command](options))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="lora-trainer", description=_ABOUT)
    parser.add_argument("--version", action="version", version=f"lora-trainer {RELEASE}")
    commands = parser.add_subparsers(dest="command", required=True)
    volumes = argparse.ArgumentParser(add_help=False)
    volumes.add_argument(
        "--claims", type=Path, default=CLAIMS, metavar="DIR", help="pvc://claim/path is DIR/claim/path"
    )
    volumes.add_argument(
        "--configmaps", type=Path, default=CONFIG_MAPS, metavar="DIR", help="configmap://name/key is DIR/name/key"
    )

    log_options = argparse.ArgumentParser(add_help=False)
    log_options.add_argument(
        "--log-format", choices=logs.FORMATS, default=logs.TEXT, help="lines for people, or JSON lines"
    )

    run = commands.add_parser("run", parents=[volumes, log_options], help="train, verify and publish an adapter")
    inputs = commands.add_parser(
        "preflight", parents=[volumes, log_options], help="check model, data and output of a run, and plan it"
    )
    inputs.add_argument("--fill-cache", action="store_true", help="have model and data in the cache afterwards")
    run.add_argument("--resume", action="store_true", help="with -f: go on with the last run of this name")
    for parser_of_run in (run, inputs):
        source = parser_of_run.add_mutually_exclusive_group(required=True)
        source.add_argument("--config", type=Path, metavar="FILE", help="the configuration that the operator rendered")
        source.add_argument("-f", "--file", type=Path, metavar="FILE", help="the manifest that kubectl apply takes")
        parser_of_run.add_argument(
            "--termination-log", type=Path, metavar="FILE", help="where the summary goes as JSON"
        )
    run.add_argument(
        "--metrics-port",
        type=_number(0, 65_535),
        metavar="PORT",
        help=f"default {PORT} with --config, none with -f",
    )
    run.add_argument("--work", type=Path, metavar="DIR", help="folder for temporary files")

    plan = commands.add_parser("plan", parents=[volumes], help="what a run would take of which GPU, without any")
    plan.add_argument("-f", "--file", type=Path, required=True, metavar="FILE", help="as run takes it")
    plan.add_argument("--config", type=Path, metavar="FILE", help="the model's config.json; default: its own")
    plan.add_argument(
        "--gpu", action="append", default=[], metavar="GPU", help="a name (T4, H100) or a memory (24GiB); repeatable"
    )
    plan.add_argument("--tokens", type=_number(1, 10**15), metavar="N", help="of the data set, for hours")
    plan.add_argument(
        "--share", type=_number(1, 100), default=40, metavar="PERCENT", help="of the GPU's peak; default 40"
    )
    plan.add_argument("-o", "--output", choices=("table", "json", "yaml"), default="table", dest="form")

    publish = commands.add_parser("publish", parents=[volumes], help="put a finished result at an address")
    publish.add_argument("folder", type=Path, metavar="DIR")
    publish.add_argument("uri", metavar="URI", help="pvc://, s3://, hf:// or oci://")

    verify = commands.add_parser("verify", parents=[volumes], help="check an adapter's digests and its loss")
    verify.add_argument("folder", type=Path, metavar="DIR")

    export = commands.add_parser("export", parents=[volumes], help="make a verified adapter of a checkpoint")
    export.add_argument("checkpoint", type=Path, metavar="CHECKPOINT", help="a folder step-...")
    export.add_argument("--output", type=Path, required=True, metavar="DIR", help="a new folder for the adapter")

    merge = commands.add_parser("merge", parents=[volumes], help="make a model of an adapter and its base model")
    merge.add_argument("adapter", type=Path, metavar="ADAPTER", help="a folder that a run published")
    merge.add_argument("--output", type=Path, required=True, metavar="DIR", help="a new folder for the model")
    merge.add_argument(
        "--precision",
        choices=[member.value for member in MergePrecision],
        default=MergePrecision.AUTO.value,
        help="of the weights: the base's own (Auto), or FP32, which rounds nothing away",
    )

    ask = commands.add_parser("ask", parents=[volumes], help="answers of base model and adapter to the same questions")
    ask.add_argument(
        "--base", metavar="URI", help="hf://, pvc:// or a folder; default: the model the adapter was made of"
    )
    ask.add_argument("--adapter", type=Path, required=True, metavar="DIR")
    ask.add_argument("--question", action="append", required=True, metavar="TEXT", type=_text)
    ask.add_argument("--max-new-tokens", type=_number(1, 100_000), default=64, metavar="N")
    ask.add_argument("--format", choices=("text", "json"), default="text")
    return parser


def _text(argument: str) -> str:
    if not argument.strip():
        raise argparse.ArgumentTypeError("is empty: must be a text")
    return argument


def _number(least: int, most: int) -> Callable[[str], int]:
    def read(argument: str) -> int:
        digits = argument.isascii() and argument.isdigit() and len(argument) <= len(str(most))
        if not digits or not least <= int(argument) <= most:
            raise argparse.ArgumentTypeError(f"is {argument[:20]}: must be a whole number from {least} to {most}")
        return int(argument)

    return read


def _run(options: argparse.Namespace) -> int:
    local = options.file is not None
    try:
        if options.work is not None and not options.work.is_dir():
            raise ConfigError(f"--work is {options.work}: must be a folder that exists")
        config = _local_config(options.file) if local else TrainConfig.from_json(_read(options.config))
        if options.resume:
            config = _last_run(config, options, local=local)
        if local and options.claims != CLAIMS:
            _make_output_claim(config, options.claims)
        grace = grace_s(os.environ)
    except Exception as error:
        ending = _ended(error)
    else:
        logs.set_up(form=options.log_format, run=codec.encode(config.run))
        port = options.metrics_port if options.metrics_port is not None or local else PORT
        settings = Settings(
            volumes=_volumes(options),
            port=port,
            work=options.work,
            grace_s=grace,
            log_format=options.log_format,
            tried_again=not local,
        )
        stopping = threading.Event()
        # Until the supervisor takes over, and from its return on, Ctrl-C is remembered and tears nothing away.
        signal.signal(signal.SIGINT, lambda _signal, _frame: stopping.set())
        with _view(options.log_format) as view:
            ending = Supervisor(config=config, settings=settings, stopping=stopping, view=view).run()
    _write_summary(ending, options.termination_log)
    if local:
        print(show_summary(ending))
    return ending.code


def _preflight(options: argparse.Namespace) -> int:
    signal.signal(signal.SIGTERM, _terminate)
    try:
        config = _local_config(options.file) if options.file else TrainConfig.from_json(_read(options.config))
        # NumPy and HTTP, which the supervisor of a run does without.
        from lora_trainer.places.hub import Hub  # noqa: PLC0415
        from lora_trainer.recipe.preflight import preflight  # noqa: PLC0415

        with _view(options.log_format):
            summary = preflight(config, _volumes(options), Hub(), fill=options.fill_cache)
        ending = Ending(code=int(ExitCode.OK), summary=summary)
    except Exception as error:
        ending = _ended(error)
    _write_summary(ending, options.termination_log)
    print(show_preflight(ending.summary), file=sys.stdout if ending.code == ExitCode.OK else sys.stderr)
    return ending.code


def _plan(options: argparse.Namespace) -> int:
    def action() -> None:
        from lora_trainer.plan import Asked, plan_run  # noqa: PLC0415 - no other command needs it
        from lora_trainer.plan_table import show  # noqa: PLC0415

        asked = Asked(
            config_file=options.config,
            gpus=tuple(options.gpu),
            tokens=options.tokens,
            share_percent=options.share,
        )
        plan = plan_run(_local_config(options.file), _volumes(options), asked)
        print(show(plan, options.form, shutil.get_terminal_size((80, 24)).columns))

    return _by_hand(action)


def _terminate(_signal: int, _frame: FrameType | None) -> None:
    # SystemExit and not a TrainerError: libraries that catch Exception must not swallow it.
    raise SystemExit(ExitCode.TERMINATED)


def _ended(error: Exception) -> Ending:
    known = explain(error)
    if isinstance(known, InternalError):
        log.exception("unexpected error")
    plan = known.plan if isinstance(known, DoesNotFitError) else None
    return Ending(code=int(known.code), summary=Summary(reason=known.reason, message=str(known), plan=plan))


def _publish(options: argparse.Namespace) -> int:
    def action() -> None:
        check_result(options.folder)
        published = publish_folder(options.folder, options.uri, _volumes(options))
        print(f"{published.uri} ({published.digest})")

    return _by_hand(action)


def _by_hand(action: Callable[[], None]) -> int:
    """Run a command for a person, who gets one sentence of whatever goes wrong; the exit status."""
    try:
        with _view():
            action()
    except Exception as error:
        known = explain(error)
        print(known, file=sys.stderr)
        return int(known.code)
    return int(ExitCode.OK)


def _view(log_format: str = logs.TEXT) -> AbstractContextManager[View]:
    return shown(live=log_format == logs.TEXT and is_live(sys.stderr, os.environ))


def _local_config(path: Path) -> TrainConfig:
    return load_manifest(_read(path), str(path), uid=str(uuid.uuid4()))


def _last_run(config: TrainConfig, options: argparse.Namespace, *, local: bool) -> TrainConfig:
    """The run of this name that was saved last, which every later attempt finds by its uid."""
    if not local:
        raise ConfigError("--resume goes with -f: a configuration of the operator names its run itself")
    uid = last_uid(config, _volumes(options))
    return dataclasses.replace(config, run=dataclasses.replace(config.run, uid=uid))


def _make_output_claim(config: TrainConfig, claims: Path) -> None:
    """On a cluster somebody creates the claim; here the folder that stands for it may as well be made."""
    uri = parse_uri(config.output.uri)
    if isinstance(uri, ClaimUri):
        (claims / uri.claim).mkdir(parents=True, exist_ok=True)


def _read(path: Path) -> str:
    try:
        with path.open(encoding="utf-8") as stream:
            return stream.read(MOST_CHARACTERS + 1)
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} cannot be read: {one_sentence(error)}") from error


def _volumes(options: argparse.Namespace) -> Volumes:
    return Volumes(claims=options.claims, config_maps=options.configmaps)


def _write_summary(ending: Ending, path: Path | None) -> None:
    target = path or (TERMINATION_LOG if os.access(TERMINATION_LOG, os.W_OK) else None)
    if target is None:
        return
    try:
        target.write_text(ending.summary.to_message(), encoding="utf-8")
    except OSError as error:
        print(f"the summary cannot be written to {target}: {error.strerror}", file=sys.stderr)


def _verify(options: argparse.Namespace) -> int:
    def action() -> None:
        check_on_claim(check_result(options.folder).config.model.uri, _volumes(options))
        from lora_trainer.places.hub import Hub  # noqa: PLC0415 - PyTorch, after what needs none of it
        from lora_trainer.result.verify import verify  # noqa: PLC0415

        result = verify(options.folder, _volumes(options), Hub(), anywhere=True)
        print(f"verified: loss {result.loss:.6f}, within {result.tolerance:.2g} of what the training measured")

    return _by_hand(action)


def _export(options: argparse.Namespace) -> int:
    def action() -> None:
        check_checkpoint(options.checkpoint, _volumes(options))
        from lora_trainer.places.hub import Hub  # noqa: PLC0415 - as above
        from lora_trainer.result.export_checkpoint import export_checkpoint  # noqa: PLC0415

        result = export_checkpoint(options.checkpoint, options.output, _volumes(options), Hub())
        print(f"{options.output}: verified, loss {result.loss:.6f}, within {result.tolerance:.2g} of the checkpoint's")

    return _by_hand(action)


def _merge(options: argparse.Namespace) -> int:
    def action() -> None:
        check_on_claim(check_result(options.adapter).config.model.uri, _volumes(options))
        from lora_trainer.places.hub import Hub  # noqa: PLC0415 - as above
        from lora_trainer.result.merge_stage import merge_by_hand  # noqa: PLC0415

        result = merge_by_hand(
            options.adapter, options.output, _volumes(options), Hub(), MergePrecision(options.precision)
        )
        print(f"{options.output}: loss {result.loss:.6f}, within {result.tolerance:.2g} of base model and adapter")
        print(f"Serve it: {merged_command(str(options.output))}")

    return _by_hand(action)


def _ask(options: argparse.Namespace) -> int:
    def action() -> None:
        check_question(options.adapter, options.base, _volumes(options))
        from lora_trainer.ask import ask, show  # noqa: PLC0415 - as above

        answers = ask(options.base, options.adapter, options.question, options.max_new_tokens, _volumes(options))
        print(show(answers, as_json=options.format == "json"))

    return _by_hand(action)
