"""Stages behind the training that are tried again within the pod."""

import threading
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from tests.trainer.conftest import make_config
from tests.trainer.test_manifest import write_adapter

from lora_trainer.distributed.reports import Failure
from lora_trainer.host import child
from lora_trainer.host.child import STOPPED, StageFailedError, Stages
from lora_trainer.host.supervisor import Settings, Supervisor
from lora_trainer.host.workspace import Workspace
from lora_trainer.spec.exit_codes import ExitCode, reason_of
from lora_trainer.spec.reasons import Reason
from lora_trainer.storage.manifest import read_manifest
from lora_trainer.storage.volumes import Volumes


def failure(code: ExitCode) -> Failure:
    """How a stage ended."""
    return Failure(code=int(code), reason=reason_of(code), message="it failed")


@dataclass
class Scripted(Stages):
    """Stages that end as the `script` says, the last one again and again; each try takes `seconds`."""

    script: list[Failure | None] = field(default_factory=list)
    seconds: float = 0.0
    now: float = 0.0
    tries: int = 0
    pauses: list[float] = field(default_factory=list)

    def run(self, stage: str, *arguments: str | Path, sharded: bool = False) -> None:
        """End."""
        assert (stage, arguments, sharded) == ("verify", ("--folder", Path("x")), True)
        found = self.script[min(self.tries, len(self.script) - 1)]
        self.tries, self.now = self.tries + 1, self.now + self.seconds
        if found is not None:
            raise StageFailedError(self.aborted or found)

    def wait(self, seconds: float) -> None:
        """Let time pass."""
        self.pauses.append(seconds)
        self.now += seconds


def scripted(monkeypatch: pytest.MonkeyPatch, *script: Failure | None, seconds: float = 0.0) -> Scripted:
    """Such stages, on whose clock `insist` looks."""
    places = Volumes(claims=Path("claims"), config_maps=Path("maps"))
    stages = Scripted(
        config_file=Path("x"), volumes=places, take=lambda _: None, grace_s=1, script=list(script), seconds=seconds
    )
    monkeypatch.setattr(child, "time", SimpleNamespace(monotonic=lambda: stages.now))
    return stages


def insist(stages: Stages) -> Failure | None:
    """How it ended."""
    try:
        stages.insist("verify", "--folder", Path("x"), sharded=True)
    except StageFailedError as error:
        return error.failure
    return None


@pytest.mark.parametrize("code", [ExitCode.TRANSIENT, ExitCode.STORAGE, ExitCode.GPU_FAULT, ExitCode.PEER_FAILED])
def test_what_passes_costs_no_pod(monkeypatch: pytest.MonkeyPatch, code: ExitCode) -> None:
    """A server that answers again, a volume that has room, a GPU that is back, processes that find each other."""
    stages = scripted(monkeypatch, failure(code), failure(code), None)
    assert insist(stages) is None
    assert stages.pauses == [5, 10]


@pytest.mark.parametrize("code", [ExitCode.VERIFICATION_FAILED, ExitCode.ACCESS_DENIED, ExitCode.INTERNAL])
def test_what_stays_is_not_tried_again(monkeypatch: pytest.MonkeyPatch, code: ExitCode) -> None:
    """Nor is what nobody can explain."""
    stages = scripted(monkeypatch, failure(code))
    assert insist(stages) == failure(code)
    assert stages.tries == 1


def test_a_stage_is_not_tried_again_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its last failure counts; a merge that takes longer than the patience gets a second try."""
    lasting = failure(ExitCode.TRANSIENT)
    stages = scripted(monkeypatch, lasting)
    assert insist(stages) == lasting
    assert stages.pauses == [5, 10, 20, 40, 60, 60, 60]
    assert sum(stages.pauses) <= child.PATIENCE_S
    slow = scripted(monkeypatch, lasting, seconds=1000)
    assert insist(slow) == lasting
    assert slow.tries == 2


def test_a_run_that_is_asked_to_stop_or_taken_over_does_not_insist(monkeypatch: pytest.MonkeyPatch) -> None:
    """It ends within the pause, and nothing is begun that somebody else does by now."""
    stages = scripted(monkeypatch, failure(ExitCode.TRANSIENT))
    stages.aborted = Failure(code=int(ExitCode.TRANSIENT), reason=Reason.OUTPUT_LOCKED, message="taken over")
    assert insist(stages) == stages.aborted
    assert stages.tries == 0

    monkeypatch.undo()
    lost = scripted(monkeypatch, failure(ExitCode.TRANSIENT))
    taken_over, begun = Failure(code=int(ExitCode.TRANSIENT), reason=Reason.OUTPUT_LOCKED, message="taken over"), []
    monkeypatch.setattr(Scripted, "wait", lambda stages, _seconds: stages.abort(taken_over))
    with pytest.raises(StageFailedError, match="taken over"):
        lost.insist("verify", "--folder", Path("x"), sharded=True, begin=lambda: begun.append(lost.tries))
    assert begun == [0], "another trainer may be at work in the folder"

    monkeypatch.undo()
    waiting = scripted(monkeypatch, failure(ExitCode.TRANSIENT))
    monkeypatch.setattr(Scripted, "wait", Stages.wait)
    threading.Timer(0.1, waiting.stopping.set).start()
    assert insist(waiting) == STOPPED
    assert waiting.tries == 1


def test_a_merge_that_fills_its_volume_is_not_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """Others save on it, too."""
    stages = scripted(monkeypatch, None)
    full = Failure(code=int(ExitCode.STORAGE), reason=Reason.STORAGE_FULL, message="full")
    tries: list[str] = []

    def fill(_stages: Stages, stage: str, *_: str | Path, sharded: bool = False) -> None:
        assert not sharded
        tries.append(stage)
        raise StageFailedError(full if len(tries) < 4 else failure(ExitCode.VERIFICATION_FAILED))

    monkeypatch.setattr(Scripted, "run", fill)
    for stage in ("merge", "publish"):
        with pytest.raises(StageFailedError):
            stages.insist(stage)
    assert tries == ["merge", "publish", "publish", "publish"]


@pytest.mark.parametrize("lasts", [False, True])
def test_a_merge_beside_the_adapter_is_given_up_only_where_its_failure_lasts(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, *, lasts: bool
) -> None:
    """Each try begins with an empty folder."""
    workspace = Workspace(folder=tmp_path, uri=None)
    write_adapter(workspace.staged)
    tries: list[int] = []

    def merge(_stages: Stages, stage: str, *_arguments: str | Path, sharded: bool = False) -> None:
        assert (stage, sharded, list(workspace.merged.iterdir())) == ("merge", False, [])
        (workspace.merged / "config.json").touch()
        tries.append(len(tries))
        if lasts or tries == [0]:
            raise StageFailedError(failure(ExitCode.TRANSIENT))

    monkeypatch.setattr(Stages, "run", merge)
    monkeypatch.setattr(child, "PAUSES_S", (0.001, 0.001))
    monkeypatch.setattr(child, "PATIENCE_S", 0.05 if lasts else 60.0)
    volumes = Volumes(claims=tmp_path)
    supervisor = Supervisor(config=make_config(output={"merge": "Both"}), settings=Settings(volumes=volumes, port=None))
    stages = Stages(config_file=tmp_path / "x", volumes=volumes, take=lambda _: None, grace_s=1)
    lock: Any = SimpleNamespace(check=lambda: None)
    found = supervisor._merged(stages, workspace, lock)
    assert found == (workspace.staged if lasts else workspace.merged)
    assert read_manifest(workspace.staged).merge_failure == ("it failed" if lasts else None)
    assert len(tries) > 1
