"""A preflight that finds too little room for the run on the claim of its checkpoints, where that is mounted."""

import dataclasses
from types import SimpleNamespace

import pytest
from tests.trainer.conftest import make_config
from tests.trainer.runs import Workplace

from lora_trainer import commands
from lora_trainer.contract.exit_codes import ExitCode
from lora_trainer.contract.reasons import Reason
from lora_trainer.errors import StorageError
from lora_trainer.places.hub import Hub
from lora_trainer.places.volumes import Volumes
from lora_trainer.recipe.preflight import check_claim, preflight

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
        "lora_trainer.recipe.preflight.shutil", SimpleNamespace(disk_usage=lambda _: SimpleNamespace(free=free))
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
