"""Where an adapter goes, that nothing is overwritten, and that a changed byte is found."""

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tests.trainer.conftest import make_config

from lora_trainer.artifact import (
    MANIFEST,
    Manifest,
    Measured,
    Place,
    check_digests,
    describe,
    discard_partial,
    file_entries,
    find_place,
    loadable,
    publish,
    published,
    read_manifest,
    start_partial,
)
from lora_trainer.contract.names import run_suffix
from lora_trainer.contract.reasons import Reason
from lora_trainer.contract.summary import DatasetStats, ResolvedRun
from lora_trainer.contract.uri import ClaimUri
from lora_trainer.errors import ConfigError, StorageError, VerificationError
from lora_trainer.volumes import Volumes

URI = ClaimUri(claim="adapters", path="team/out")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A mounted claim."""
    (tmp_path / "adapters").mkdir()
    return tmp_path


def place(root: Path, uid: str = "uid-1") -> Place:
    """The place of a run."""
    config = make_config()
    run = dataclasses.replace(config.run, uid=uid)
    return find_place(dataclasses.replace(config, run=run), URI, Volumes(claims=root))


def write_adapter(where: Place) -> None:
    """A finished adapter in the temporary folder."""
    start_partial(where)
    (where.partial / "adapter_model.safetensors").write_bytes(b"weights of " + where.uid.encode())
    (where.partial / MANIFEST).write_text(make_manifest(where.partial, where.uid).to_json(), encoding="utf-8")


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


def test_an_adapter_appears_whole_where_it_was_asked_for(root: Path) -> None:
    """The folder is made with its parents; nothing hidden stays behind."""
    where = place(root)
    write_adapter(where)
    assert not where.path.exists()
    uri, folder = publish(where)
    assert (uri, folder) == (URI, root / "adapters/team/out")
    assert sorted(path.name for path in folder.iterdir()) == ["adapter_model.safetensors", MANIFEST]
    assert [path.name for path in folder.parent.iterdir()] == ["out"]
    artifact = describe(uri, folder, read_manifest(folder))
    assert (artifact.uri, artifact.size_bytes, artifact.rank) == ("pvc://adapters/team/out", 16, 4)
    assert artifact.digest.startswith("sha256:")


def test_an_empty_folder_is_taken(root: Path) -> None:
    """Somebody made the folder beforehand."""
    (root / "adapters/team/out").mkdir(parents=True)
    where = place(root)
    write_adapter(where)
    assert publish(where)[0] == URI


def test_a_second_run_gets_a_folder_of_its_own(root: Path) -> None:
    """The first adapter stays as it was."""
    for uid in ("uid-1", "uid-2"):
        where = place(root, uid)
        write_adapter(where)
        uri, folder = publish(where)
    assert uri == ClaimUri(claim="adapters", path=f"team/out-{run_suffix('uid-2')}")
    assert (folder / "adapter_model.safetensors").read_bytes() == b"weights of uid-2"
    assert (root / "adapters/team/out/adapter_model.safetensors").read_bytes() == b"weights of uid-1"


def test_nothing_is_overwritten_when_both_names_are_taken(root: Path) -> None:
    """The sentence names both."""
    where = place(root)
    for folder in (where.path, where.own[1]):
        folder.mkdir(parents=True)
        (folder / "precious").write_text("x", encoding="utf-8")
    write_adapter(where)
    with pytest.raises(StorageError, match=r"both hold something already: nothing is overwritten"):
        publish(where)
    assert (where.path / "precious").exists()
    assert (where.own[1] / "precious").exists()


def test_an_adapter_that_this_run_published_is_found_again(root: Path) -> None:
    """At either name; another run's is not ours."""
    write_adapter(place(root, "uid-1"))
    publish(place(root, "uid-1"))
    write_adapter(place(root, "uid-2"))
    _, second = publish(place(root, "uid-2"))
    assert published(place(root, "uid-1")) == (URI, root / "adapters/team/out")
    found = published(place(root, "uid-2"))
    assert found is not None
    assert found[1] == second
    assert published(place(root, "uid-3")) is None


def test_leftovers_of_an_earlier_attempt_are_removed_and_nothing_else(root: Path) -> None:
    """A temporary folder with the mark of this run is; one without is told."""
    where = place(root)
    write_adapter(where)
    start_partial(where)
    assert [path.name for path in where.partial.iterdir()] == [".run"]
    (where.partial / ".run").write_text("uid-of-another", encoding="utf-8")
    with pytest.raises(StorageError, match="belongs to another run"):
        start_partial(where)
    assert where.partial.exists()
    with pytest.raises(StorageError, match="belongs to another run"):
        discard_partial(where)


def _killed_before_the_mark(partial: Path) -> None:
    (partial / ".run").unlink()


def _no_room_for_the_mark(partial: Path) -> None:
    (partial / ".run").write_text("", encoding="utf-8")


@pytest.mark.parametrize("interrupt", [_killed_before_the_mark, _no_room_for_the_mark])
def test_a_folder_that_was_left_before_its_mark_was_written_is_used_again(
    root: Path, interrupt: Callable[[Path], None]
) -> None:
    """A retry must not fail for what the first attempt had no time or room for; nobody's data is in it."""
    where = place(root)
    start_partial(where)
    interrupt(where.partial)
    start_partial(where)
    assert (where.partial / ".run").read_text(encoding="utf-8") == "uid-1"
    interrupt(where.partial)
    (where.partial / "precious").write_text("x", encoding="utf-8")
    with pytest.raises(StorageError, match="belongs to another run"):
        start_partial(where)


def test_a_folder_that_could_not_be_published_is_removed(root: Path) -> None:
    """It has no mark any more, but a manifest of this run; the sentence stays that of the failure."""
    where = place(root)
    for folder in (where.path, where.own[1]):
        folder.mkdir(parents=True)
        (folder / "precious").write_text("x", encoding="utf-8")
    write_adapter(where)
    with pytest.raises(StorageError, match="nothing is overwritten"):
        publish(where)
    discard_partial(where)
    assert not where.partial.exists()


def test_a_link_in_the_output_is_refused(root: Path, tmp_path: Path) -> None:
    """It could lead out of the claim."""
    (root / "adapters/team").symlink_to(tmp_path)
    with pytest.raises(ConfigError, match="symbolic link 'team'"):
        place(root)


def test_a_missing_claim_is_a_storage_error(tmp_path: Path) -> None:
    """It is named."""
    with pytest.raises(StorageError, match="the claim adapters is not mounted"):
        place(tmp_path)


def test_a_file_in_place_of_a_folder_is_told(root: Path) -> None:
    """The parent of the output is a file."""
    (root / "adapters/team").write_text("x", encoding="utf-8")
    with pytest.raises(StorageError, match=r"output\.uri pvc://adapters/team/out cannot be written") as caught:
        start_partial(place(root))
    assert caught.value.reason is Reason.STORAGE_ERROR


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
def test_any_change_of_an_adapter_is_found(root: Path, spoil: Any, sentence: str) -> None:
    """A flipped bit, a file lost or added, a manifest that is none."""
    where = place(root)
    write_adapter(where)
    _, folder = publish(where)
    check_digests(folder, read_manifest(folder))
    spoil(folder)
    with pytest.raises(VerificationError) as caught:
        check_digests(folder, read_manifest(folder))
    assert sentence in str(caught.value)


def test_instructions_to_load_an_adapter_are_python_that_can_run() -> None:
    """Transformers knows no pvc:// addresses."""
    assert loadable("org/tiny", "c" * 40) == f'"org/tiny", revision="{"c" * 40}"'
    assert loadable("pvc://models/tiny", "sha256:1") == '"path/of/the/base/model"'
