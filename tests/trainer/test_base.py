"""A base model's files: what is reported before anything is loaded."""

import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from lora_trainer.data.tokenizer import check_tokenizer
from lora_trainer.errors import ConfigError
from lora_trainer.storage import base as bases
from lora_trainer.storage.base import Base, find_base, open_folder
from lora_trainer.storage.hub import Hub
from lora_trainer.storage.model_folder import is_terms, model_files
from lora_trainer.storage.volumes import Volumes

WEIGHTS = "model.safetensors"


@pytest.fixture
def folder(tmp_path: Path, tiny_folder: Path) -> Path:
    """A copy of the tiny model."""
    return shutil.copytree(tiny_folder, tmp_path / "model")


def _cut(folder: Path) -> None:
    (folder / WEIGHTS).write_bytes((folder / WEIGHTS).read_bytes()[:-1000])


def _cut_in_its_header(folder: Path) -> None:
    (folder / WEIGHTS).write_bytes((folder / WEIGHTS).read_bytes()[:300])


def _lengthen(folder: Path) -> None:
    (folder / WEIGHTS).write_bytes((folder / WEIGHTS).read_bytes() + b"\0" * 8)


def _web_page(folder: Path) -> None:
    (folder / WEIGHTS).write_text("<!doctype html><title>Sign in</title>", encoding="utf-8")


def _lose_a_shard(folder: Path) -> None:
    index = {"weight_map": {"a": "model-00001-of-00002.safetensors", "b": WEIGHTS}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")


def _no_model_type(folder: Path) -> None:
    (folder / "config.json").write_text("{}", encoding="utf-8")


@pytest.mark.parametrize(
    ("spoil", "sentence"),
    [
        (_cut, r"its model\.safetensors has \d+ bytes, its header says \d+: it is cut off or damaged"),
        (_cut_in_its_header, r"its model\.safetensors is not a safetensors file, or cut off in its header"),
        (_lengthen, r"its model\.safetensors has \d+ bytes, its header says \d+"),
        (_web_page, r"its model\.safetensors is not a safetensors file"),
        (_lose_a_shard, r"model\.safetensors\.index\.json names model-00001-of-00002\.safetensors, which is not there"),
        (_no_model_type, r"its config\.json is not a configuration with a model_type"),
    ],
)
def test_files_that_are_no_whole_model_are_reported(folder: Path, spoil: Callable[[Path], None], sentence: str) -> None:
    """With the file and the remedy."""
    open_folder(folder)
    spoil(folder)
    with pytest.raises(ConfigError, match=sentence):
        open_folder(folder)


def test_a_model_without_a_tokenizer_is_reported(folder: Path, tiny_base: Base) -> None:
    """Before a GPU is asked for; SentencePiece's file alone is none, as its library is in no image."""
    check_tokenizer(tiny_base, "pvc://models/tiny")
    (folder / "tokenizer.json").rename(folder / "tokenizer.model")
    with pytest.raises(
        ConfigError, match=r"pvc://models/x: it has no tokenizer\.json; add the one that save_pretrained"
    ):
        check_tokenizer(open_folder(folder), "pvc://models/x")
    (folder / "tokenizer.json").write_text('{"cut', encoding="utf-8")
    with pytest.raises(ConfigError, match=r"its tokenizer\.json is not JSON"):
        check_tokenizer(open_folder(folder), "pvc://models/x")


def test_access_is_tried_with_the_configuration() -> None:
    """With the first file: the Hub may give everyone a gated model's license."""
    files = ("LICENSE.txt", "NOTICE.md", "README.md", "config.json", "model.safetensors")
    assert model_files(files, "hf://org/gated") == ("config.json", "LICENSE.txt", "NOTICE.md", "model.safetensors")


@pytest.mark.parametrize(
    ("name", "known"),
    [
        ("LICENSE", True),
        ("LICENCE.md", True),
        ("LICENSE-APACHE-2.0", True),
        ("MODEL_LICENSE", True),
        ("Notice.rst", True),
        ("THIRD_PARTY_NOTICES.md", True),
        ("PROHIBITED_USE_POLICY.md", True),
        ("COPYRIGHT", True),
        ("LICENSE.txt", False),
        ("license.json", False),
        ("license_check.py", False),
        ("README.md", False),
        ("unlicensed.md", False),
    ],
)
def test_licenses_are_known_by_their_names(name: str, known: bool) -> None:
    """What ends as a part of a model does is one, and pins it."""
    assert is_terms(name) is known


def test_a_pod_reads_all_bytes_of_a_claim_once(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whichever of its processes comes first; what was replaced since is read again, and gives another revision."""
    (tmp_path / "claim").mkdir()
    folder.rename(tmp_path / "claim/model")
    read: list[int] = []
    digest = bases._digest

    def counted(files: Sequence[Path]) -> str:
        read.append(len(files))
        return digest(files)

    monkeypatch.setattr(bases, "_digest", counted)
    volumes = Volumes(claims=tmp_path, notes=tmp_path)

    def revision(of: Volumes = volumes) -> str:
        return find_base("pvc://claim/model", of, Hub()).revision

    first = revision()
    assert (revision(), len(read)) == (first, 1)
    assert (revision(Volumes(claims=tmp_path)), len(read)) == (first, 2)
    copy = shutil.copytree(tmp_path / "claim/model", tmp_path / "copy") / WEIGHTS
    content = bytearray(copy.read_bytes())
    content[-1] ^= 1
    copy.write_bytes(content)
    copy.replace(tmp_path / "claim/model" / WEIGHTS)
    changed = revision()
    assert (changed != first, len(read)) == (True, 3)
    assert (revision(), len(read)) == (changed, 3)
