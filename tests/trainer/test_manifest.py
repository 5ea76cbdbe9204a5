"""An adapter's manifest, and that a changed byte is found."""

import dataclasses
import errno
import json
import os
from pathlib import Path
from typing import Any

import pytest
from tests.trainer.conftest import make_config

from lora_trainer.errors import StorageError, VerificationError
from lora_trainer.spec.summary import DatasetStats, ResolvedRun, Verification
from lora_trainer.storage import manifest as manifests
from lora_trainer.storage.manifest import (
    Form,
    Manifest,
    Measured,
    Serving,
    check_digests,
    describe,
    finish,
    is_complete,
    loadable,
    manifest_digest,
    read_manifest,
    write_sealed,
)
from lora_trainer.storage.sealed import MANIFEST, sync


def write_adapter(folder: Path, uid: str = "uid-1") -> Path:
    """A finished adapter."""
    folder.mkdir(parents=True)
    (folder / "adapter_model.safetensors").write_bytes(b"weights of " + uid.encode())
    (folder / "merged").mkdir()
    (folder / "merged/model.safetensors").write_bytes(b"merged")
    write_sealed(folder, make_manifest(uid))
    return folder


def make_manifest(uid: str) -> Manifest:
    """A manifest without files."""
    config = make_config()
    return Manifest(
        base_model="org/tiny",
        base_revision="c" * 40,
        config=dataclasses.replace(config, run=dataclasses.replace(config.run, uid=uid)),
        resolved=filled(ResolvedRun, target_modules=("q_proj",), kernels=(), kernels_left_out=()),
        dataset=filled(DatasetStats),
        measured=filled(Measured),
        noise=0.001,
        verbatim=False,
        versions={"torch": "2"},
        serving=Serving(servable=True, text="--enable-lora --max-lora-rank 8", rank=4),
        files=(),
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


def _add_below(folder: Path) -> None:
    (folder / "merged/more").mkdir()
    (folder / "merged/more/extra.bin").write_bytes(b"x")


def _flip_below(folder: Path) -> None:
    (folder / "merged/model.safetensors").write_bytes(b"other")


def _link(folder: Path) -> None:
    (folder / "link").symlink_to("manifest.json")


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
        (_add_below, "merged/more/extra.bin is not in the adapter's manifest"),
        (_flip_below, "merged/model.safetensors has sha256"),
        (_link, "link is not in the adapter's manifest"),
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


@pytest.mark.parametrize(
    ("form", "servable", "serving"),
    [
        (Form.ADAPTER, False, "no DoRA"),
        (Form.MERGED, True, ""),
        (Form.BOTH, True, "no DoRA"),
    ],
)
def test_the_summary_tells_where_a_result_is_and_what_it_is(
    tmp_path: Path, form: Form, servable: bool, serving: str
) -> None:
    """Its digest is that of the manifest; a merged model can be served where its adapter cannot."""
    folder = write_adapter(tmp_path / "out")
    judged = Serving(servable=False, text="no DoRA", rank=8)
    manifest = dataclasses.replace(read_manifest(folder), format=form, serving=judged)
    artifact = describe("pvc://adapters/out", manifest_digest(folder), manifest)
    assert (artifact.uri, artifact.size_bytes, artifact.rank) == ("pvc://adapters/out", 22, 8)
    assert (artifact.format, artifact.servable, artifact.serving) == (form.value, servable, serving)
    assert artifact.digest.startswith("sha256:")
    assert len(artifact.digest) == 71


def test_the_log_is_a_part_of_the_result_however_often_it_is_put_there(tmp_path: Path) -> None:
    """Every attempt to publish has logged some more; without a log only the verification is noted."""
    folder, log = write_adapter(tmp_path / "out"), tmp_path / "train.log"
    before = (folder / MANIFEST).read_bytes()
    finish(folder, log, None)
    assert (folder / MANIFEST).read_bytes() == before
    verification = Verification(loss=1.5, difference=0.001, noise=0.002, tolerance=0.006)
    finish(folder, log, verification)
    assert read_manifest(folder).verification == verification
    for text in ("one\n", "one\ntwo\n"):
        log.write_text(text, encoding="utf-8")
        finish(folder, log, verification)
        assert (folder / "train.log").read_text(encoding="utf-8") == text
        assert is_complete(folder, "uid-1")
    paths = [entry.path for entry in read_manifest(folder).files]
    assert paths == ["adapter_model.safetensors", "merged/model.safetensors", "train.log"]


@pytest.mark.parametrize("before", ["", "one\n"], ids=["the first log", "another one"])
def test_a_result_whose_log_was_cut_off_is_complete_for_its_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, before: str
) -> None:
    """By a full volume or a kill between the log and the manifest: the next attempt puts both there anew. Elsewhere
    a log that the manifest does not vouch for is damage like any other."""
    folder, log = write_adapter(tmp_path / "out"), tmp_path / "train.log"
    if before:
        log.write_text(before, encoding="utf-8")
        finish(folder, log, None)
    log.write_text(f"{before}two\n", encoding="utf-8")

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(manifests, "write_seal", full)
        with pytest.raises(StorageError):
            finish(folder, log, None)
    assert is_complete(folder, "uid-1")
    with pytest.raises(VerificationError, match=r"train\.log"):
        check_digests(folder, read_manifest(folder))
    finish(folder, log, None)
    check_digests(folder, read_manifest(folder))
    (folder / "train.log").unlink()
    assert is_complete(folder, "uid-1")


def test_a_link_in_the_place_of_the_log_is_not_followed(tmp_path: Path) -> None:
    """Who may write to the claim could have any file of the pod published, its environment with all tokens for one."""
    folder, log, secret = write_adapter(tmp_path / "out"), tmp_path / "train.log", tmp_path / "environ"
    secret.write_text("HF_TOKEN=hf_secret", encoding="utf-8")
    log.symlink_to(secret)
    finish(folder, log, None)
    assert not (folder / "train.log").exists()
    assert is_complete(folder, "uid-1")
    log.unlink()
    log.write_text("one\n", encoding="utf-8")
    (folder / "train.log").symlink_to(secret)
    finish(folder, log, None)
    assert secret.read_text(encoding="utf-8") == "HF_TOKEN=hf_secret"
    assert not (folder / "train.log").is_symlink()


def test_a_volume_that_cannot_sync_a_folder_is_good_enough(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As an SMB share; a file that cannot be synced is an error there, too."""

    def refused(_descriptor: int) -> None:
        raise OSError(errno.EINVAL, "Invalid argument")

    monkeypatch.setattr(os, "fsync", refused)
    sync(tmp_path)
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match="Invalid argument"):
        sync(tmp_path / "file")
