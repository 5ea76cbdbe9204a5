"""The part of the acceptance that compares us with TRL's trainer, with a tiny model: what it asks the benchmark, and
what it makes of the answer."""

import contextlib
import importlib.util
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from benchmarks import gpu_acceptance, trainer
from benchmarks.acceptance import rival
from benchmarks.acceptance.bench import Bench
from benchmarks.acceptance.findings import Outcome, State
from benchmarks.comparison import settings, sft
from benchmarks.comparison.job import Job
from benchmarks.comparison.settings import EFFECTIVE, Form, Setting

from localcluster.imagespec import TRAINER, files
from lora_trainer.model.device import Device

REPOSITORY = Path(__file__).parents[2]
pytestmark = pytest.mark.filterwarnings("ignore")
Run = Callable[..., subprocess.CompletedProcess[str]]
_REAL = importlib.util.find_spec


@pytest.fixture
def tiny(cpu: Device) -> Bench:
    """Tiny models on a CPU that takes itself for an H100."""
    return Bench(device=replace(cpu, name="NVIDIA H100 80GB HBM3"), tiny=True, ends=1e12)


def compared(bench: Bench) -> Outcome:
    """What the part finds of its tiny model."""
    (check,) = rival.checks(bench)
    return check.run()


def answering(ratio: float, asked: list[list[str]] | None = None) -> Run:
    """In place of `subprocess.run`: a benchmark that finds such a ratio."""

    def run(command: Sequence[str], **_named: object) -> subprocess.CompletedProcess[str]:
        if asked is not None:
            asked.append(list(command))
        numbers = {"speed": 100.0, "seconds": 1.0, "cpu": 1.0, "peak": 10.0, "loss": 2.5}
        theirs = {**numbers, "speed": 100.0 / ratio, "setting": "packed, micro-batch 1"}
        theirs["ours_to_it"] = {"speed": ratio, "cpu": ratio, "peak": 0.8}
        found = {"full": {"ours": {**numbers, "setting": "ours"}, "SFTTrainer": theirs}}
        Path(command[command.index("--json") + 1]).write_text(json.dumps(found))
        return subprocess.CompletedProcess(command, 0, "", "")

    return run


def ending(said: str) -> Run:
    """In place of `subprocess.run`: a benchmark that fails with these words."""
    return lambda command, **_named: subprocess.CompletedProcess(command, 1, "", f"Traceback\n{said}\n")


@pytest.mark.parametrize(
    ("name", "ratio", "wanted"),
    [
        ("NVIDIA H100 80GB HBM3", 1.25, (State.PASSED, "1.25 times: 100 tokens/s to 80")),
        ("NVIDIA H100 80GB HBM3", 0.8, (State.MEASURED, "below the wanted 1.00")),
        ("NVIDIA A10", 0.8, (State.MEASURED, "0.80 times: 100 tokens/s to 125")),
    ],
)
def test_we_are_to_be_as_fast_as_the_rival_on_an_h100(
    tiny: Bench, monkeypatch: pytest.MonkeyPatch, name: str, ratio: float, wanted: tuple[State, str]
) -> None:
    """On another GPU the ratio is told alone. The benchmark is asked for full rows of a model that is there."""
    asked: list[list[str]] = []
    monkeypatch.setattr(subprocess, "run", answering(ratio, asked))
    outcome = compared(replace(tiny, device=replace(tiny.device, name=name)))
    state, said = wanted
    assert (outcome.state, said in outcome.said) == (state, True), outcome.said
    assert ("below" in outcome.said) == (name != "NVIDIA A10" and ratio < 1)
    assert outcome.figures["ratio"] == ratio
    (command,) = asked
    assert command[1] == str(Path(trainer.__file__))
    options = dict(zip(command[2::2], command[3::2], strict=True))
    assert (options["--workload"], options["--full-length"], options["--others"], options["--seeds"]) == (
        *("full", "64", "SFTTrainer", "1"),
    )


@pytest.mark.parametrize(
    ("end", "state", "said"),
    [
        ("ValueError: no such thing", State.FAILED, "ValueError: no such thing"),
        ("torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB", State.NOT_RUN, "does not fit this"),
        (trainer.NO_TIME, State.NOT_RUN, "raise --minutes"),
    ],
)
def test_a_benchmark_that_fails_is_told(
    tiny: Bench, monkeypatch: pytest.MonkeyPatch, end: str, state: State, said: str
) -> None:
    """What this machine lacks, memory or time, is no failure."""
    monkeypatch.setattr(subprocess, "run", ending(end))
    outcome = compared(tiny)
    assert (outcome.state, said in outcome.said) == (state, True), outcome.said


def test_without_the_rival_nothing_is_made(tiny: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """As in the trainer's image; the speed then has all the time that is left."""
    assert gpu_acceptance.share("speed", ["fit", "speed", "rival"]) == 0.7
    assert gpu_acceptance.share("rival", ["fit", "speed", "rival"]) == 1
    assert gpu_acceptance.share("fit", ["fit"]) == gpu_acceptance.share("speed", ["fit", "speed"]) == 1
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *more: None if name == "trl" else _REAL(name, *more))
    monkeypatch.setattr(rival, "random_base", None)
    assert compared(tiny) == Outcome(state=State.NOT_RUN, said="the package trl is absent")
    assert gpu_acceptance.share("speed", ["fit", "speed", "rival"]) == 1
    assert gpu_acceptance.share("fit", ["fit", "speed", "rival"]) == 0.5


def test_all_that_the_acceptance_imports_is_in_the_image() -> None:
    """Which copies parts of benchmarks/: a part that lacks a module fails there alone."""
    copied = {path.relative_to(REPOSITORY) for path in files(TRAINER.inputs, REPOSITORY)}
    benchmarks = [path for path in copied if path.parts[0] == "benchmarks"]
    assert Path("benchmarks/trainer.py") in benchmarks
    for path in benchmarks:
        text = (REPOSITORY / path).read_text(encoding="utf-8")
        modules = re.findall(r"^ *from benchmarks\.([\w.]+) import", text, re.MULTILINE)
        names = re.findall(r"^ *from benchmarks import ([\w, ]+)", text, re.MULTILINE)
        for module in [*modules, *(name.strip() for line in names for name in line.split(","))]:
            assert Path("benchmarks", *module.split(".")).with_suffix(".py") in copied, (path, module)


def test_a_disk_without_room_is_told(tiny: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before it is full."""
    monkeypatch.setattr(shutil, "disk_usage", lambda _: type("Usage", (), {"free": 1000}))
    monkeypatch.setattr(rival, "random_base", None)
    outcome = compared(tiny)
    assert (outcome.state, "set TMPDIR" in outcome.said) == (State.NOT_RUN, True), outcome.said


def test_the_benchmark_compares_a_random_model(tiny: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """For real, in this process: both train, and the settings of the rival's are tried, padded, padding-free and
    packed."""
    monkeypatch.setattr(settings, "MICRO_BATCHES", (1, 4))

    def run(command: Sequence[str], **_named: object) -> subprocess.CompletedProcess[str]:
        with monkeypatch.context() as patch, contextlib.redirect_stdout(sys.stderr):
            patch.setattr(sys, "argv", [*command[1:], "--threads", "1"])
            patch.setattr(trainer, "in_process", lambda job, _ends: json.loads(trainer.run(job)))
            trainer.main()
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(subprocess, "run", run)
    outcome = compared(replace(tiny, device=replace(tiny.device, name="cpu")))
    assert outcome.state is State.MEASURED
    assert float(outcome.figures["ratio"]) > 0
    assert float(outcome.figures["ours: loss"]) == pytest.approx(float(outcome.figures["SFTTrainer: loss"]), rel=0.05)


def test_a_setting_that_no_memory_suffices_for_is_listed(tiny_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first training, before any is tried, ends nothing."""

    def short(*_given: Any) -> Any:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

    monkeypatch.setattr(sft, "new_model", short)
    monkeypatch.setattr(sft, "settings", lambda *_given, **_named: iter([[SETTING]]))
    job = Job(part="SFTTrainer", workload="full", model=str(tiny_folder), length=16, steps=1, seed=1, threads=1)
    (tried,) = sft.sweep(job)
    assert rival._SHORT.search(tried.trouble)


SETTING = Setting(form=Form.PADDED, micro=1, accumulation=EFFECTIVE)
