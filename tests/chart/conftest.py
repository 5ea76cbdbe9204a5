"""Helm 3 and 4, and the chart rendered by them."""

import functools
import json
import subprocess
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml
from tests.chart.matrix import IMAGES, merged
from tests.chart.target import CHART, Target, make_target

from localcluster import settings, tools
from localcluster.client import Client
from localcluster.console import Console

Manifest = dict[str, Any]


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
            [str(self.binary), *arguments], input=stdin, capture_output=True, text=True, check=False, timeout=120
        )

    def template(self, values: Mapping[str, Any], *flags: str) -> subprocess.CompletedProcess[str]:
        """`helm template` as release `lora` in namespace `lora-system`, with values from a file."""
        # A Helm that was built without the release's linker flags takes itself for one of Kubernetes 1.20.
        command = ("template", "lora", str(CHART), "--namespace", "lora-system", "--kube-version", "1.31.0", *flags)
        return self.attempt(*command, "--values", "-", stdin=yaml.safe_dump(merged(IMAGES, values)))


@pytest.fixture(scope="session", params=[tools.HELM, tools.HELM4], ids=["helm3", "helm4"])
def helm(request: pytest.FixtureRequest) -> Helm:
    """One of the project's own Helms, built on first use."""
    return Helm(binary=tools.ensure(request.param, settings.cache_directory(), Console()) / "helm")


@pytest.fixture(scope="session")
def documents(helm: Helm) -> Callable[..., list[Manifest]]:
    """Objects that the chart renders with these values, those of its hooks included."""

    @functools.cache
    def text(values: str) -> str:
        done = helm.template(json.loads(values))
        assert done.returncode == 0, done.stderr
        return done.stdout

    def rendered(**values: Any) -> list[Manifest]:
        return [document for document in yaml.safe_load_all(text(json.dumps(values, sort_keys=True))) if document]

    return rendered


@pytest.fixture(scope="session")
def render(documents: Callable[..., list[Manifest]]) -> Callable[..., list[Manifest]]:
    """Objects that are installed with these values."""
    return lambda **values: [document for document in documents(**values) if not _is_hook(document)]


@pytest.fixture(scope="session")
def hooks(documents: Callable[..., list[Manifest]]) -> Callable[..., list[Manifest]]:
    """Objects of `helm test` with these values."""
    return lambda **values: [document for document in documents(**values) if _is_hook(document)]


@pytest.fixture(scope="module")
def target(control_plane: Client, helm: Helm) -> Iterator[Target]:
    """Namespaces of the module's own on the control plane, and this Helm for its release there."""
    with make_target(control_plane, helm.binary.parent) as made:
        yield made


def _is_hook(document: Manifest) -> bool:
    return "helm.sh/hook" in document["metadata"].get("annotations", {})
