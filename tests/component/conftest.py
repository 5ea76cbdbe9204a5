"""The operator's stage: one for each test, in a namespace of its own on the control plane of the session."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.component.definition import Api, served_definition
from tests.component.patience import eventually
from tests.component.stage import REPOSITORY, Stage, make_stage

from localcluster.client import Client, CommandError


@pytest.fixture(scope="session")
def definition(control_plane: Client) -> None:
    """The LoRAFineTune definition, known to the API server."""
    serve_definition(control_plane)


def serve_definition(control_plane: Client) -> None:
    """Apply the definition and wait until the API server serves its kind."""
    control_plane.kubectl(
        "apply", "--server-side", "--force-conflicts", f"--filename={REPOSITORY}/crds/lorafinetunes.yaml"
    )
    until_served(control_plane)


def until_served(control_plane: Client) -> None:
    """Wait until the API server serves the definition's kind."""

    def served() -> bool:
        try:
            control_plane.kubectl("get", "lorafinetunes", "--all-namespaces")
        except CommandError:
            return False
        return True

    eventually(served, "the API server serves LoRAFineTunes")


@pytest.fixture(scope="module")
def api(control_plane: Client) -> Iterator[Api]:
    """LoRAFineTunes of a namespace of the module's own, which nothing reconciles."""
    with served_definition(control_plane) as api:
        yield api


@pytest.fixture
def stage(control_plane: Client, definition: None, control_plane_namespace: str, tmp_path: Path) -> Iterator[Stage]:
    """A namespace in which the test starts operators and plays the kubelet."""
    with make_stage(control_plane, control_plane_namespace, tmp_path) as stage:
        yield stage
