"""The stage `train` in processes that start within milliseconds: forked from one that has imported the libraries."""

import json
import multiprocessing
import os
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import peft  # noqa: F401 - what the stages would import
import transformers.models.llama.modeling_llama  # noqa: F401 - as above

import lora_trainer.result.merge_stage
import lora_trainer.result.verify
import lora_trainer.train.run  # noqa: F401 - as above
from lora_trainer import stage
from lora_trainer.distributed import logs
from lora_trainer.storage.lock import held

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload([__name__])


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """The folders of one run: claims, its durable folder, its configuration."""

    claims: Path
    workspace: Path
    config: Path

    @property
    def staged(self) -> Path:
        """Where the result grows."""
        return self.workspace / "staged"

    @property
    def log(self) -> Path:
        """What all attempts log."""
        return self.workspace / "train.log"

    def checkpoint_steps(self) -> list[int]:
        """Steps of the checkpoints, damaged ones included."""
        return sorted(int(path.name.removeprefix("step-")) for path in self.workspace.glob("step-*"))


@dataclass(frozen=True, slots=True, kw_only=True)
class Attempt:
    """A stage at work; `reports` is a file with the lines that its supervisor would get."""

    process: BaseProcess
    reports: Path

    def lines(self) -> list[dict[str, Any]]:
        """The reports so far, without a line that is half written."""
        text = self.reports.read_text(encoding="utf-8") if self.reports.exists() else ""
        return [json.loads(line) for line in text.split("\n")[:-1]]

    def last_step(self) -> int:
        """The last optimizer step that was reported."""
        steps = [line["progress"].get("step", 0) for line in self.lines() if line.get("progress")]
        return max(steps, default=0)

    def resumed_step(self) -> int:
        """The step at which the attempt went on, 0 for one that began."""
        steps = [line["progress"].get("resumed_step") or 0 for line in self.lines() if line.get("progress")]
        return max(steps, default=0)

    def failure(self) -> dict[str, Any]:
        """How the stage explained its end."""
        return next(line["failure"] for line in reversed(self.lines()) if line.get("failure"))


def warm_up() -> None:
    """Have the libraries imported that all attempts share, which the first one would wait for."""
    process = CONTEXT.Process(target=int)
    process.start()
    process.join()


def start(place: Place, first: Callable[[], None] | None = None) -> Attempt:
    """Start an attempt, as a supervisor does: an empty place for the result, configuration in a folder of its own.

    `first` is what its process does before.
    """
    shutil.rmtree(place.staged, ignore_errors=True)
    place.staged.mkdir(parents=True)
    temporary = Path(tempfile.mkdtemp(dir=place.claims.parent))
    config, reports = temporary / "config.json", temporary / "reports"
    shutil.copy(place.config, config)
    process = CONTEXT.Process(target=_run, args=(place, config, reports, dict(os.environ), first))
    process.start()
    return Attempt(process=process, reports=reports)


def finish(place: Place) -> Attempt:
    """Run an attempt to its end."""
    attempt = start(place)
    attempt.process.join()
    return attempt


def on_one_cpu() -> None:
    """One thread: equal sums in every attempt, and no fight for the cores. Not all on the same one."""
    cpus = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {cpus[os.getpid() % len(cpus)]})


def _run(
    place: Place, config: Path, reports: Path, environment: dict[str, str], first: Callable[[], None] | None
) -> None:
    if first is not None:
        first()
    # That of this test: the server has the one in which the first test of this process needed it.
    os.environ.clear()
    os.environ.update(environment)
    on_one_cpu()
    descriptor = os.open(reports, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    arguments = ["train", "--config", config, "--folder", place.staged, "--workspace", place.workspace]
    arguments += ["--claims", place.claims, "--configmaps", place.claims, "--report", descriptor]
    os.environ.update(logs.variables(logs.TEXT, {}, place.log))
    with held(place.workspace, "the run's folder") as lock:
        status = stage.main([*map(str, arguments), "--ticket", lock.ticket])
    os._exit(status)
