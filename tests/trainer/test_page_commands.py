"""The commands of docs/try-without-a-gpu.md, executed as they stand but for a declared list of substitutions."""

import os
import shutil
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
import yaml
from tests.pages.blocks import REPOSITORY, block
from tests.pages.executed import Substitution, execute, substituted
from tests.trainer import servers
from tests.trainer.test_publishing import KEYS, stored

from hub.server import HubServer

PAGE = "docs/try-without-a-gpu.md"
MODEL = "tests/tiny"
_REPLACED = (
    Substitution(shown="python3 -m venv .venv && ", typed="", why="the tests run in one"),
    Substitution(shown="pip install '.[trainer]'", typed=":", why="what it installs is among the tests' packages"),
    Substitution(shown="run.yaml", typed="examples/quickstart.yaml", why="it is the reader's own"),
)


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    """A folder with the examples, of which the quickstart trains a model of seconds, and with the command installed."""
    folder = tmp_path / "clone"
    shutil.copytree(REPOSITORY / "examples", folder / "examples")
    quickstart = folder / "examples/quickstart.yaml"
    run = yaml.safe_load(quickstart.read_text(encoding="utf-8"))
    run["spec"] |= {"model": {"uri": f"hf://{MODEL}"}, "checkpoint": {"intervalSteps": 1}}
    run["spec"]["training"] = {"maxSteps": 2, "effectiveBatchSize": 4}
    quickstart.write_text(yaml.safe_dump(run), encoding="utf-8")
    (folder / ".venv/bin").mkdir(parents=True)
    program = folder / ".venv/bin/lora-trainer"
    program.write_text(f'#!/bin/sh\nexec {sys.executable} -m lora_trainer.cli "$@"\n', encoding="utf-8")
    program.chmod(0o755)
    return folder


@pytest.fixture
def environment(tmp_path: Path, tiny_folder: Path) -> Iterator[Mapping[str, str]]:
    """With a Hub that has the model, and a bucket."""
    shutil.copytree(tiny_folder, tmp_path / "hub/models" / MODEL)
    (tmp_path / "s3").mkdir()
    with servers.bucket_server(tmp_path / "s3") as address, HubServer(tmp_path / "hub").start() as hub:
        servers.client(address).make_bucket("results")
        yield {
            **os.environ,
            **KEYS,
            "AWS_ENDPOINT_URL_S3": address,
            "HF_ENDPOINT": hub.url,
            "HF_HOME": str(tmp_path / "huggingface"),
            "PYTHONPATH": f"{REPOSITORY}/trainer_image",
        }
        uploaded = stored(servers.client(address), "support-tone/")
        assert [name for name in uploaded if name.endswith("adapter_model.safetensors")], uploaded


def test_every_command_of_the_page_does_what_it_says(clone: Path, environment: Mapping[str, str]) -> None:
    """From the training to what can be made of its result and of a checkpoint."""
    execute(substituted(block(PAGE, "pip install").commands, _REPLACED), environment, clone)
    checkpoints = sorted((clone / "volumes/adapters/.lora-checkpoints").glob("support-tone-*/step-*"))
    assert checkpoints
    others = (
        Substitution(
            shown="volumes/adapters/.lora-checkpoints/support-tone-x7k2p/step-00000040",
            typed=str(checkpoints[0].relative_to(clone)),
            why="the run's own suffix and step",
        ),
        Substitution(shown="s3://my-bucket/", typed="s3://results/", why="the bucket is one's own"),
    )
    commands = substituted(block(PAGE, "lora-trainer ask").commands, (*others, *_REPLACED))
    path = f"{clone}/.venv/bin:{environment['PATH']}"
    printed = execute(commands, {**environment, "PATH": path}, clone)
    assert printed.count("Where is my order?") >= 1
    assert "Memory of a GPU at the peak" in printed
    for made in ("merged/model.safetensors", "early/adapter_model.safetensors"):
        assert (clone / made).is_file()
