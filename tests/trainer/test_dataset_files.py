"""Where a data set is looked for, and which files of a Hub repository belong to a split."""

import logging
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.trainer import tiny
from tests.trainer.conftest import make_config

from hub.server import HubServer
from lora_trainer.data.dataset_files import choose_split, locate, locate_validation
from lora_trainer.data.file_kinds import ENDINGS
from lora_trainer.errors import ConfigError, DatasetError, NotFoundError, TrainerError
from lora_trainer.storage.hub import Hub
from lora_trainer.storage.volumes import Volumes


@pytest.fixture
def server(tmp_path: Path) -> Iterator[HubServer]:
    """A Hub with data sets in the usual layouts."""
    root = tmp_path / "hub/datasets/org"
    for name in ("train", "test"):
        tiny.write_jsonl(root / f"chats/data/{name}.jsonl", tiny.chats(3))
    for name in ("train_sft-00000-of-00002", "train_sft-00001-of-00002", "test_sft-00000-of-00001"):
        (root / "shards/data").mkdir(parents=True, exist_ok=True)
        (root / f"shards/data/{name}.parquet").write_bytes(b"PAR1")
    tiny.write_jsonl(root / "alone/rows.jsonl", tiny.chats(3))
    with HubServer(tmp_path / "hub").start() as hub:
        yield hub


def hub_files(server: HubServer, tmp_path: Path, **dataset: Any) -> tuple[list[str], list[str]]:
    """Names of the training files and of the held-out files."""
    hub = Hub(environment={"HF_ENDPOINT": server.url}, cache=tmp_path / "cache", sleep=lambda seconds: None)
    config = make_config(dataset=dataset).dataset
    found = (locate(config, Volumes(), hub).files, locate_validation(config, Volumes(), hub).files)
    assert all(path.is_file() for files in found for _, path in files)
    training, held_out = ([name for name, _ in files] for files in found)
    return training, held_out


@pytest.mark.parametrize(
    ("dataset", "training", "held_out"),
    [
        ({"uri": "hf://org/chats", "validationFraction": "0.1"}, ["data/train.jsonl"], []),
        ({"uri": "hf://org/chats", "split": "test", "validationFraction": "0.1"}, ["data/test.jsonl"], []),
        ({"uri": "hf://org/chats", "validationUri": "hf://org/chats"}, ["data/train.jsonl"], ["data/test.jsonl"]),
        ({"uri": "hf://org/chats", "validationUri": "hf://org/alone"}, ["data/train.jsonl"], ["rows.jsonl"]),
        (
            {"uri": "hf://org/shards", "split": "train_sft", "validationFraction": "0.1"},
            ["data/train_sft-00000-of-00002.parquet", "data/train_sft-00001-of-00002.parquet"],
            [],
        ),
    ],
)
def test_a_data_set_on_the_hub_gives_the_files_of_its_split(
    *, server: HubServer, tmp_path: Path, dataset: dict[str, Any], training: list[str], held_out: list[str]
) -> None:
    """And, where validationUri asks for it, those of validation or test."""
    dataset.setdefault("validationFraction", None)
    assert hub_files(server, tmp_path, **dataset) == (training, held_out)


@pytest.mark.parametrize(
    ("dataset", "sentence"),
    [
        (
            {"uri": "hf://org/shards"},
            (
                "dataset.uri is hf://org/shards: it has no split train; its splits are test_sft, train_sft; "
                "set dataset.split to one of them"
            ),
        ),
        (
            {"validationUri": "hf://org/alone", "uri": "hf://org/alone", "validationFraction": None},
            "dataset.validationUri is hf://org/alone: it has no split validation or test; its files are rows.jsonl",
        ),
    ],
)
def test_a_split_that_is_not_there_is_reported_with_what_is(
    server: HubServer, tmp_path: Path, dataset: dict[str, Any], sentence: str
) -> None:
    """The remedy can be taken from the sentence."""
    with pytest.raises(DatasetError) as caught:
        hub_files(server, tmp_path, **dataset)
    assert str(caught.value).startswith(sentence)


@pytest.mark.parametrize(
    ("names", "chosen"),
    [
        (["README.md", "train.jsonl", "test.jsonl"], ("train.jsonl",)),
        (["a.json", "b.csv", "dataset_infos.json"], ("a.json", "b.csv")),
        (["a.jsonl", "validation.jsonl", "dev.jsonl"], ("a.jsonl",)),
        (["data.parquet"], ("data.parquet",)),
        (
            ["constraints.jsonl", "restrained.csv", "valuation.jsonl"],
            ("constraints.jsonl", "restrained.csv", "valuation.jsonl"),
        ),
        (["retrieval.jsonl", "latest.csv", "devops/rows.json"], ("retrieval.jsonl", "latest.csv", "devops/rows.json")),
        (["rows.jsonl", "testset.jsonl", "myEval.jsonl", "val-0.csv"], ("rows.jsonl",)),
        (
            ["train_sft.jsonl", "trainSet.csv", "training/a.json", "constraints.csv"],
            ("train_sft.jsonl", "trainSet.csv", "training/a.json"),
        ),
        (["data/train-00000-of-00001-ab12.parquet", "data/train_gen-0-of-1.parquet", "train.jsonl"], (0,)),
        (["data/train-00000-of-00002.jsonl.gz", "data/train-00001-of-00002.json.zst", "test-0-of-1.csv"], (0, 1)),
        (["train.jsonl.gz", "test.csv.zst", "README.md", ".gitattributes"], (0,)),
        (["train.jsonl", "images.zip", "test.jsonl.bz2"], (0,)),
        (["._train.jsonl", "train.jsonl", "data/.train.csv", ".cache/train.parquet", ".git/train.zip"], (1,)),
        ([".old-00000-of-00001.parquet", "train-00000-of-00001.parquet", "rows.jsonl"], (1,)),
    ],
)
def test_training_files_are_reported_by_name(names: list[str], chosen: tuple[Any, ...]) -> None:
    """Shards name their split exactly; else `train` where it exists, else what is named for no other split."""
    assert choose_split(names, ("train",), where="x") == tuple(names[c] if isinstance(c, int) else c for c in chosen)


@pytest.mark.parametrize(
    ("names", "sentence"),
    [
        (["a.txt", "b.arrow"], f"x: it holds no file that ends in {ENDINGS} (found a.txt, b.arrow)"),
        ([".a.jsonl"], f"x: it holds no file that ends in {ENDINGS} (found .a.jsonl; hidden files are not read)"),
        (
            ["main/train-00000-of-00001.parquet", "socratic/train-00000-of-00001.parquet"],
            "x: it holds several subsets (main, socratic)",
        ),
    ],
)
def test_a_repository_that_leaves_no_choice_is_reported(names: list[str], sentence: str) -> None:
    """No file that is read, or files of subsets with rows of different kinds."""
    with pytest.raises(DatasetError) as caught:
        choose_split(names, ("train",), where="x")
    assert str(caught.value).startswith(sentence)


@pytest.mark.parametrize(
    ("names", "sentence"),
    [
        (
            ["data/train-00000-of-00002.parquet", "data/train-00001-of-00002.arrow"],
            "x, split train: data/train-00001-of-00002.arrow would be left out",
        ),
        (["train.jsonl", "train_2.jsonl.bz2"], "x, split train: train_2.jsonl.bz2 would be left out"),
        (["rows.jsonl", "more.tsv"], "x, split train: more.tsv would be left out"),
        (["rows.jsonl", "train-0-of-1.arrow"], "x, split train: train-0-of-1.arrow would be left out"),
    ],
)
def test_a_split_that_would_be_read_in_part_is_refused(names: list[str], sentence: str) -> None:
    """Whoever asks for a split is not to get a part of it."""
    with pytest.raises(DatasetError) as caught:
        choose_split(names, ("train",), where="x")
    assert str(caught.value).startswith(sentence)
    assert "to a volume or a bucket" in str(caught.value)


def test_text_that_is_not_read_is_mentioned_where_it_may_belong_to_the_split(caplog: pytest.LogCaptureFixture) -> None:
    """It may as well describe the rows, so that the run goes on."""
    caplog.set_level(logging.WARNING)
    assert choose_split(["a.jsonl", "b.txt", "LICENSE.txt", "test.txt"], ("train",), where="x") == ("a.jsonl",)
    assert caplog.messages == [f"x, split train: not read: b.txt; names of files that are read end in {ENDINGS}"]


@pytest.mark.parametrize("other", ["b.jsonl.bz2", "b.tsv", "b.XLSX", "b.arrow", "b.parquet.gz", "b.tar.gz", "b.zip"])
def test_a_folder_that_would_be_read_in_part_is_refused(tmp_path: Path, other: str) -> None:
    """The sentence names what would be left out, and the remedy."""
    tiny.write_jsonl(tmp_path / "data/set/a.jsonl", [{"text": "a"}])
    (tmp_path / "data/set" / other).write_bytes(b"b")
    config = make_config(dataset={"uri": "pvc://data/set"})
    with pytest.raises(DatasetError) as caught:
        locate(config.dataset, Volumes(claims=tmp_path), Hub())
    assert str(caught.value).startswith(f"dataset.uri is pvc://data/set: {other} would be left out")
    assert "move the rest out of the folder" in str(caught.value)


@pytest.mark.parametrize("field", ["uri", "validationUri"])
@pytest.mark.parametrize(
    ("names", "listed"),
    [
        (
            ("train.jsonl", "validation.jsonl", "test.jsonl"),
            "train: train.jsonl; validation: validation.jsonl; test: test.jsonl",
        ),
        (
            ("train-00000-of-00002.parquet", "train-00001-of-00002.parquet", "test-00000-of-00001.parquet"),
            "train: train-00000-of-00002.parquet, train-00001-of-00002.parquet; test: test-00000-of-00001.parquet",
        ),
        (("notes.csv", "trainSet.csv", "dev.csv"), "train: trainSet.csv; validation: dev.csv"),
    ],
)
def test_a_folder_with_files_of_several_splits_is_refused(
    tmp_path: Path, names: tuple[str, ...], listed: str, field: str
) -> None:
    """The same files on the Hub are trained on without the test set."""
    for name in names:
        tiny.write_jsonl(tmp_path / "data/set" / name, [{"text": "a"}])
    config = make_config(dataset={"uri": "pvc://data/x", field: "pvc://data/set", "validationFraction": None}).dataset
    find = locate if field == "uri" else locate_validation
    with pytest.raises(DatasetError) as caught:
        find(config, Volumes(claims=tmp_path), Hub())
    assert str(caught.value) == (
        f"dataset.{field} is pvc://data/set: its files are named for several splits ({listed}), and all files of a "
        "folder are read; name one file, or move the others out of the folder, or rename them"
    )


@pytest.mark.parametrize(
    "names",
    [
        ("part-1.jsonl", "part-2.jsonl"),
        ("more.jsonl", "train.jsonl"),
        ("train-00000-of-00002.jsonl", "train-00001-of-00002.jsonl"),
        ("test-a.jsonl", "test-b.jsonl"),
        ("train-of-the-dev-team-1.jsonl", "train-of-the-dev-team-2.jsonl"),
        ("latest.jsonl", "restrained.jsonl", "valuation.jsonl"),
    ],
)
def test_a_folder_of_one_split_or_none_is_read_whole(tmp_path: Path, names: tuple[str, ...]) -> None:
    """Words that all names have, or that are parts of others, divide nothing."""
    for name in (*names, ".test.jsonl"):
        tiny.write_jsonl(tmp_path / "data/set" / name, [{"text": "a"}])
    config = make_config(dataset={"uri": "pvc://data/set"}).dataset
    assert tuple(name for name, _ in locate(config, Volumes(claims=tmp_path), Hub()).files) == names


def test_compressed_rows_of_a_folder_are_read_and_other_text_and_folders_are_mentioned(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """What only describes the data, what is hidden and what the volume's own is are not worth a word."""
    caplog.set_level(logging.WARNING)
    folder = tmp_path / "data/set"
    for name in ("a.jsonl", "b.jsonl.gz", "c.json.zst", "d.CSV.GZ", "notes.txt", "README.md", "LICENSE.txt", ".x.zip"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"")
    for name in ("more", "lost+found", ".cache"):
        (folder / name).mkdir()
    config = make_config(dataset={"uri": "pvc://data/set"})
    found = locate(config.dataset, Volumes(claims=tmp_path), Hub()).files
    assert [name for name, _ in found] == ["a.jsonl", "b.jsonl.gz", "c.json.zst", "d.CSV.GZ"]
    assert caplog.messages == [
        f"dataset.uri is pvc://data/set: not read: notes.txt, more/; names of files that are read end in {ENDINGS}"
    ]


def test_hidden_rows_of_a_folder_are_left_alone(tmp_path: Path) -> None:
    """What a Mac or an editor leaves beside a file is none; what is named itself is read."""
    for name in ("a.jsonl", "._a.jsonl", ".old.jsonl", ".set/b.jsonl"):
        tiny.write_jsonl(tmp_path / "data/set" / name, [{"text": "a"}])
    tiny.write_jsonl(tmp_path / "data/hidden/.old.jsonl", [{"text": "a"}])

    def found(address: str) -> list[str]:
        config = make_config(dataset={"uri": f"pvc://data/{address}"})
        return [name for name, _ in locate(config.dataset, Volumes(claims=tmp_path), Hub()).files]

    assert found("set") == ["a.jsonl"]
    assert found("set/.old.jsonl") == [".old.jsonl"]
    assert found("set/.set") == ["b.jsonl"]
    with pytest.raises(NotFoundError, match=re.escape("(found .old.jsonl; hidden files are not read)")):
        found("hidden")


def test_an_archive_in_a_config_map_is_refused_by_its_key(tmp_path: Path) -> None:
    """A key that ends in nothing known holds JSON lines; one that names another kind cannot."""
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes/rows.tsv").write_bytes(b"a")
    config = make_config(dataset={"uri": "configmap://notes/rows.tsv"})
    with pytest.raises(DatasetError, match=re.escape(f"configmap://notes/rows.tsv: files end in {ENDINGS}")):
        locate(config.dataset, Volumes(config_maps=tmp_path), Hub())


def test_a_folder_on_a_claim_is_read_whole(tmp_path: Path) -> None:
    """Every data file in it, in the order of names; others are left alone."""
    tiny.write_jsonl(tmp_path / "data/set/b.jsonl", [{"text": "b"}])
    tiny.write_jsonl(tmp_path / "data/set/a.jsonl", [{"text": "a"}])
    (tmp_path / "data/set/README.md").write_text("# set", encoding="utf-8")
    config = make_config(dataset={"uri": "pvc://data/set"})
    assert [name for name, _ in locate(config.dataset, Volumes(claims=tmp_path), Hub()).files] == ["a.jsonl", "b.jsonl"]


def test_a_config_map_is_read_through_the_links_of_the_kubelet(tmp_path: Path) -> None:
    """The kubelet lays a ConfigMap out as links to a dated folder."""
    mount = tmp_path / "notes"
    tiny.write_jsonl(mount / "..2026/notes.jsonl", [{"text": "a"}])
    (mount / "..data").symlink_to("..2026")
    (mount / "notes.jsonl").symlink_to("..data/notes.jsonl")
    config = make_config(dataset={"uri": "configmap://notes/notes.jsonl"})
    files = locate(config.dataset, Volumes(config_maps=tmp_path), Hub()).files
    assert [(name, path.read_text(encoding="utf-8")) for name, path in files] == [("notes.jsonl", '{"text": "a"}\n')]


def _link_to_file(root: Path) -> None:
    (root / "data").mkdir()
    (root / "data/train.jsonl").symlink_to("/etc/hostname")


def _link_to_folder(root: Path) -> None:
    (root / "data").symlink_to("/etc")


def _link_in_folder(root: Path) -> None:
    (root / "data/train.jsonl").mkdir(parents=True)
    (root / "data/train.jsonl/x.jsonl").symlink_to("/etc/hostname")


def _no_claim(root: Path) -> None:
    shutil.rmtree(root / "data", ignore_errors=True)


def _no_file(root: Path) -> None:
    (root / "data").mkdir()


def _empty_folder(root: Path) -> None:
    (root / "data/train.jsonl").mkdir(parents=True)


@pytest.mark.parametrize(
    ("prepare", "kind", "sentence"),
    [
        (_link_to_file, ConfigError, "leads through the symbolic link 'train.jsonl'"),
        (_link_to_folder, ConfigError, "leads through the symbolic link 'data'"),
        (_link_in_folder, ConfigError, "train.jsonl/x.jsonl is a symbolic link"),
        (_no_claim, NotFoundError, "the claim data is not mounted"),
        (_no_file, NotFoundError, "there is no such file"),
        (_empty_folder, NotFoundError, "the folder holds no file that ends in .jsonl"),
    ],
)
def test_what_is_no_plain_file_on_the_claim_is_refused(
    tmp_path: Path, prepare: Any, kind: type[TrainerError], sentence: str
) -> None:
    """Links could lead out of the claim; a missing file or claim is named."""
    prepare(tmp_path)
    with pytest.raises(kind) as caught:
        locate(make_config().dataset, Volumes(claims=tmp_path), Hub())
    assert sentence in str(caught.value)
    assert "pvc://data/train.jsonl" in str(caught.value)


def test_a_file_of_an_unknown_kind_is_refused(tmp_path: Path) -> None:
    """The sentence lists what is read."""
    (tmp_path / "data").mkdir()
    (tmp_path / "data/train.xlsx").write_bytes(b"PK")
    config = make_config(dataset={"uri": "pvc://data/train.xlsx"})
    with pytest.raises(DatasetError, match=re.escape(f"files end in {ENDINGS}")):
        locate(config.dataset, Volumes(claims=tmp_path), Hub())


@pytest.mark.parametrize("uri", ["hf://org/none", "hf://org/chats@gone"])
def test_held_out_rows_that_are_not_there_are_reported_by_their_own_field(
    server: HubServer, tmp_path: Path, uri: str
) -> None:
    """The address of the training rows is right, and nobody is to look for a mistake in it."""
    with pytest.raises(NotFoundError, match=f"^dataset.validationUri is {uri}"):
        hub_files(server, tmp_path, uri="hf://org/chats", validationUri=uri, validationFraction=None)
