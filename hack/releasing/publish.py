"""Copies a release that was checked to a registry, by oras: each artifact with its signature and bill of materials."""

from __future__ import annotations

import os
import subprocess
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from lora_trainer.spec.release import RELEASE
from releasing import artifacts
from releasing.errors import ReleaseError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from localcluster.console import Console
    from releasing.layout import Layout

USER, PASSWORD = "REGISTRY_USER", "REGISTRY_PASSWORD"


def publish(layout: Layout, registry: str, oras: Path, console: Console, *, plain_http: bool) -> list[str]:
    """Returns the references in the registry, with their digests.

    The account is REGISTRY_USER with REGISTRY_PASSWORD of the environment, or else of Docker's configuration.
    """
    references = []
    with tempfile.TemporaryDirectory() as folder:
        account: tuple[str, ...] = ()
        if user := os.environ.get(USER):
            file = str(Path(folder, "config.json"))
            account = ("--to-registry-config", file)
            login = ("login", registry.partition("/")[0], "--registry-config", file, "--username", user)
            _run([str(oras), *login, "--password-stdin"], os.environ.get(PASSWORD, ""))
        for name in artifacts.NAMES:
            reference = f"{registry.rstrip('/')}/{name}:{RELEASE}"
            with console.step(f"copy to {reference}"):
                _run([str(oras), *copy_arguments(layout, name, reference, plain_http=plain_http), *account])
            references.append(f"{reference}@{layout.find(artifacts.place(name)).digest}")
    return references


def copy_arguments(layout: Layout, name: str, reference: str, *, plain_http: bool) -> tuple[str, ...]:
    """What oras is asked to do: an artifact with all that refers to it."""
    insecure = ("--to-plain-http",) if plain_http else ()
    return (
        "cp",
        "--recursive",
        "--no-tty",
        *insecure,
        "--from-oci-layout",
        f"{layout.folder}:{artifacts.place(name)}",
        reference,
    )


def _run(command: Sequence[str], password: str = "") -> None:
    done = subprocess.run(command, input=password, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise ReleaseError(f"`oras {command[1]}` failed: {done.stderr.strip() or done.stdout.strip()}")
