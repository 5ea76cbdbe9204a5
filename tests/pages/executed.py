"""Commands of a page, executed as they are typed but for a declared list of substitutions."""

import re
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True, kw_only=True)
class Substitution:
    """What stands on the page, what is typed instead, and why."""

    shown: str
    typed: str
    why: str


def substituted(text: str, substitutions: Sequence[Substitution]) -> str:
    """The text as it is typed."""
    for each in substitutions:
        text = text.replace(each.shown, each.typed)
    return text


def execute(
    commands: str,
    environment: Mapping[str, str],
    folder: Path,
    *,
    pipefail: bool = True,
    errors: bool = False,
    timeout_s: int = 600,
) -> str:
    """What bash prints, in a folder. A command that fails is an AssertionError.

    Without `pipefail` a pipe may come to nothing, as `grep` does where it finds nothing. No program may print an error
    unless `errors` are a part of it.
    """
    done = subprocess.run(
        ["bash", *(("-o", "pipefail") if pipefail else ()), "-eux", "-c", commands],
        cwd=folder,
        env=environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=timeout_s,
        check=False,
    )
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    assert errors or not re.search(r"^error|^Error", done.stderr, re.MULTILINE), f"{done.stdout}\n{done.stderr}"
    return done.stdout
