"""What every command does with its options, and how a person hears of what goes wrong."""

import argparse
import os
import sys
import uuid
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TextIO

from lora_trainer.distributed import logs
from lora_trainer.errors import ConfigError, explain_by_hand, one_sentence
from lora_trainer.host.live import is_live, shown
from lora_trainer.host.view import View
from lora_trainer.manifest_file import MOST_CHARACTERS, load_manifest
from lora_trainer.spec.config import TrainConfig
from lora_trainer.spec.exit_codes import ExitCode
from lora_trainer.storage.volumes import Volumes


def by_hand(action: Callable[[], None]) -> int:
    """Run a command for a person, who gets one sentence of whatever goes wrong; the exit status."""
    try:
        with view():
            action()
    except Exception as error:
        known = explain_by_hand(error)
        say(str(known), sys.stderr)
        return int(known.code)
    return int(ExitCode.OK)


def say(text: str, to: TextIO | None = None) -> bool:
    """Print lines, to standard output where nothing else is named; whether anybody reads them. A reader that is gone,
    such as head, is no failure of the command."""
    stream = to or sys.stdout
    try:
        print(text, file=stream, flush=True)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
        return False
    return True


def view(log_format: str = logs.TEXT) -> AbstractContextManager[View]:
    """A live line on a terminal, lines elsewhere, while a command works."""
    return shown(live=log_format == logs.TEXT and is_live(sys.stderr, os.environ))


def local_config(path: Path, uid: uuid.UUID | None = None) -> TrainConfig:
    """The run of a manifest, under a uid of its own where none is given. Raises `ConfigError`."""
    return load_manifest(read(path), str(path), uid=str(uid or uuid.uuid4()))


def read(path: Path) -> str:
    """A text file that people or the operator wrote. Raises `ConfigError`."""
    try:
        with path.open(encoding="utf-8") as stream:
            return stream.read(MOST_CHARACTERS + 1)
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} cannot be read: {one_sentence(error)}") from error


def volumes(options: argparse.Namespace) -> Volumes:
    """Where claims and ConfigMaps are on this machine."""
    return Volumes(claims=options.claims, config_maps=options.configmaps)
