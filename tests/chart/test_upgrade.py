"""A run through the chart's upgrade from an earlier release, the way back, and the removal, on a real API server."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from tests.chart import helms
from tests.chart.operating import operating
from tests.chart.target import CHART, RELEASE, Target
from tests.component.documents import succeeded
from tests.component.patience import eventually
from tests.component.stage import REPOSITORY, Stage, make_stage
from tests.conftest import own_control_plane
from tests.faults.earlier import take_from_history
from tests.faults.one_run import Run, begin

from localcluster.client import Client

DEFINITION = "crd/lorafinetunes.lora-operator.io"
HELMS = helms.BOTH
# What the definition has got since, in the spec and in the status.
ADDED = {"spec": "preflight", "status": "stateSince"}


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


def test_a_run_goes_on_through_upgrade_rollback_and_upgrade_and_stays_after_the_removal(
    target: Target, tmp_path: Path
) -> None:
    """The same Job and pod throughout; whichever operator works writes the status; nothing of the user is removed."""
    client, here = target.client, f"--namespace={target.system}"
    earlier = take_from_history(tmp_path / "earlier").sources
    client.kubectl("delete", DEFINITION, "--ignore-not-found")

    @contextmanager
    def works(stage: Stage, sources: Path) -> Iterator[None]:
        folder = tmp_path / f"operator-{len(stage.operators)}"
        folder.mkdir()
        with operating(target, folder, sources=sources) as operator:
            stage.operators.append(operator)
            yield
            assert operator.stop() == 0

    target.install(chart=earlier / CHART.relative_to(REPOSITORY))
    eventually(lambda: served(target), "the API server serves the kind")
    assert known(target) == set()
    ways: tuple[Callable[[], str], ...] = (
        target.install,
        lambda: client.helm("rollback", RELEASE, "1", here),
        target.install,
    )
    with make_stage(client, target.team, tmp_path) as stage:
        with works(stage, earlier):
            run = begin(stage, "tone", quantization="None")
            pod = run.running_pod()
            job = run.job()
        for number, way in enumerate(ways):
            way()
            present = number % 2 == 0
            assert known(target) == (set(ADDED) if present else set())
            with works(stage, REPOSITORY if present else earlier):
                run.be_looked_at()
                assert children(run) == ([job["metadata"]["uid"]], [pod["metadata"]["uid"]])
                if number == len(ways) - 1:
                    stage.end_pod(pod, 0, succeeded())
                    run.wait("Complete", "True", "Succeeded")
                    assert run.status["stateSince"]
        ended = stage.finetune("tone")
        said = client.helm("uninstall", RELEASE, here)
        assert "[CustomResourceDefinition] lorafinetunes.lora-operator.io" in said
        assert known(target) == set(ADDED)
        assert stage.finetune("tone") == ended
        assert children(run) == ([job["metadata"]["uid"]], [pod["metadata"]["uid"]])


def children(run: Run) -> tuple[list[str], list[str]]:
    """The uids of all Jobs and of all pods that there are in its namespace."""
    jobs, pods = run.stage.objects("jobs"), run.stage.objects("pods")
    return [job["metadata"]["uid"] for job in jobs], [pod["metadata"]["uid"] for pod in pods]
