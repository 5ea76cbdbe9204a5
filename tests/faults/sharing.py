"""A stage with an operator that the tests of a module share: most rows need no more than a run of their own."""

import uuid
from collections.abc import Iterator

import pytest
from tests.component.stage import Stage, make_stage

from localcluster.client import Client


@pytest.fixture(scope="module")
def shared(control_plane: Client, definition: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    """A namespace with an operator. A test that uses it names its runs after its row, and leaves the operator alone."""
    namespace = f"test-{uuid.uuid4().hex[:10]}"
    control_plane.kubectl("create", "namespace", namespace)
    try:
        with make_stage(control_plane, namespace, tmp_path_factory.mktemp("shared")) as stage:
            stage.start()
            yield stage
    finally:
        control_plane.kubectl("delete", "namespace", namespace, "--wait=false")
