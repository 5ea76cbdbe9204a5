"""Command line of the operator."""

import argparse
import asyncio
import logging
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from lora_operator.cluster.api import ApiError, UnreachableError
from lora_operator.cluster.login import LoginError
from lora_operator.controller import logs
from lora_operator.controller.checks import SelfCheckError, VerifyError, verify
from lora_operator.controller.handlers import operate
from lora_operator.controller.supervision import OperatorFailedError
from lora_operator.explain import ExplainError, explain, parse_place
from lora_operator.model.config import OperatorConfig, load_config
from lora_operator.model.visible import visible
from lora_trainer.spec.codec import CodecError

logger = logging.getLogger("lora_operator")

CONFIG_VARIABLE = "LORA_OPERATOR_CONFIG"
MOUNTED_CONFIG = Path("/etc/lora-operator/config.yaml")
"""Where the chart mounts the settings."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the operator, explain one LoRAFineTune, or verify the installation.

    Returns 0 after SIGTERM, an explanation or a good verification, 2 for arguments or a configuration that cannot be
    read, 1 for everything else.
    """
    parser = _parser()
    options = parser.parse_args(arguments)
    path: Path = options.config or _default_config()
    explains = options.command == "explain"
    try:
        # On somebody's laptop there are no settings; they matter for Jobs that are still to be made.
        bare = explains and options.config is None and not path.exists()
        config = OperatorConfig(trainer_image="unknown") if bare else load_config(path)
    except FileNotFoundError:
        parser.exit(2, f"lora-operator: There is no {path}: name the settings by --config or {CONFIG_VARIABLE}\n")
    except (CodecError, OSError) as error:
        parser.exit(2, f"lora-operator: {error}\n")
    if options.command == "verify":
        return _verify(options, config)
    return _explain(options, config, bare=bare) if explains else _operate(config)


def _operate(config: OperatorConfig) -> int:
    logs.configure(config.log_level, config.log_format)
    try:
        asyncio.run(operate(config))
    except asyncio.CancelledError:
        return 0
    except (ApiError, LoginError, OperatorFailedError, OSError, SelfCheckError, UnreachableError) as error:
        logger.critical("%s", error)
        return 1
    return 0


def _explain(options: argparse.Namespace, config: OperatorConfig, *, bare: bool) -> int:
    remedy = f"give the operator's own with --config or {CONFIG_VARIABLE}, or run this command in its pod"
    notes = [f"Decided with default settings: {remedy}"]
    try:
        place = parse_place(options.place)
        asyncio.run(explain(place, config, notes=notes if bare else ()))
    except ExplainError as error:
        sys.stderr.write(f"lora-operator: {visible(str(error))}\n")
        return 1
    except BrokenPipeError:  # the reader, such as head, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 0


def _verify(options: argparse.Namespace, config: OperatorConfig) -> int:
    try:
        asyncio.run(verify(options.sample.read_text(encoding="utf-8"), options.namespace, config))
    except (OSError, VerifyError) as error:
        sys.stderr.write(f"lora-operator: {visible(str(error))}\n")
        return 1
    return 0


def _parser() -> argparse.ArgumentParser:
    text = "Run LoRAFineTune resources as Jobs, explain one, or verify the installation."
    parser = argparse.ArgumentParser(prog="lora-operator", description=text)
    settings = f"YAML file of settings (default: ${CONFIG_VARIABLE}, else {MOUNTED_CONFIG})"
    parser.add_argument("--config", type=Path, metavar="FILE", help=settings)
    commands = parser.add_subparsers(dest="command", metavar="COMMAND")
    what = "say as YAML what the operator sees of one LoRAFineTune and what it plans now; changes nothing"
    command = commands.add_parser("explain", help=what, description=what[0].upper() + what[1:])
    command.add_argument("place", metavar="NAMESPACE/NAME")
    command.add_argument("--config", type=Path, metavar="FILE", default=argparse.SUPPRESS, help=settings)
    what = "say whether a sample is accepted and an operator is at work"
    command = commands.add_parser("verify", help=what, description=what[0].upper() + what[1:])
    command.add_argument("--namespace", required=True, help="the operator's")
    command.add_argument("--sample", required=True, type=Path, metavar="FILE", help="a LoRAFineTune for a dry run")
    command.add_argument("--config", type=Path, metavar="FILE", default=argparse.SUPPRESS, help=settings)
    return parser


def _default_config() -> Path:
    named = os.environ.get(CONFIG_VARIABLE)
    return Path(named) if named else MOUNTED_CONFIG


if __name__ == "__main__":
    sys.exit(main())
