"""Runs of `lora-trainer` in processes of their own."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from tests.trainer import tiny

from lora_trainer.model.device import choose_device
from lora_trainer.model.options import check_options
from lora_trainer.spec.config import TrainConfig
from lora_trainer.spec.manifest import RunOptions, train_config
from lora_trainer.spec.summary import Summary
from lora_trainer.storage.hub import Hub
from lora_trainer.storage.run_folders import FOLDER
from lora_trainer.storage.volumes import Volumes
from lora_trainer.train.inputs import prepare

TRAINER = Path(__file__).parents[2] / "trainer_image"
# For whatever a whole trainer does: on a busy machine its imports alone take a minute. Longer is a hang.
PATIENCE_S = 900


@dataclass(frozen=True, slots=True, kw_only=True)
class Workplace:
    """A folder of claims with `models`, `data` and `adapters`, and files of a run beside it."""

    root: Path

    @classmethod
    def make(cls, root: Path, model: Path) -> "Workplace":
        """Lay it out with a copy of the model and the chats."""
        shutil.copytree(model, root / "claims/models/tiny")
        tiny.write_jsonl(root / "claims/data/train.jsonl", tiny.chats())
        (root / "claims/adapters").mkdir()
        return cls(root=root)

    @property
    def claims(self) -> Path:
        """The folder of the claims."""
        return self.root / "claims"

    @property
    def termination_log(self) -> Path:
        """Where the summary goes."""
        return self.root / "termination-log"

    def manifest_file(self, **sections: Any) -> Path:
        """Write a manifest."""
        path = self.root / "run.yaml"
        path.write_text(yaml.safe_dump(tiny.manifest(**sections)), encoding="utf-8")
        return path

    def config_file(self, uid: str = "uid-1", *, allow_cpu: bool = True, **sections: Any) -> Path:
        """Write the configuration that the operator would render."""
        config = train_config(tiny.manifest(**sections), RunOptions(uid=uid, allow_cpu=allow_cpu, strict=True))
        path = self.root / "config.json"
        path.write_text(config.to_json(), encoding="utf-8")
        return path

    def places(self) -> list[str | Path]:
        """The options that name them."""
        places: list[str | Path] = ["--claims", self.claims, "--configmaps", self.root / "configmaps"]
        return [*places, "--termination-log", self.termination_log]

    def start(
        self, *arguments: str | Path, subcommand: str = "run", launcher: Sequence[str] = (), **environment: str
    ) -> "subprocess.Popen[str]":
        """Start `lora-trainer run`, or another command of it, with `arguments` on these claims, through a launcher."""
        command = [*launcher, sys.executable, "-m", "lora_trainer.cli", subcommand, *map(str, arguments)]
        command += map(str, self.places())
        return subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": str(TRAINER), "HF_HUB_OFFLINE": "0", **environment},
        )

    def run(
        self, *arguments: str | Path, subcommand: str = "run", launcher: Sequence[str] = (), **environment: str
    ) -> "Finished":
        """Run to the end."""
        process = self.start(*arguments, subcommand=subcommand, launcher=launcher, **environment)
        output, errors = process.communicate(timeout=PATIENCE_S)
        return Finished(status=process.returncode, output=output, log=errors, summary=self.summary())

    def summary(self) -> Summary:
        """What the run wrote as its termination message."""
        return Summary.from_message(self.termination_log.read_text(encoding="utf-8"))

    def adapters(self) -> list[str]:
        """Names under the claim for adapters, hidden ones included, but not the folders in which runs work."""
        return sorted(path.name for path in (self.claims / "adapters").iterdir() if path.name != FOLDER)

    def checkpoints(self) -> list[str]:
        """Names of all checkpoints, of every run."""
        return sorted(path.name for path in (self.claims / "adapters" / FOLDER).glob("*/step-*"))


@dataclass(frozen=True, slots=True, kw_only=True)
class Finished:
    """A process that ended."""

    status: int
    output: str
    log: str
    summary: Summary


def prepared(config: TrainConfig, volumes: Volumes, place: Path, workspace: Path | None = None) -> Path:
    """The folder `place` with the data of a run, as each attempt has it anew."""
    shutil.rmtree(place, ignore_errors=True)
    device = choose_device(config.device, config.training.precision)
    prepare(config, volumes, Hub(), place, check=lambda base: check_options(base, config, device), workspace=workspace)
    return place


def read_json(path: Path) -> Any:
    """A JSON file."""
    return json.loads(path.read_text(encoding="utf-8"))


def read_config(path: Path) -> TrainConfig:
    """A run's configuration."""
    return TrainConfig.from_json(path.read_text(encoding="utf-8"))
