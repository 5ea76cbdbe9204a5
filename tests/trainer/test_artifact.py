"""An adapter's manifest, and that a changed byte is found."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
from tests.trainer.conftest import make_config

from lora_trainer.artifact import (
    MANIFEST,
    Manifest,
    Measured,
    check_digests,
    describe,
    file_entries,
    is_complete,
    loadable,
    manifest_digest,
    read_manifest,
)
from lora_trainer.contract.summary import DatasetStats, ResolvedRun
from lora_trainer.errors import VerificationError


def write_adapter(folder: Path, uid: str = "uid-1") -> Path:
    """A finished adapter."""
    folder.mkdir(parents=True)
    (folder / "adapter_model.safetensors").write_bytes(b"weights of " + uid.encode())
    (folder / MANIFEST).write_text(make_manifest(folder, uid).to_json(), encoding="utf-8")
    return folder


def make_manifest(folder: Path, uid: str) -> Manifest:
    """A manifest over the files of a folder."""
    config = make_config()
    return Manifest(
        base_model="org/tiny",
        base_revision="c" * 40,
        config=dataclasses.replace(config, run=dataclasses.replace(config.run, uid=uid)),
        resolved=filled(ResolvedRun, target_modules=("q_proj",)),
        dataset=filled(DatasetStats),
        measured=filled(Measured),
        versions={"torch": "2"},
        files=file_entries(folder),
    )


def filled(kind: Any, **values: Any) -> Any:
    """An instance with 1, "x" or True in each field."""
    defaults = {"int": 1, "float": 1.0, "str": "x", "bool": True, int: 1, float: 1.0, str: "x", bool: True}
    return kind(**{f.name: values.get(f.name, defaults.get(f.type)) for f in dataclasses.fields(kind)})


def _flip(folder: Path) -> None:
    path = folder / "adapter_model.safetensors"
    path.write_bytes(bytes([path.read_bytes()[0] ^ 1]) + path.read_bytes()[1:])


def _remove(folder: Path) -> None:
    (folder / "adapter_model.safetensors").unlink()


def _add(folder: Path) -> None:
    (folder / "extra.bin").write_bytes(b"x")


def _garbage(folder: Path) -> None:
    (folder / MANIFEST).write_text("{", encoding="utf-8")


def _another_version(folder: Path) -> None:
    document = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    (folder / MANIFEST).write_text(json.dumps({**document, "surprise": 1}), encoding="utf-8")


@pytest.mark.parametrize(
    ("spoil", "sentence"),
    [
        (_flip, "adapter_model.safetensors has sha256"),
        (_remove, "adapter_model.safetensors is missing"),
        (_add, "extra.bin is not in the adapter's manifest"),
        (_garbage, "out/manifest.json cannot be read"),
        (_another_version, "out/manifest.json cannot be read"),
    ],
)
def test_any_change_of_an_adapter_is_found(tmp_path: Path, spoil: Any, sentence: str) -> None:
    """A flipped bit, a file lost or added, a manifest that is none."""
    folder = write_adapter(tmp_path / "out")
    check_digests(folder, read_manifest(folder))
    assert is_complete(folder, "uid-1")
    spoil(folder)
    assert not is_complete(folder, "uid-1")
    with pytest.raises(VerificationError) as caught:
        check_digests(folder, read_manifest(folder))
    assert sentence in str(caught.value)


def test_instructions_to_load_an_adapter_are_python_that_can_run() -> None:
    """Transformers knows no pvc:// addresses."""
    assert loadable("org/tiny", "c" * 40) == f'"org/tiny", revision="{"c" * 40}"'
    assert loadable("pvc://models/tiny", "sha256:1") == '"path/of/the/base/model"'


def test_an_adapter_of_another_run_is_not_complete_for_this_one(tmp_path: Path) -> None:
    """Nor is a folder that is not there."""
    folder = write_adapter(tmp_path / "out")
    assert not is_complete(folder, "uid-2")
    assert not is_complete(tmp_path / "none", "uid-1")


def test_the_summary_tells_where_an_adapter_is_and_what_it_is(tmp_path: Path) -> None:
    """Its digest is that of the manifest, unless the place has one of its own."""
    folder = write_adapter(tmp_path / "out")
    artifact = describe("pvc://adapters/out", manifest_digest(folder), read_manifest(folder))
    assert (artifact.uri, artifact.size_bytes, artifact.rank) == ("pvc://adapters/out", 16, 4)
    assert artifact.digest.startswith("sha256:")
    assert len(artifact.digest) == 71
