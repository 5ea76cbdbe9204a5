"""A run through the chart's upgrade from an earlier release, the way back, and the removal, on a real API server."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from tests.chart.operating import operating
from tests.chart.target import CHART, RELEASE, Target
from tests.component.documents import finetune, succeeded
from tests.component.patience import eventually
from tests.component.stage import REPOSITORY, Stage, make_stage
from tests.conftest import own_control_plane
from tests.faults.earlier import take_from_history
from tests.faults.one_run import Run, begin

from localcluster.client import Client

DEFINITION = "crd/lorafinetunes.lora-operator.io"
# What the definition has got since, in the spec and in the status.
ADDED = {"spec": "preflight", "status": "stateSince"}
WAYS = ("upgrade", "rollback", "upgrade")


@pytest.fixture(scope="module")
def control_plane() -> Iterator[Client]:
    """One that no other test shares: the definition is installed in an earlier form."""
    with own_control_plane(f"tests-{os.getpid()}-upgrade") as started:
        yield started


def known(target: Target) -> set[str]:
    """Which of the additions the definition in the cluster has."""
    served = target.client.get(DEFINITION)["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]
    return {section for section, name in ADDED.items() if name in served[section]["properties"]}


def served(target: Target) -> bool:
    """Whether clients are told of the kind, which comes a moment after the definition."""
    names = target.client.kubectl("api-resources", "--api-group=lora-operator.io", "--output=name")
    return "lorafinetunes" in names


@pytest.fixture
def earlier(target: Target, tmp_path: Path) -> Path:
    """The sources of an earlier release, which is installed."""
    sources = take_from_history(tmp_path / "earlier").sources
    target.client.kubectl("delete", DEFINITION, "--ignore-not-found")
    target.install(chart=sources / CHART.relative_to(REPOSITORY))
    eventually(lambda: served(target), "the API server serves the kind")
    assert known(target) == set()
    return sources


def go(target: Target, way: str) -> bool:
    """Upgrade, or roll back to the earlier release; whether the definition is the present one then, as it must be."""
    if way == "upgrade":
        target.install()
    else:
        target.client.helm("rollback", RELEASE, "1", f"--namespace={target.system}")
    assert known(target) == (set(ADDED) if way == "upgrade" else set())
    return way == "upgrade"


def remove(target: Target) -> None:
    """Helm says that it keeps the definition, and does."""
    said = target.client.helm("uninstall", RELEASE, f"--namespace={target.system}")
    assert "[CustomResourceDefinition] lorafinetunes.lora-operator.io" in said
    assert known(target) == set(ADDED)


def test_a_run_goes_on_through_upgrade_rollback_and_upgrade_and_stays_after_the_removal(
    target: Target, earlier: Path, tmp_path: Path
) -> None:
    """The same Job and pod throughout; whichever operator works writes the status; nothing of the user is removed."""

    @contextmanager
    def works(stage: Stage, sources: Path) -> Iterator[None]:
        folder = tmp_path / f"operator-{len(stage.operators)}"
        folder.mkdir()
        with operating(target, folder, sources=sources) as operator:
            stage.operators.append(operator)
            yield
            assert operator.stop() == 0

    with make_stage(target.client, target.team, tmp_path) as stage:
        with works(stage, earlier):
            run = begin(stage, "tone", quantization="None")
            pod = run.running_pod()
            job = run.job()
        for number, way in enumerate(WAYS, 1):
            present = go(target, way)
            with works(stage, REPOSITORY if present else earlier):
                run.be_looked_at()
                assert children(run) == ([job["metadata"]["uid"]], [pod["metadata"]["uid"]])
                if number == len(WAYS):
                    stage.end_pod(pod, 0, succeeded())
                    run.wait("Complete", "True", "Succeeded")
                    assert run.status["stateSince"]
        ended = stage.finetune("tone")
        remove(target)
        assert stage.finetune("tone") == ended
        assert children(run) == ([job["metadata"]["uid"]], [pod["metadata"]["uid"]])


@pytest.mark.helms(4)
def test_helm_4_changes_the_definition_as_helm_3_does_and_leaves_the_run(target: Target, earlier: Path) -> None:
    """What an operator makes of it is the same."""
    assert earlier.is_dir()
    document = finetune("tone")
    del document["spec"]["preflight"]  # which that release does not know
    target.client.apply(document, namespace=target.team)
    run = ("lft", "tone", f"--namespace={target.team}")
    before = found = target.client.get(*run)
    for way in WAYS:
        go(target, way)
        found = target.client.get(*run)
        assert found["metadata"]["uid"] == before["metadata"]["uid"]
    remove(target)
    assert target.client.get(*run) == found


def children(run: Run) -> tuple[list[str], list[str]]:
    """The uids of all Jobs and of all pods that there are in its namespace."""
    jobs, pods = run.stage.objects("jobs"), run.stage.objects("pods")
    return [job["metadata"]["uid"] for job in jobs], [pod["metadata"]["uid"] for pod in pods]
