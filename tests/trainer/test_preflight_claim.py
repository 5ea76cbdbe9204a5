"""Whether a run is refused for want of room on the claim of its checkpoints: by its preflight, where that mounts the
claim, and by its training. None is that would end well."""

import dataclasses
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from tests.trainer.conftest import make_config
from tests.trainer.runs import Workplace
from tests.unit.advice_facts import make_plan

from lora_trainer import commands
from lora_trainer.errors import StorageError
from lora_trainer.plan.architecture import GUESSED
from lora_trainer.spec.exit_codes import ExitCode
from lora_trainer.spec.reasons import Reason
from lora_trainer.storage.hub import Hub
from lora_trainer.storage.volumes import Volumes
from lora_trainer.train.claim_room import check_claim, check_room
from lora_trainer.train.preflight import preflight

ON_DATA = {"uri": "pvc://data/tone"}
"""The claim of the rows, which is mounted, is that of the checkpoints, too."""
STOPS_EARLY = {"training": {"evalSteps": 5, "earlyStoppingPatience": 2}}


@pytest.fixture
def free(monkeypatch: pytest.MonkeyPatch) -> Any:
    """How many bytes volumes have free."""
    usage = SimpleNamespace(free=0)
    monkeypatch.setattr("lora_trainer.train.claim_room.shutil", SimpleNamespace(disk_usage=lambda _: usage))
    return usage


def test_a_claim_is_measured_against_the_plan(workplace: Workplace, free: Any) -> None:
    """With what the run surely takes, and of what; a claim that is not mounted here is looked at when the training
    begins."""
    volumes = Volumes(claims=workplace.claims)
    free.free = 2**30
    tiny = preflight(make_config(), volumes, Hub()).plan
    assert tiny is not None
    plan = dataclasses.replace(tiny, checkpoint_bytes=2**30, claim_bytes=4 * 2**30, seconds=2000)
    on_data = make_config(output=ON_DATA)
    expected = r"takes at least 2\.0 GiB of PersistentVolumeClaim data, which has 1\.0 GiB free, and up to 4\.0 GiB in "
    with pytest.raises(StorageError, match=expected + r"all: 3 checkpoints of 1\.0 GiB at a time .* the claim$"):
        check_claim(on_data, plan, volumes)
    check_claim(make_config(output={"uri": "pvc://elsewhere/tone"}), plan, volumes)
    check_claim(make_config(output={"uri": "s3://adapters/tone"}), plan, volumes)
    check_claim(on_data, dataclasses.replace(plan, spread=GUESSED), volumes)
    free.free = 2 * 2**30
    check_claim(on_data, plan, volumes)
    long = dataclasses.replace(plan, seconds=3000)
    with pytest.raises(StorageError, match=r"takes at least 3\.0 GiB .* with a lower checkpoint\.keep$"):
        check_claim(on_data, long, volumes)
    free.free = 3 * 2**30
    check_claim(on_data, long, volumes)


@pytest.mark.parametrize("room", [0, 2**40])
def test_a_preflight_ends_where_the_claim_has_too_little_room(
    workplace: Workplace, monkeypatch: pytest.MonkeyPatch, free: Any, room: int
) -> None:
    """By the command of the stage, which writes why into its summary."""
    free.free = room
    monkeypatch.setattr("lora_trainer.distributed.logs.set_up", lambda **_options: None)
    monkeypatch.setattr("signal.signal", lambda *_: None)
    arguments = ["preflight", "-f", str(workplace.manifest_file(output=ON_DATA)), "--claims", str(workplace.claims)]
    status = commands.run_command([*arguments, "--termination-log", str(workplace.termination_log)])
    summary = workplace.summary()
    if room:
        assert (status, summary.reason) == (0, Reason.PREFLIGHT_PASSED)
    else:
        assert (status, summary.reason, summary.preflight) == (ExitCode.STORAGE, Reason.STORAGE_FULL, None)
        assert " of PersistentVolumeClaim data, which has 0.0 GiB free" in summary.message


@pytest.mark.parametrize(
    ("spec", "saved", "step", "least"),
    [
        pytest.param({}, 0, 0, 17, id="a short run: one checkpoint, and the result"),
        pytest.param({"checkpoint": {"intervalSteps": 25}}, 0, 0, 17, id="about as many checkpoints as are kept"),
        pytest.param({"checkpoint": {"intervalSteps": 20}}, 0, 0, 30, id="more checkpoints than are kept"),
        pytest.param({"checkpoint": {"intervalSeconds": 200}}, 0, 0, 30, id="more by the clock"),
        pytest.param({"checkpoint": {"intervalSeconds": 200}}, 0, 60, 17, id="fewer in what is left"),
        pytest.param({"checkpoint": {"intervalSteps": 20}}, 1, 4, 20, id="resumed early"),
        pytest.param({"checkpoint": {"keep": 1}}, 0, 0, 27, id="of the plan's sum the rest is the result"),
        pytest.param({}, 0, 40, 17, id="from another run's state"),
        pytest.param({}, 1, 40, 10, id="resumed: the next, beside which the oldest may go"),
        pytest.param({"checkpoint": {"intervalSteps": 5}}, 5, 40, 10, id="more than are kept"),
        pytest.param({}, 2, 100, 0, id="the last step is saved"),
        pytest.param(STOPS_EARLY, 0, 0, 17, id="early stopping: one is saved at the end"),
        pytest.param(STOPS_EARLY, 1, 40, 0, id="early stopping: it may have stopped"),
        pytest.param({"output": {**ON_DATA, "merge": "Merged"}}, 0, 0, 17, id="with the merged model"),
        pytest.param({"output": {**ON_DATA, "merge": "Both"}}, 0, 0, 13, id="which Both succeeds without"),
        pytest.param({"output": {"uri": "s3://adapters/tone"}}, 0, 0, 0, id="without a claim"),
    ],
)
def test_a_training_is_refused_only_for_what_it_surely_writes(
    tmp_path: Path, free: Any, *, spec: dict[str, Any], saved: int, step: int, least: int
) -> None:
    """Of 100 steps, checkpoints of 10 bytes, and a result of 7, of which the adapter is 3."""
    config, plan = (
        make_config(**spec),
        make_plan(checkpoint_bytes=10, claim_bytes=37, adapter_file_bytes=3, seconds=1000),
    )
    for number in range(saved):
        (tmp_path / f"step-{number:08}").mkdir()
    free.free = least
    check_room(config, plan, tmp_path, step=step, total=100)
    if least:
        free.free = least - 1
        with pytest.raises(StorageError, match="free space or enlarge the claim"):
            check_room(config, plan, tmp_path, step=step, total=100)


@pytest.mark.parametrize("name", ["rows-0123456789abcdef", ".step-00000006.01234567"])
def test_what_a_checkpoint_removes_for_itself_counts_as_free_and_stays_until_then(
    tmp_path: Path, free: Any, name: str
) -> None:
    """Rows that are removed too soon are encoded again."""
    (tmp_path / name).mkdir()
    (tmp_path / name / "file").write_bytes(bytes(16))
    plan = make_plan(checkpoint_bytes=10, claim_bytes=37)
    free.free = 1
    check_room(make_config(), plan, tmp_path, step=0, total=100)
    free.free = 0
    with pytest.raises(StorageError):
        check_room(make_config(), plan, tmp_path, step=0, total=100)
    assert (tmp_path / name / "file").exists()


@pytest.mark.parametrize(
    ("merge", "checkpoint", "saved", "remedy"),
    [
        pytest.param("Merged", 10, 0, "output.merge: Adapter", id="the merged model is the larger part"),
        pytest.param("Merged", 30, 0, None, id="it is the smaller part"),
        pytest.param("Both", 10, 0, None, id="it is not asked for"),
        pytest.param("Adapter", 10, 2, "a lower checkpoint.keep", id="of those that are kept one goes"),
    ],
)
def test_the_remedy_is_one_that_makes_room(
    tmp_path: Path, free: Any, *, merge: str, checkpoint: int, saved: int, remedy: str | None
) -> None:
    """Beside more space."""
    plan = make_plan(checkpoint_bytes=checkpoint, claim_bytes=3 * checkpoint + 20, adapter_file_bytes=3)
    for number in range(saved):
        (tmp_path / f"step-{number:08}").mkdir()
    free.free = 0
    with pytest.raises(StorageError) as caught:
        check_room(make_config(output={**ON_DATA, "merge": merge}), plan, tmp_path, step=saved, total=100)
    change = f", or create a new LoRAFineTune with {remedy}" if remedy else ""
    assert str(caught.value).endswith(f"free space or enlarge the claim{change}")
