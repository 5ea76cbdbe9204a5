"""A15 and A16: the definition is changed or deleted; on a control plane of their own, whose runs all go with it."""

import os
from collections.abc import Iterator
from functools import partial

import pytest
from tests.component.cluster_acts import make_claim
from tests.component.conftest import serve_definition
from tests.component.operator_process import OperatorProcess
from tests.component.patience import eventually
from tests.component.stage import Stage, gone
from tests.conftest import own_control_plane
from tests.faults.earlier import CRD, DEFINITION, EARLIER_DEFINITION, install_definition
from tests.faults.matrix import PROMISES
from tests.faults.one_run import Run, begin
from tests.faults.promises import Sees
from tests.faults.proofs import Proofs

from localcluster.api import ApiError
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
    control_plane: Client, stage: Stage, faults: Proofs
) -> None:
    """The same operator under the earlier definition, the present one, and the earlier one again.

    What the earlier one does not know is not stored, and is not written again and again for that.
    """
    try:
        install_definition(control_plane, stage, EARLIER_DEFINITION)
        operator = stage.start(statusDelaySeconds=0.01)
        run = begin(stage, "a15")
        run.running_pod()
        before = faults.remember(run)
        assert "activeSince" not in run.status
        _writes_nothing(run, faults)
        install_definition(control_plane, stage, DEFINITION)
        run.be_looked_at()
        assert run.status["activeSince"]
        _writes_nothing(run, faults)
        install_definition(control_plane, stage, EARLIER_DEFINITION)
        run.be_looked_at()
        _writes_nothing(run, faults)
        for name in ("A15.jobs", "A15.pods", "A15.ends-well"):
            faults.kept(name, before)
        assert operator.process.poll() is None
        faults.saw("A15.older", run)
        assert operator.text().count("The definition in the cluster is older than the operator") == 1
    finally:
        install_definition(control_plane, stage, DEFINITION)


def test_numbers_that_an_earlier_definition_does_not_know_outlive_its_return(
    control_plane: Client, stage: Stage
) -> None:
    """One with an exponent is in nobody's way. Of a run with epochs without quotes no status can be written until the
    present definition is back, since the earlier one has rules for text alone; nothing of it is lost."""
    written: dict[str, dict[str, object]] = {"exponent": {"learningRate": "2e-4"}, "whole": {"epochs": 2}}
    for name, training in written.items():
        stage.apply(name, training=training)
    try:
        install_definition(control_plane, stage, EARLIER_DEFINITION)
        _write(stage, "exponent")
        with pytest.raises(ApiError, match="expected string, got int64"):
            _write(stage, "whole")
    finally:
        install_definition(control_plane, stage, DEFINITION)
    for name, training in written.items():
        _write(stage, name)
        found = stage.finetune(name)
        assert found["spec"]["training"].items() >= training.items()
        assert (found["status"]["attempt"], found["spec"]["suspend"]) == (1, True)


def _write(stage: Stage, name: str) -> None:
    """A part of the status, and what a user may change."""
    stage.api.patch(stage.path("lorafinetunes", name, "status"), {"status": {"attempt": 1}})
    stage.change(name, suspend=True)


def _writes_nothing(run: Run, faults: Proofs) -> None:
    """The operator comes to rest, and looking at the run again it has nothing to write."""
    operator = run.stage.operators[-1]

    def still() -> bool:
        before = operator.writes()
        run.be_looked_at(writes=False)
        return operator.writes() == before

    eventually(still, "the operator is at rest")
    at_rest = faults.remember(run)
    run.be_looked_at(writes=False)
    faults.kept("A15.no-writes", at_rest)


def _is_unready_with(operator: OperatorProcess, remedy: str) -> bool:
    status, text = operator.get("/readyz")
    return status == 503 and remedy in text


@pytest.mark.fault("A16")
def test_a_definition_that_is_deleted_and_installed_again_is_waited_for(
    control_plane: Client, stage: Stage, faults: Proofs
) -> None:
    """The resources go, and their Jobs with them, as Kubernetes has it.

    The operator ends once, with the reason, and the next one waits instead of ending again and again; it works as soon
    as there is a definition. Claims are left alone.
    """
    operator = stage.start()
    make_claim(stage, "data")
    try:
        first = begin(stage, "a16")
        job = first.job()
        before = faults.remember(first)
        stage.api.delete(CRD)
        assert operator.end_by_itself() == 1
        faults.saw("A16.ends", since=before)
        ends = PROMISES["A16.ends"]
        assert isinstance(ends, Sees)
        (remedy,) = ends.log
        assert "Traceback" not in operator.text()
        with faults.proving("A16.waits"):
            waiting = stage.start(wait=False)
            says_so = partial(_is_unready_with, waiting, remedy)
            eventually(says_so, "the next operator is unready, and says what it waits for")
            assert waiting.get("/healthz")[0] == 200
            install_definition(control_plane, stage, DEFINITION)
            waiting.wait_ready()
            again = begin(stage, "a16-again")
            again.running_pod()
            assert waiting.text().count(remedy) == 1
        with faults.proving("A16.gone"):
            assert gone(stage.api, stage.path("lorafinetunes", "a16"))
            # The garbage collector looks for new kinds twice a minute, and for owners that are gone among known ones.
            eventually(partial(gone, stage.api, stage.path("jobs", job["metadata"]["name"])), "the Job is gone")
        faults.kept("A16.claims", before)
    finally:
        install_definition(control_plane, stage, DEFINITION)
