"""Commands of a page, executed as they are typed but for a declared list of substitutions."""

import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from localcluster.client import Client


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
    commands: str, cluster: Client, folder: Path, *, variables: Mapping[str, str] | None = None, timeout_s: int = 600
) -> str:
    """What bash prints, in a folder, with kubectl and helm for a cluster. A command that fails is an AssertionError."""
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-x", "-c", commands],
        cwd=folder,
        env={**cluster.environment, **(variables or {})},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=timeout_s,
        check=False,
    )
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    return done.stdout
