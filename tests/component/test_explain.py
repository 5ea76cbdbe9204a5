"""`lora-operator explain` on a real API server, as somebody who may only read."""

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import pytest
import yaml
from tests.component.documents import failed
from tests.component.patience import eventually
from tests.component.stage import QUICK, Stage
from tests.faults.proxy import FaultProxy

from lora_operator.__main__ import main
from lora_operator.cluster.api import EVENTS, FINETUNES, JOBS, PODS
from lora_operator.controller.checks import Right
from lora_trainer.spec.reasons import Reason

READ = (
    *(Right(verb="get", resource=resource) for resource in (FINETUNES, JOBS)),
    *(Right(verb="list", resource=resource) for resource in (JOBS, PODS, EVENTS)),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """How the command ended and what it printed."""

    code: int
    out: str
    err: str


class Ask(Protocol):
    """Runs the command as an account with these rights, with the settings of a file or with none."""

    def __call__(
        self,
        *arguments: str,
        rights: tuple[Right, ...] = READ,
        proxy: FaultProxy | None = None,
        config: Path | None = None,
    ) -> Answer:
        """`explain` with these arguments."""


@pytest.fixture
def ask(stage: Stage, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Ask:
    """The command in this process, which spares the start of another."""

    def run(
        *arguments: str,
        rights: tuple[Right, ...] = READ,
        proxy: FaultProxy | None = None,
        config: Path | None = None,
    ) -> Answer:
        monkeypatch.setenv("KUBECONFIG", str(stage.kubeconfig(rights, proxy)))
        monkeypatch.setenv("LORA_OPERATOR_CONFIG", str(config or stage.folder / "none.yaml"))
        code = main(["explain", *arguments])
        printed = capsys.readouterr()
        return Answer(code=code, out=printed.out, err=printed.err)

    return run


@pytest.fixture
def settings(stage: Stage) -> Path:
    """The settings as the chart mounts them."""
    file = stage.folder / "settings.yaml"
    file.write_text(yaml.safe_dump({**QUICK, "namespaces": [stage.namespace]}))
    return file


def test_a_run_that_waits_is_explained_with_reading_rights_and_get_requests_alone(
    stage: Stage, ask: Ask, settings: Path
) -> None:
    """The cause with its remedy, what was seen, and nothing that is still to be done: the operator has done it."""
    stage.start()
    stage.apply(maxRetries=2)
    waits = stage.wait_condition("PodsReady", status="False", reason="VolumeNotReady")
    eventually(lambda: stage.finetune()["status"].get("startTime"), "the Job controller has begun")
    proxy = stage.proxy()
    before = stage.finetune()
    answer = ask(f"{stage.namespace}/tone", proxy=proxy, config=settings)
    assert (answer.code, answer.err) == (0, "")
    stated = yaml.safe_load(answer.out)
    assert (stated["state"], stated["message"]) == ("VolumeNotReady", waits["message"])
    assert [job["name"] for job in stated["observed"]["jobs"]] == [before["status"]["jobName"]]
    assert not {"create", "patch", "status", "delete"} & set(stated["plan"])
    assert {call.method for call in proxy.made()} == {"GET"}
    assert len(proxy.made()) <= 8
    assert stage.finetune() == before


def test_what_no_operator_has_done_yet_is_planned_and_not_done(stage: Stage, ask: Ask, settings: Path) -> None:
    """Before its first turn a run would get a Job and a status."""
    before = stage.apply()
    stated = yaml.safe_load(ask(f"{stage.namespace}/tone", config=settings).out)
    assert [made["kind"] for made in stated["plan"]["create"]] == ["Job"]
    assert "conditions" in stated["plan"]["status"]
    assert stated["state"] == "Pending"
    assert any("No operator has written a status yet" in note for note in stated["notes"])
    assert stage.objects("jobs") == []
    assert stage.finetune()["metadata"]["resourceVersion"] == before["metadata"]["resourceVersion"]


def test_a_run_that_has_ended_says_so_on_a_laptop_without_settings(stage: Stage, ask: Ask) -> None:
    """With the verdict, and nothing that is still to be done."""
    stage.start()
    stage.apply()
    pod = stage.wait_pod(stage.wait_job())
    stage.run_pod(pod)
    stage.end_pod(pod, 65, failed(Reason.DATASET_INVALID, "line 17 has no field 'output': add it"))
    stage.wait_condition("Failed", status="True", reason="DatasetInvalid")
    stated = yaml.safe_load(ask(f"{stage.namespace}/tone").out)
    assert stated["state"] == "DatasetInvalid"
    assert stated["message"].startswith("line 17 has no field")
    assert not {"create", "patch", "status"} & set(stated["plan"])
    assert stated["observed"]["pods"][0]["trainer"]["exit_code"] == 65
    assert "default settings" in stated["notes"][0]


def test_every_failure_is_one_sentence_with_the_remedy(stage: Stage, ask: Ask) -> None:
    """Status 1, nothing on standard output, and no traceback."""
    stage.apply()
    cases = {
        f"There is no LoRAFineTune {stage.namespace}/other: kubectl get lft": (f"{stage.namespace}/other", READ),
        "You lack a right (pods is forbidden": (f"{stage.namespace}/tone", READ[:3]),
        "'tone' is not NAMESPACE/NAME: give": ("tone", READ),
    }
    for sentence, (place, rights) in cases.items():
        answer = ask(place, rights=rights)
        assert (answer.code, answer.out) == (1, "")
        assert answer.err.startswith(f"lora-operator: {sentence}")
        assert answer.err.count("\n") == 1
