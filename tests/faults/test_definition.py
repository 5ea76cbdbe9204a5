"""A15 and A16: the definition is changed or deleted; on a control plane of their own, whose runs all go with it."""

import os
from collections.abc import Iterator
from functools import partial

import pytest
from tests.component.cluster_acts import make_claim
from tests.component.conftest import serve_definition
from tests.component.documents import succeeded
from tests.component.patience import eventually
from tests.component.stage import Stage, gone
from tests.conftest import own_control_plane
from tests.faults.earlier import CRD, DEFINITION, EARLIER_DEFINITION, install_definition
from tests.faults.one_run import Run, begin

from localcluster.client import Client


@pytest.fixture(scope="module")
def control_plane() -> Iterator[Client]:
    """One that no other test shares: deleting a definition deletes every run that there is."""
    with own_control_plane(f"tests-{os.getpid()}-definition") as started:
        yield started


@pytest.fixture(scope="module")
def definition(control_plane: Client) -> None:
    """The LoRAFineTune definition, known to this API server."""
    serve_definition(control_plane)


@pytest.mark.fault("A15")
def test_a_definition_that_is_upgraded_and_rolled_back_leaves_runs_and_statuses_alone(
    control_plane: Client, stage: Stage
) -> None:
    """The same operator under the earlier definition, the present one, and the earlier one again.

    What the earlier one does not know is not stored, and is not written again and again for that.
    """
    try:
        install_definition(control_plane, stage, EARLIER_DEFINITION)
        operator = stage.start()
        run = begin(stage, "a15")
        pod = run.running_pod()
        before = stage.api.get(stage.path("jobs", run.job()["metadata"]["name"]))
        assert "activeSince" not in run.status
        _writes_nothing(run)
        install_definition(control_plane, stage, DEFINITION)
        run.be_looked_at()
        assert run.status["activeSince"]
        _writes_nothing(run)
        install_definition(control_plane, stage, EARLIER_DEFINITION)
        run.be_looked_at()
        _writes_nothing(run)
        after = stage.api.get(stage.path("jobs", run.job()["metadata"]["name"]))
        assert after["spec"] == before["spec"]
        assert [pod["metadata"]["uid"]] == run.pods_of_this_moment()
        stage.end_pod(pod, 0, succeeded())
        run.wait("Complete", "True", "Succeeded")
        assert operator.process.poll() is None
        assert operator.text().count("The definition in the cluster is older than the operator") == 1
    finally:
        install_definition(control_plane, stage, DEFINITION)


def _writes_nothing(run: Run) -> None:
    """The operator looks at the run again and again and has nothing to write."""
    operator = run.stage.operators[-1]

    def still() -> bool:
        before = operator.writes()
        run.be_looked_at(writes=False)
        return operator.writes() == before

    eventually(still, "the operator is at rest")


@pytest.mark.fault("A16")
def test_a_definition_that_is_deleted_and_installed_again_is_waited_for(control_plane: Client, stage: Stage) -> None:
    """The resources go, and their Jobs with them, as Kubernetes has it.

    The operator ends once, with the reason, and the next one waits instead of ending again and again; it works as soon
    as there is a definition. Claims are left alone.
    """
    operator = stage.start()
    make_claim(stage, "data")
    try:
        job = begin(stage, "a16").job()
        stage.api.delete(CRD)
        assert operator.process.wait(timeout=60) == 1
        remedy = "The cluster does not know lorafinetunes.lora-operator.io in version v1alpha1: apply crds/"
        assert remedy in operator.text()
        assert "Traceback" not in operator.text()
        waiting = stage.start(wait=False)
        eventually(lambda: remedy in waiting.get("/readyz")[1], "the next operator says what it waits for")
        assert waiting.get("/healthz")[0] == 200
        install_definition(control_plane, stage, DEFINITION)
        waiting.wait_ready()
        again = begin(stage, "a16-again")
        again.running_pod()
        assert waiting.text().count(remedy) == 1
        # The garbage collector looks for new kinds twice a minute, and for owners that are gone among known ones alone.
        eventually(partial(gone, stage.api, stage.path("jobs", job["metadata"]["name"])), "the Job is gone")
        claim = stage.api.get(stage.path("persistentvolumeclaims", "data"))
        assert "deletionTimestamp" not in claim["metadata"]
    finally:
        install_definition(control_plane, stage, DEFINITION)
