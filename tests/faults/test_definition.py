"""A15 and A16: the definition is changed or deleted; on a control plane of their own, whose runs all go with it."""

import os
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
import yaml
from tests.component.cluster_acts import make_claim
from tests.component.conftest import serve_definition
from tests.component.documents import Object
from tests.component.operator_process import OperatorProcess
from tests.component.patience import eventually
from tests.component.stage import REPOSITORY, Stage, gone
from tests.conftest import own_control_plane
from tests.faults.moments import Kept
from tests.faults.one_run import begin
from tests.faults.seen import Sees, kept, remember, saw

from localcluster.api import ApiError
from localcluster.client import Client

DEFINITION = REPOSITORY / "crds" / "lorafinetunes.yaml"
CRD = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions/lorafinetunes.lora-operator.io"
OLDER = (
    "The definition in the cluster is older than the operator, and lacks spec.pendingTimeoutSeconds, "
    "status.activeSince: apply crds/"
)
UNKNOWN = "The cluster does not know lorafinetunes.lora-operator.io in version v1alpha1: apply crds/"


@pytest.fixture(scope="module")
def control_plane() -> Iterator[Client]:
    """One that no other test shares: deleting a definition deletes every run that there is."""
    with own_control_plane(f"tests-{os.getpid()}-definition") as started:
        yield started


@pytest.fixture(scope="module")
def definition(control_plane: Client) -> None:
    """The LoRAFineTune definition, known to this API server."""
    serve_definition(control_plane)


def test_under_an_older_definition_no_operator_works_until_the_right_one_is_there(
    control_plane: Client, stage: Stage, tmp_path: Path
) -> None:
    """At the start it is waited for; one that comes under an operator ends it, and the next one waits for the other."""
    lacking = tmp_path / "lacking.yaml"
    lacking.write_text(yaml.safe_dump(_without_fields()))
    try:
        install_definition(control_plane, stage, lacking)
        operator = stage.start(wait=False, resyncIntervalSeconds=1)
        run = begin(stage, "a15")
        eventually(partial(_is_unready_with, operator, OLDER), "the operator is unready, and says what it waits for")
        assert (operator.get("/healthz")[0], run.jobs) == (200, [])
        install_definition(control_plane, stage, DEFINITION)
        operator.wait_ready()
        run.running_pod()
        before = remember(run)
        assert run.status["activeSince"]
        install_definition(control_plane, stage, lacking)
        assert operator.end_by_itself() == 1
        saw(Sees(log=(OLDER,)), since=before)
        assert "Traceback" not in operator.text()
        waiting = stage.start(wait=False)
        eventually(partial(_is_unready_with, waiting, OLDER), "the next operator waits")
        install_definition(control_plane, stage, DEFINITION)
        waiting.wait_ready()
        run.be_looked_at()
        for what in (Kept.JOBS, Kept.PODS, Kept.ENDS_WELL):
            kept(what, before)
    finally:
        install_definition(control_plane, stage, DEFINITION)


def _without_fields() -> Object:
    """The definition without one field of the status, and without one of the spec, which tells that it is served."""
    definition: Object = yaml.safe_load(DEFINITION.read_text())
    schema = definition["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]
    del schema["status"]["properties"]["activeSince"], schema["spec"]["properties"]["pendingTimeoutSeconds"]
    return definition


def install_definition(control_plane: Client, stage: Stage, file: Path) -> None:
    """Have the API server serve LoRAFineTunes by this definition, as `kubectl apply --server-side` does."""
    control_plane.kubectl("apply", "--server-side", "--force-conflicts", f"--filename={file}")
    wanted = file == DEFINITION
    eventually(lambda: _knows_pending_timeout(stage) is wanted, "the API server serves the definition")


def _knows_pending_timeout(stage: Stage) -> bool | None:
    """Whether the field that the other definition lacks is kept; None while nothing is served."""
    spec = {"model": {"uri": "hf://a/b"}, "dataset": {"uri": "hf://a/c"}, "output": {"uri": "pvc://d/e"}}
    probe = {"apiVersion": "lora-operator.io/v1alpha1", "kind": "LoRAFineTune", "metadata": {"name": "probe"}}
    try:
        path = stage.path("lorafinetunes") + "?dryRun=All"
        stored = stage.api.post(path, {**probe, "spec": {**spec, "pendingTimeoutSeconds": 60}})
    except ApiError as error:
        if error.status in (404, 429, 503):
            return None
        raise
    return "pendingTimeoutSeconds" in stored["spec"]


def _is_unready_with(operator: OperatorProcess, remedy: str) -> bool:
    status, text = operator.get("/readyz")
    return status == 503 and remedy in text


def test_a_definition_that_is_deleted_and_installed_again_is_waited_for(control_plane: Client, stage: Stage) -> None:
    """The resources go, and their Jobs with them, as Kubernetes has it.

    The operator ends once, with the reason, and the next one waits instead of ending again and again; it works as soon
    as there is a definition. Claims are left alone.
    """
    operator = stage.start()
    make_claim(stage, "data")
    try:
        first = begin(stage, "a16")
        job = first.job()
        before = remember(first)
        stage.api.delete(CRD)
        assert operator.end_by_itself() == 1
        saw(Sees(log=(UNKNOWN,)), since=before)
        assert "Traceback" not in operator.text()
        waiting = stage.start(wait=False)
        says_so = partial(_is_unready_with, waiting, UNKNOWN)
        eventually(says_so, "the next operator is unready, and says what it waits for")
        assert waiting.get("/healthz")[0] == 200
        install_definition(control_plane, stage, DEFINITION)
        waiting.wait_ready()
        again = begin(stage, "a16-again")
        again.running_pod()
        assert waiting.text().count(UNKNOWN) == 1
        assert gone(stage.api, stage.path("lorafinetunes", "a16"))
        # The garbage collector looks for new kinds twice a minute, and for owners that are gone among known ones.
        eventually(partial(gone, stage.api, stage.path("jobs", job["metadata"]["name"])), "the Job is gone")
        kept(Kept.CLAIMS, before)
    finally:
        install_definition(control_plane, stage, DEFINITION)
