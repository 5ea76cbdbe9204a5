"""Files on a claim that the trainer's user may not read: the sentence says which, and what is to be done."""

import contextlib
import errno
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.trainer import tiny
from tests.trainer.conftest import make_config

from lora_trainer.data.dataset_files import locate, locate_validation
from lora_trainer.errors import StorageError, storage_error
from lora_trainer.storage.base import find_base
from lora_trainer.storage.hub import Hub
from lora_trainer.storage.volumes import Volumes


@pytest.fixture
def claims() -> Iterator[Path]:
    """A folder of claims that others than root may enter, too."""
    with tempfile.TemporaryDirectory() as name:
        Path(name).chmod(0o755)
        yield Path(name)


@contextlib.contextmanager
def without_rights(forbidden: Path) -> Iterator[None]:
    """Act as a user whom the folder or file is closed to; root is closed to nothing."""
    mode = forbidden.stat().st_mode
    forbidden.chmod(0)
    was_root = os.geteuid() == 0
    if was_root:
        os.seteuid(65534)
    try:
        yield
    finally:
        if was_root:
            os.seteuid(0)
        forbidden.chmod(mode)


@pytest.mark.parametrize("forbidden", ["data", "data/set", "data/set/a.jsonl"])
@pytest.mark.parametrize("field", ["dataset.uri", "dataset.validationUri"])
def test_data_that_may_not_be_read_is_reported(claims: Path, forbidden: str, field: str) -> None:
    """Kubernetes leaves the owners of files on a claim that is attached to be read as they are."""
    tiny.write_jsonl(claims / "data/set/a.jsonl", [{"text": "a"}])
    config = make_config(
        dataset={"validationUri": "pvc://data/set", "uri": "pvc://data/set", "validationFraction": None}
    )
    find = locate if field == "dataset.uri" else locate_validation
    with without_rights(claims / forbidden), pytest.raises(StorageError) as caught:
        find(config.dataset, Volumes(claims=claims), Hub())
    start = f"{field} is pvc://data/set: "
    assert str(caught.value).startswith(start)
    assert " cannot be read: Permission denied; let user 65534 of the trainer read it" in str(caught.value)


@pytest.mark.parametrize("forbidden", ["models/tiny", "models/tiny/config.json", "models/tiny/model.safetensors"])
def test_a_model_that_may_not_be_read_is_reported(claims: Path, tiny_folder: Path, forbidden: str) -> None:
    """Before it is loaded."""
    shutil.copytree(tiny_folder, claims / "models/tiny")
    with without_rights(claims / forbidden), pytest.raises(StorageError) as caught:
        find_base("pvc://models/tiny", Volumes(claims=claims), Hub())
    assert str(caught.value).startswith("model.uri is pvc://models/tiny: ")
    assert " cannot be read: Permission denied; let user 65534 of the trainer read it" in str(caught.value)


def test_a_volume_that_does_not_follow_the_group_of_the_pod_has_a_remedy_that_helps() -> None:
    """The pod has its fsGroup already: who may write must be changed on the volume."""
    said = str(storage_error(OSError(errno.EACCES, "Permission denied"), "output.uri pvc://adapters/x"))
    assert said == (
        f"output.uri pvc://adapters/x cannot be written: Permission denied; let user {os.geteuid()} and group "
        f"{os.getegid()} of the trainer write there: NFS, EFS and others may ignore fsGroup (docs/namespaces.md)"
    )


def test_a_volume_that_is_mounted_to_be_read_has_another_remedy() -> None:
    """No owner can write there."""
    said = str(storage_error(OSError(errno.EROFS, "Read-only file system"), "the adapter"))
    assert said == "the adapter cannot be written: Read-only file system; mount the volume writable"
