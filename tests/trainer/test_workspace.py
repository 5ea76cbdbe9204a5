"""The folder that a run works in: its own, found again, and nobody else's."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from tests.trainer.conftest import make_config

from lora_trainer.errors import ConfigError, StorageError
from lora_trainer.host.supervisor import Supervisor
from lora_trainer.host.workspace import Workspace, open_workspace
from lora_trainer.spec.names import run_suffix
from lora_trainer.spec.summary import SavedState
from lora_trainer.spec.uri import ClaimUri
from lora_trainer.storage.lock import held
from lora_trainer.storage.run_folders import FOLDER, folders_of_name
from lora_trainer.storage.volumes import Volumes

NAME = f"tiny-{run_suffix('uid-1')}"


@pytest.fixture
def volumes(tmp_path: Path) -> Volumes:
    """A claim for adapters and one for checkpoints."""
    for claim in ("adapters", "states"):
        (tmp_path / claim).mkdir()
    return Volumes(claims=tmp_path, config_maps=tmp_path)


def test_a_run_finds_its_folder_again_on_the_claim_of_its_output(volumes: Volumes) -> None:
    """By its name and uid."""
    config = make_config()
    with open_workspace(config, volumes) as workspace:
        assert workspace.folder == volumes.claims / "adapters" / FOLDER / NAME
        assert str(workspace.uri) == f"pvc://adapters/{FOLDER}/{NAME}"
        (workspace.folder / "step-00000001").mkdir()
        workspace.remove_if_empty()
    with open_workspace(config, volumes) as again:
        assert (again.folder / "step-00000001").exists()


def test_the_claim_for_checkpoints_comes_first(volumes: Volumes) -> None:
    """Also where the output goes to no claim at all."""
    config = make_config(checkpoint={"volumeClaimName": "states"}, output={"uri": "s3://bucket/out"})
    with open_workspace(config, volumes) as workspace:
        assert workspace.folder.parent == volumes.claims / "states" / FOLDER


def test_without_a_claim_the_folder_is_temporary(volumes: Volumes, tmp_path: Path) -> None:
    """And gone at the end."""
    with open_workspace(make_config(output={"uri": "s3://bucket/out"}), volumes, tmp_path) as workspace:
        assert workspace.folder.parent == tmp_path
        assert not workspace.durable
        (workspace.folder / "step-00000001").mkdir()
    assert not workspace.folder.exists()


def test_a_folder_without_a_state_is_removed_and_others_are_not_touched(volumes: Volumes) -> None:
    """Neither another run's nor one that somebody locks."""
    config = make_config()
    with open_workspace(config, volumes) as workspace:
        other = workspace.folder.with_name("tiny-other")
        other.mkdir()
        with held(workspace.folder, "the run's folder"):
            workspace.remove_if_empty()
            assert workspace.folder.exists()
        workspace.remove_if_empty()
    assert list((volumes.claims / "adapters" / FOLDER).iterdir()) == [other]
    other.rmdir()
    with open_workspace(config, volumes) as workspace:
        workspace.remove_if_empty()
    assert list((volumes.claims / "adapters").iterdir()) == []


@pytest.mark.parametrize("link", [FOLDER, f"{FOLDER}/{NAME}"])
def test_a_symbolic_link_on_the_way_is_refused(volumes: Volumes, tmp_path: Path, link: str) -> None:
    """It could lead to another run's folder or to the pod's own files."""
    (tmp_path / "target").mkdir()
    path = volumes.claims / "adapters" / link
    path.parent.mkdir(exist_ok=True)
    path.symlink_to(tmp_path / "target")
    with pytest.raises(ConfigError, match="leads through the symbolic link"), open_workspace(make_config(), volumes):
        pass
    assert list((tmp_path / "target").iterdir()) == []


def test_a_claim_that_is_not_mounted_is_named(volumes: Volumes) -> None:
    """With the folder that is missing."""
    config = make_config(checkpoint={"volumeClaimName": "none"})
    with pytest.raises(StorageError, match="the claim none is not mounted"), open_workspace(config, volumes):
        pass


def test_the_folders_of_a_name_are_those_with_a_suffix_of_a_run(volumes: Volumes, tmp_path: Path) -> None:
    """Not those of a longer name, no files, no links."""
    parent = volumes.claims / "adapters" / FOLDER
    for name in ("tiny-abcde", "tiny-22222", "tiny-long-abcde", "tiny-abcd1", "tiny", "tiny-abcdef"):
        (parent / name).mkdir(parents=True)
    (parent / "tiny-fffff").touch()
    (parent / "tiny-ggggg").symlink_to(tmp_path)
    found = folders_of_name("tiny", "adapters", volumes)
    assert [path.name for path in found] == ["tiny-22222", "tiny-abcde"]
    assert folders_of_name("tiny", "states", volumes) == ()


def test_a_checkpoint_of_another_run_is_not_named_as_ones_own(tmp_path: Path) -> None:
    """A run that goes on from another's step, and ends before it has saved its own."""
    workspace = Workspace(folder=tmp_path, uri=ClaimUri(claim="adapters", path=f"{FOLDER}/longer-x"))
    progress = SimpleNamespace(checkpoint_step=None, resumed_step=300)
    attempt: Any = SimpleNamespace(progress=progress, workspace=workspace)
    assert Supervisor._saved_state(attempt) is None
    (tmp_path / "step-00000300").mkdir()
    assert Supervisor._saved_state(attempt) == SavedState(
        uri=f"pvc://adapters/{FOLDER}/longer-x/step-00000300", step=300
    )
