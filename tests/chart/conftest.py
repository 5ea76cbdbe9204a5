"""Helm, and the chart rendered by it."""

import functools
import json
import subprocess
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from localcluster import settings, tools
from localcluster.console import Console

CHART = Path(__file__).resolve().parents[2] / "helm/lora-finetune-operator"
IMAGES = {
    "image": {"repository": "registry.example.com/operator"},
    "trainer": {"image": {"repository": "registry.example.com/trainer"}},
}
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


def merged(base: Mapping[str, Any], change: Mapping[str, Any]) -> dict[str, Any]:
    """Values as Helm merges them: maps key by key, anything else replaced."""
    result = dict(base)
    for key, value in change.items():
        before = result.get(key)
        nested = isinstance(value, dict) and isinstance(before, dict)
        result[key] = merged(before, value) if nested and isinstance(before, dict) else value
    return result


@pytest.fixture(scope="session")
def helm() -> Helm:
    """The project's own Helm, built on first use."""
    return Helm(binary=tools.ensure(tools.HELM, settings.cache_directory(), Console()) / "helm")


@pytest.fixture(scope="session")
def render(helm: Helm) -> Callable[..., list[Manifest]]:
    """Objects that the chart renders with these values."""

    @functools.cache
    def text(values: str) -> str:
        done = helm.template(json.loads(values))
        assert done.returncode == 0, done.stderr
        return done.stdout

    def rendered(**values: Any) -> list[Manifest]:
        return [document for document in yaml.safe_load_all(text(json.dumps(values, sort_keys=True))) if document]

    return rendered
