"""Data sets on the Hub whose branches move on while a run is on its way."""

import dataclasses
import functools
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import huggingface_hub.constants
import pytest
from tests.trainer import tiny
from tests.trainer.conftest import make_config
from tests.trainer.runs import Workplace
from tests.trainer.stages import Attempt, Place, start
from tests.trainer.test_resume import damage, place_of, weights

from hub.server import HubServer
from lora_trainer.errors import NotFoundError, VerificationError
from lora_trainer.result.export_checkpoint import export_checkpoint
from lora_trainer.result.inputs import base_and_rows
from lora_trainer.storage.hub import Hub
from lora_trainer.storage.manifest import read_manifest
from lora_trainer.storage.volumes import Volumes
from lora_trainer.train.inputs import fetch
from lora_trainer.train.resume_overrides import with_kept_commits

DATASET = {"uri": "hf://org/chats", "validationUri": "hf://org/held@main", "validationFraction": None}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """What a Hub has: chats to train on, and others that are held out."""
    root = tmp_path / "hub"
    tiny.write_jsonl(root / "datasets/org/chats/train.jsonl", tiny.chats(40))
    tiny.write_jsonl(root / "datasets/org/held/test.jsonl", tiny.chats(50)[40:])
    return root


@pytest.fixture
def hub(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """That Hub."""
    with HubServer(root).start() as server:
        for name, value in {"HF_ENDPOINT": server.url, "HF_HUB_OFFLINE": "0"}.items():
            monkeypatch.setenv(name, value)
        yield Hub(cache=tmp_path / "cache")


def move(root: Path, *names: str) -> None:
    """Commit one more row to `main`; the commit before stays, as on the Hub."""
    for name in names:
        folder = root / "datasets/org" / name
        shutil.copytree(folder, folder.with_name(f"{name}@before"))
        (file,) = folder.iterdir()
        with file.open("a", encoding="utf-8") as out:
            out.write(json.dumps(tiny.chats(60)[-1]) + "\n")


def _with_cache(cache: Path) -> None:
    huggingface_hub.constants.HF_HUB_CACHE = str(cache)
    huggingface_hub.constants.HF_HUB_OFFLINE = False


def attempt_of(place: Place, hub: Hub) -> Attempt:
    """An attempt to its end, with the cache of this test."""
    assert hub.cache is not None
    attempt = start(place, first=functools.partial(_with_cache, hub.cache))
    attempt.process.join()
    return attempt


def test_a_branch_that_moves_changes_no_run(workplace: Workplace, root: Path, hub: Hub, tmp_path: Path) -> None:
    """The next attempt, the verification and an export read the commits that the run began with."""
    place, volumes = place_of(workplace, dataset=DATASET), Volumes(claims=workplace.claims)
    assert attempt_of(place, hub).process.exitcode == 0
    first, manifest = weights(place), read_manifest(place.staged)
    assert manifest.config.dataset.uri == "hf://org/chats"
    move(root, "chats", "held")

    base_and_rows(manifest, volumes, hub)
    export_checkpoint(place.workspace / "step-00000004", tmp_path / "exported", volumes, hub)
    assert read_manifest(tmp_path / "exported").dataset_revision == manifest.dataset_revision
    damage(place, 6)
    attempt = attempt_of(place, hub)
    assert (attempt.process.exitcode, attempt.resumed_step()) == (0, 4)
    assert weights(place) == first
    again = read_manifest(place.staged)
    assert (again.dataset_revision, again.validation_revision) == (
        manifest.dataset_revision,
        manifest.validation_revision,
    )


def test_a_commit_that_is_gone_ends_no_run_whose_rows_are_still_there(
    workplace: Workplace, root: Path, hub: Hub, caplog: pytest.LogCaptureFixture
) -> None:
    """As after the history of a data set was squashed: the rows decide, those that did not change at their branch."""
    place, volumes = place_of(workplace, dataset=DATASET), Volumes(claims=workplace.claims)
    assert attempt_of(place, hub).process.exitcode == 0
    first, manifest = weights(place), read_manifest(place.staged)
    (root / "datasets/org/chats/README.md").write_text("Chats.", encoding="utf-8")
    move(root, "held")

    base_and_rows(manifest, volumes, hub)
    (line,) = (record.message for record in caplog.records if "no longer found" in record.message)
    assert line.startswith(f"dataset.uri is read at hf://org/chats: the commit {manifest.dataset_revision}")
    damage(place, 6)
    attempt = attempt_of(place, hub)
    assert (attempt.process.exitcode, attempt.resumed_step()) == (0, 4)
    assert weights(place) == first

    shutil.rmtree(root / "datasets/org/held@before")
    with pytest.raises(VerificationError, match="has changed since the run"):
        base_and_rows(manifest, volumes, hub)


CHATS, HELD, MODEL = "1" * 40, "2" * 40, "3" * 40
RECORD = {
    "base_revision": MODEL,
    "dataset_revision": CHATS,
    "validation_revision": HELD,
    "config": {
        "model": {"uri": "hf://org/tiny@v1"},
        "dataset": {"uri": "hf://org/chats", "validation_uri": "hf://org/held@main"},
    },
}


@pytest.mark.parametrize(
    ("record", "model", "addresses", "pinned"),
    [
        (
            RECORD,
            "hf://org/tiny@v1",
            ("hf://org/chats", "hf://org/held@main"),
            (f"hf://org/tiny@{MODEL}", f"hf://org/chats@{CHATS}", f"hf://org/held@{HELD}"),
        ),
        (
            RECORD,
            "hf://org/other",
            ("hf://org/new", "pvc://data/held"),
            ("hf://org/other", "hf://org/new", "pvc://data/held"),
        ),
        (
            {name: value for name, value in RECORD.items() if not name.endswith("_revision")} | {"base_revision": "x"},
            "pvc://models/tiny",
            ("hf://org/chats", None),
            ("pvc://models/tiny", "hf://org/chats", None),
        ),
        ([], "hf://org/tiny@v1", ("hf://org/chats", None), ("hf://org/tiny@v1", "hf://org/chats", None)),
    ],
)
def test_inputs_are_read_at_the_commits_of_the_newest_checkpoint(
    *,
    tmp_path: Path,
    record: object,
    model: str,
    addresses: tuple[str, str | None],
    pinned: tuple[str, str, str | None],
) -> None:
    """Where it names the same addresses, and notes any."""
    config = make_config()
    dataset = dataclasses.replace(config.dataset, uri=addresses[0], validation_uri=addresses[1])
    config = dataclasses.replace(config, model=dataclasses.replace(config.model, uri=model), dataset=dataset)
    hub = cast("Hub", SimpleNamespace(repository=lambda *_: None))
    assert with_kept_commits(config, None, hub) == with_kept_commits(config, tmp_path, hub) == config
    (tmp_path / "step-00000004").mkdir()
    (tmp_path / "step-00000004/run.json").write_text(json.dumps(record), encoding="utf-8")
    found = with_kept_commits(config, tmp_path, hub)
    assert (found.model.uri, found.dataset.uri, found.dataset.validation_uri) == pinned


def test_the_commit_that_a_run_began_with_is_fetched(root: Path, hub: Hub, workplace: Workplace) -> None:
    """A branch that has lost its rows by now does not matter to a run that is on its way."""
    place, volumes = place_of(workplace, dataset=DATASET), Volumes(claims=workplace.claims)
    assert attempt_of(place, hub).process.exitcode == 0
    move(root, "chats")
    shutil.rmtree(root / "datasets/org/chats")
    config = read_manifest(place.staged).config
    with pytest.raises(NotFoundError):
        fetch(config, volumes, hub)
    fetch(with_kept_commits(config, place.workspace, hub), volumes, hub)
