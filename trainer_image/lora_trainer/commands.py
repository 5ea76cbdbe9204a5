"""The command line: its commands and options, and the module that each is in, which is imported for it alone."""

import argparse
import os
import uuid
from collections.abc import Callable, Sequence
from importlib import import_module
from pathlib import Path

from lora_trainer.distributed import logs
from lora_trainer.host.child import stage_environment
from lora_trainer.spec.config import MergePrecision
from lora_trainer.spec.progress import PORT
from lora_trainer.spec.release import RELEASE
from lora_trainer.storage.volumes import CLAIMS, CONFIG_MAPS

_ABOUT = "Run a fine-tuning, look at its inputs, plan it, verify and publish results, ask models questions."
_MODULES = {"run": "run_commands", "preflight": "run_commands", "plan": "plan_command"}
"""Where a command is that is not among those on results: `plan` has answered while the rest would be imported."""


def run_command(arguments: Sequence[str] | None = None) -> int:
    """Run what the command line says; the process's exit status."""
    options = _parser().parse_args(arguments)
    logs.set_up(form=getattr(options, "log_format", logs.TEXT))
    # PyTorch, which some commands load into this process, reads it when it is imported.
    os.environ.update(stage_environment())
    module = import_module(f"lora_trainer.{_MODULES.get(options.command, 'result_commands')}")
    command: Callable[[argparse.Namespace], int] = getattr(module, options.command)
    return command(options)


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
    which = run.add_mutually_exclusive_group()
    which.add_argument("--resume", action="store_true", help="with -f: continue the last run of this name")
    which.add_argument(
        "--uid",
        type=_uid,
        metavar="UUID",
        help="with -f: name the run; the same command continues from what it saved",
    )
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
        "--gpu",
        action="append",
        default=[],
        metavar="GPU",
        help="a name (T4, NVIDIA-L4), slice (3g.40gb) or size (24GiB); repeatable",
    )
    plan.add_argument("--tokens", type=_number(1, 10**15), metavar="N", help="of the data set, for hours")
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
    ask.add_argument(
        "--question", action="append", metavar="TEXT", type=_text, help="default: the lines of standard input"
    )
    ask.add_argument(
        "--input", choices=("text", "json"), default="text", help="of standard input; json may have answers before"
    )
    ask.add_argument("--max-new-tokens", type=_number(1, 100_000), default=64, metavar="N")
    ask.add_argument("--format", choices=("text", "json"), default="text")
    return parser


def _text(argument: str) -> str:
    if not argument.strip():
        raise argparse.ArgumentTypeError("is empty: must be a text")
    return argument


def _uid(argument: str) -> uuid.UUID:
    try:
        return uuid.UUID(argument)
    except ValueError:
        raise argparse.ArgumentTypeError(f"is {argument[:40]}: must be a UUID, as uuidgen prints it") from None


def _number(least: int, most: int) -> Callable[[str], int]:
    def read(argument: str) -> int:
        digits = argument.isascii() and argument.isdigit() and len(argument) <= len(str(most))
        if not digits or not least <= int(argument) <= most:
            raise argparse.ArgumentTypeError(f"is {argument[:20]}: must be a whole number from {least} to {most}")
        return int(argument)

    return read
