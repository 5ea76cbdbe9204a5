"""A preflight that finds too little room for the run on the claim of its checkpoints, where that is mounted."""

import dataclasses
from types import SimpleNamespace

import pytest
from tests.trainer.conftest import make_config
from tests.trainer.runs import Workplace
from tests.unit.advice_facts import make_plan

from lora_trainer import commands
from lora_trainer.contract.exit_codes import ExitCode
from lora_trainer.contract.reasons import Reason
from lora_trainer.errors import StorageError
from lora_trainer.places.hub import Hub
from lora_trainer.places.volumes import Volumes
from lora_trainer.recipe.claim_room import check_claim, least_saves, still_needed
from lora_trainer.recipe.preflight import preflight

ON_DATA = {"uri": "pvc://data/tone"}
"""The claim of the rows, which is mounted, is that of the checkpoints, too."""


def test_a_claim_is_measured_against_the_plan(workplace: Workplace, monkeypatch: pytest.MonkeyPatch) -> None:
    """With what the run takes, and of what; a claim that is not mounted here is looked at when the training begins."""
    volumes = Volumes(claims=workplace.claims)
    tiny = preflight(make_config(), volumes, Hub()).plan
    assert tiny is not None
    plan = dataclasses.replace(tiny, checkpoint_bytes=2**30, claim_bytes=4 * 2**30)
    monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=3 * 2**30))
    on_data = make_config(output=ON_DATA)
    with pytest.raises(
        StorageError, match=r"takes 4\.0 GiB of PersistentVolumeClaim data, which has 3\.0 GiB free: 3 ch"
    ):
        check_claim(on_data, plan, volumes)
    check_claim(make_config(output={"uri": "pvc://elsewhere/tone"}), plan, volumes)
    check_claim(make_config(output={"uri": "s3://adapters/tone"}), plan, volumes)
    check_claim(on_data, dataclasses.replace(plan, claim_bytes=3 * 2**30), volumes)


@pytest.mark.parametrize("free", [0, 2**40])
def test_a_preflight_ends_where_the_claim_has_too_little_room(
    workplace: Workplace, monkeypatch: pytest.MonkeyPatch, free: int
) -> None:
    """By the command of the stage, which writes why into its summary."""
    monkeypatch.setattr(
        "lora_trainer.recipe.claim_room.shutil", SimpleNamespace(disk_usage=lambda _: SimpleNamespace(free=free))
    )
    monkeypatch.setattr("lora_trainer.ranks.logs.set_up", lambda **_options: None)
    monkeypatch.setattr("signal.signal", lambda *_: None)
    arguments = ["preflight", "-f", str(workplace.manifest_file(output=ON_DATA)), "--claims", str(workplace.claims)]
    status = commands.run_command([*arguments, "--termination-log", str(workplace.termination_log)])
    summary = workplace.summary()
    if free:
        assert (status, summary.reason) == (0, Reason.PREFLIGHT_PASSED)
    else:
        assert (status, summary.reason, summary.preflight) == (ExitCode.STORAGE, Reason.STORAGE_FULL, None)
        assert " of PersistentVolumeClaim data, which has 0.0 GiB free: 3 checkpoints " in summary.message


@pytest.mark.parametrize(
    ("saved", "saves", "needed", "count"),
    [
        pytest.param(0, 9, 30, 3, id="one more than are kept, and the result once one is gone"),
        pytest.param(0, 1, 17, 1, id="a short run saves its last state alone"),
        pytest.param(2, 9, 10, 1, id="resumed: the oldest goes as soon as the next is written"),
        pytest.param(1, 9, 20, 2, id="resumed early"),
        pytest.param(5, 9, 10, 1, id="more than are kept"),
    ],
)
def test_what_a_run_has_saved_is_not_needed_again(saved: int, saves: int, needed: int, count: int) -> None:
    """Of checkpoints of 10 bytes, of which two are kept, and a result of 7."""
    plan = make_plan(checkpoint_bytes=10, claim_bytes=37)
    assert still_needed(make_config(), plan, saved=saved, saves=saves) == (needed, count)


@pytest.mark.parametrize(
    ("checkpoint", "seconds", "steps", "saves"),
    [
        ({}, None, 100, 1),
        ({}, 500, 100, 1),
        ({}, 3000, 100, 6),
        ({}, 3000, 10, 1),
        ({}, 10_000, 2, 1),
        ({"intervalSteps": 20}, None, 100, 5),
        ({"intervalSteps": 20}, 3000, 100, 6),
        ({"intervalSteps": 200}, None, 100, 1),
    ],
)
def test_a_run_is_refused_for_checkpoints_alone_that_it_surely_saves(
    checkpoint: dict[str, int], seconds: int | None, steps: int, saves: int
) -> None:
    """Time counts where a plan knows how long the run's 100 steps take, of which some are left."""
    config = make_config(checkpoint=checkpoint)
    assert least_saves(config, make_plan(seconds=seconds), steps, 100) == saves
