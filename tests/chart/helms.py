"""Helm 3 and Helm 4, built from their modules."""

import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from tests.chart.matrix import IMAGES, merged
from tests.chart.target import CHART

from localcluster import settings, tools
from localcluster.console import Console

RELEASES = {3: tools.HELM, 4: tools.HELM4}


@dataclass(frozen=True, slots=True, kw_only=True)
class Helm:
    """The helm binary. A failure is reported with its standard error."""

    binary: Path

    def run(self, *arguments: str, stdin: str | None = None) -> str:
        done = self.attempt(*arguments, stdin=stdin)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def attempt(self, *arguments: str, stdin: str | None = None) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [str(self.binary), *arguments], input=stdin, capture_output=True, text=True, check=False, timeout=600
        )

    def template(self, values: Mapping[str, Any], *flags: str) -> subprocess.CompletedProcess[str]:
        """`helm template` as release `lora` in namespace `lora-system`, with values from a file."""
        # A Helm that was built without the release's linker flags takes itself for one of Kubernetes 1.20.
        command = ("template", "lora", str(CHART), "--namespace", "lora-system", "--kube-version", "1.31.0", *flags)
        return self.attempt(*command, "--values", "-", stdin=yaml.safe_dump(merged(IMAGES, values)))


def built(tool: tools.Tool) -> Helm:
    """One of the project's own Helms, built on first use."""
    return Helm(binary=tools.ensure(tool, settings.cache_directory(), Console()) / "helm")
