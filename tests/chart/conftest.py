"""Helm 3 and 4, and the chart rendered by them.

A test that needs to run under both is marked `helms(3, 4)`: what a test reads of a rendering alone is the same under
either, as test_matrix.py finds.
"""

import functools
import json
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from tests.chart.helms import RELEASES, Helm, built
from tests.chart.objects import Manifest, parsed
from tests.chart.target import Target, make_target

from localcluster.client import Client


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run a test of the chart under Helm 3, or under each Helm that its mark names."""
    if "helm" in metafunc.fixturenames:
        mark = metafunc.definition.get_closest_marker("helms")
        chosen = [RELEASES[number] for number in (mark.args if mark else (3,))]
        metafunc.parametrize("helm", chosen, indirect=True, scope="session", ids=lambda tool: tool.name)


@pytest.fixture(scope="session")
def helm(request: pytest.FixtureRequest) -> Helm:
    """The Helm of the test."""
    return built(request.param)


@pytest.fixture(scope="session")
def documents(helm: Helm) -> Callable[..., list[Manifest]]:
    """Objects that the chart renders with these values, those of its hooks included."""

    @functools.cache
    def text(values: str) -> str:
        done = helm.template(json.loads(values))
        assert done.returncode == 0, done.stderr
        return done.stdout

    def rendered(**values: Any) -> list[Manifest]:
        return parsed(text(json.dumps(values, sort_keys=True)))

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
