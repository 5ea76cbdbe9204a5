"""Where a data set is looked for, and which files of a Hub repository belong to a split."""

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.trainer import tiny
from tests.trainer.conftest import make_config

from hub.server import HubServer
from lora_trainer.data.dataset_files import choose_split, locate, locate_validation
from lora_trainer.errors import ConfigError, DatasetError, NotFoundError, TrainerError
from lora_trainer.places.hub import Hub
from lora_trainer.places.volumes import Volumes


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
    found = (locate(config, Volumes(), hub), locate_validation(config, Volumes(), hub))
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
    ],
)
def test_training_files_are_reported_by_name(names: list[str], chosen: tuple[Any, ...]) -> None:
    """Shards name their split exactly; else `train` where it exists, else what is named for no other split."""
    assert choose_split(names, ("train",), where="x") == tuple(names[c] if isinstance(c, int) else c for c in chosen)


@pytest.mark.parametrize(
    ("names", "sentence"),
    [
        (["a.txt", "b.arrow"], "x: it holds no .jsonl, .ndjson, .json, .csv, .parquet file (found a.txt, b.arrow)"),
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


def test_a_folder_on_a_claim_is_read_whole(tmp_path: Path) -> None:
    """Every data file in it, in the order of names; others are left alone."""
    tiny.write_jsonl(tmp_path / "data/set/b.jsonl", [{"text": "b"}])
    tiny.write_jsonl(tmp_path / "data/set/a.jsonl", [{"text": "a"}])
    (tmp_path / "data/set/README.md").write_text("# set", encoding="utf-8")
    config = make_config(dataset={"uri": "pvc://data/set"})
    assert [name for name, _ in locate(config.dataset, Volumes(claims=tmp_path), Hub())] == ["a.jsonl", "b.jsonl"]


def test_a_config_map_is_read_through_the_links_of_the_kubelet(tmp_path: Path) -> None:
    """The kubelet lays a ConfigMap out as links to a dated folder."""
    mount = tmp_path / "notes"
    tiny.write_jsonl(mount / "..2026/notes.jsonl", [{"text": "a"}])
    (mount / "..data").symlink_to("..2026")
    (mount / "notes.jsonl").symlink_to("..data/notes.jsonl")
    config = make_config(dataset={"uri": "configmap://notes/notes.jsonl"})
    files = locate(config.dataset, Volumes(config_maps=tmp_path), Hub())
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
        (_empty_folder, NotFoundError, "the folder holds no .jsonl"),
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
    with pytest.raises(DatasetError, match=r"files end in \.jsonl, \.ndjson, \.json, \.csv, \.parquet"):
        locate(config.dataset, Volumes(claims=tmp_path), Hub())


@pytest.mark.parametrize("uri", ["hf://org/none", "hf://org/chats@gone"])
def test_held_out_rows_that_are_not_there_are_reported_by_their_own_field(
    server: HubServer, tmp_path: Path, uri: str
) -> None:
    """The address of the training rows is right, and nobody is to look for a mistake in it."""
    with pytest.raises(NotFoundError, match=f"^dataset.validationUri is {uri}"):
        hub_files(server, tmp_path, uri="hf://org/chats", validationUri=uri, validationFraction=None)
