"""What a person sees of a run on a terminal, here a real one: a log that the live line never tears."""

import fcntl
import os
import pty
import re
import struct
import subprocess
import sys
import termios
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, TextIO

import pytest
from tests.trainer.conftest import make_config
from tests.trainer.runs import TRAINER, Workplace
from tests.trainer.stages import Place, finish
from tests.trainer.test_manifest import filled

from lora_trainer.data.dataset import encode
from lora_trainer.data.survey import load_index
from lora_trainer.data.tokens import Encoder
from lora_trainer.distributed.activity import REPORT_EVERY_S, Activity, Counter, begun, heard_by
from lora_trainer.distributed.reports import Report
from lora_trainer.errors import DatasetError
from lora_trainer.host import live as live_view
from lora_trainer.host.child import Stages
from lora_trainer.host.launch import Program
from lora_trainer.host.screen import Line
from lora_trainer.host.supervisor import Settings, Supervisor
from lora_trainer.host.view import LiveView
from lora_trainer.model.device import Device
from lora_trainer.model.loading import load_model
from lora_trainer.model.rope import STEADY
from lora_trainer.spec.config import Quantization
from lora_trainer.spec.progress import Phase, Progress
from lora_trainer.spec.summary import DatasetStats
from lora_trainer.storage.base import Base
from lora_trainer.storage.hub import Hub
from lora_trainer.storage.volumes import Volumes
from lora_trainer.train.batches import evaluation_limit
from lora_trainer.train.evaluate import evaluate

PROGRAM = """
import logging, os, subprocess, sys, time
from lora_trainer.spec.progress import Phase, Progress
from lora_trainer.host.live import is_live, shown
from lora_trainer.distributed import logs
from lora_trainer.distributed.reports import Report

logs.set_up()
terminal = os.dup(2)
with shown(live=is_live(sys.stderr, os.environ)) as view:
    view.stage("train")
    for step in range(1, 6):
        logging.getLogger("lora_trainer").info("line %d %s", step, "x" * 40)
        subprocess.run(["sh", "-c", f"echo stage {step} >&2; printf 'half ' >&2; echo line >&2"], check=True)
        progress = Progress(
            phase=Phase.TRAINING, step=step, total_steps=5, loss=1.5, tokens_per_second=1234.0,
            estimated_remaining_seconds=63,
        )
        view.take(Report(progress=progress))
        time.sleep(0.15)
        if step == 3 and os.isatty(terminal):
            # As a terminal shows that Ctrl-C was pressed.
            os.write(terminal, b"^C")
    sys.stderr.write("no line end")
    # One that outlives this process and holds on to its streams.
    subprocess.Popen(["sleep", "5"])
print()
print("the end")
"""
TRAINING = "Training {}/5, loss 1.5000, 1m03s left, 1234 tokens/s"


class Terminal:
    """What stands on a terminal that knows printable characters, carriage return and line feed."""

    def __init__(self, width: int) -> None:
        self._width = width
        self.rows = [""]
        self.seen: list[str] = []
        """Each state of the last row before the cursor went back to its beginning."""

    def take(self, text: str) -> None:
        """Print some more."""
        column = len(self.rows[-1])
        for character in text:
            if character == "\n":
                self.rows.append("")
                column = 0
            elif character == "\r":
                self.seen.append(self.rows[-1].rstrip())
                column = 0
            else:
                assert character.isprintable(), f"{character!r} is no plain text"
                if column == self._width:
                    self.rows.append("")
                    column = 0
                row = self.rows[-1].ljust(column)
                self.rows[-1] = row[:column] + character + row[column + 1 :]
                column += 1

    def lines(self) -> list[str]:
        """The rows without blanks at their ends, and times of day."""
        return [re.sub(r"^\d{4}-\S+ \S+ INFO", "INFO", row.rstrip()) for row in self.rows]


def on_terminal(program: str, width: int, **environment: str) -> tuple[str, int]:
    """What a program writes that has a terminal of this width, and its exit status."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, width, 0, 0))
    inherited = {name: value for name, value in os.environ.items() if name not in ("NO_COLOR", "TERM")}
    process = subprocess.Popen(
        [sys.executable, "-c", program],
        stdin=subprocess.DEVNULL,
        stdout=theirs,
        stderr=theirs,
        env={**inherited, "PYTHONPATH": str(TRAINER), "TERM": "xterm", **environment},
    )
    os.close(theirs)
    written = b""
    # The sleeping child holds the terminal open.
    while not written.endswith(b"the end\r\n"):
        try:
            data = os.read(ours, 2**16)
        except OSError:
            break
        written += data
    os.close(ours)
    return written.decode(), process.wait()


def in_pipe(program: str) -> str:
    """What it writes elsewhere."""
    environment = {**os.environ, "PYTHONPATH": str(TRAINER), "TERM": "xterm"}
    process = subprocess.Popen(
        [sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env=environment, text=True
    )
    assert process.stdout is not None
    written = ""
    while not written.endswith("the end\n"):
        written += process.stdout.readline()
    process.stdout.close()
    process.wait()
    return written


def wrapped(lines: list[str], width: int) -> list[str]:
    """Lines as a terminal of this width breaks them."""
    return [line[start : start + width] for line in lines for start in range(0, max(1, len(line)), width)]


@pytest.mark.parametrize("width", [100, 50, 24])
def test_the_live_line_stands_below_a_log_that_stays_whole(width: int) -> None:
    """Every line that this process and its children write is left, in order, and nothing of the live one."""
    written, status = on_terminal(PROGRAM, width)
    terminal = Terminal(width)
    terminal.take(written.replace("\r\n", "\n"))
    plain = in_pipe(PROGRAM).splitlines()
    stamp = plain[0].index("INFO")
    times = [line[:stamp] for line in written.replace("\r", "\n").splitlines() if re.match(r"\d{4}-.* INFO", line)]
    assert len(times) == 5
    for number, line in enumerate(plain):
        if " INFO " in line:
            plain[number] = times.pop(0) + line[stamp:]
    assert [row.rstrip() for row in terminal.rows if row.strip()] == [row.rstrip() for row in wrapped(plain, width)]
    assert status == 0
    live = [state for state in terminal.seen if state.startswith("Training")]
    assert live
    for state in live:
        step = state.removeprefix("Training ")[0]
        assert state.startswith(TRAINING.format(step)[: width - 3].rstrip())
        assert len(state) < width
    assert any(state.endswith("^C") for state in terminal.seen)
    assert any(state.endswith("|") for state in live) == (width == 100)


@pytest.mark.parametrize("environment", [{"TERM": "dumb"}, {"TERM": ""}, {"NO_COLOR": "1"}])
def test_a_terminal_that_wants_plain_lines_gets_those_of_a_pipe(environment: dict[str, str]) -> None:
    """To the byte, but for the time of day and a terminal's line ends."""
    written, status = on_terminal(PROGRAM, 80, **environment)
    times = re.compile(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3}")
    assert times.sub("", written.replace("\r\n", "\n").replace("^C", "")) == times.sub("", in_pipe(PROGRAM))
    assert status == 0
    assert "\r" not in written.replace("\r\n", "")


@pytest.mark.parametrize("error", [OSError("the terminal is gone"), AttributeError("sp")])
def test_whoever_writes_never_waits_for_a_terminal_that_cannot_be_drawn_on(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, error: Exception
) -> None:
    """Nor for the library that draws: the pipe is read to its end."""

    def broken(_terminal: TextIO) -> None:
        raise error

    monkeypatch.setattr(live_view, "Screen", broken)
    read_end, write_end = os.pipe()
    os.write(write_end, b"line\n" * 100)
    ended = threading.Event()
    ended.set()
    with (tmp_path / "terminal").open("w") as terminal:
        live_view._draw(read_end, terminal, lambda: Line(what="Training"), ended)
    # Nobody reads any more, since all was read.
    with pytest.raises(BrokenPipeError):
        os.write(write_end, b"x")
    os.close(write_end)


def progress(**values: Any) -> Report:
    """A report of how far the training is."""
    return Report(progress=Progress(**values))


READING = Report(activity=Activity(what="reading rows", done=7))
LIBRARIES = Report(activity=Activity(what="loading libraries"))
EVALUATING = Report(activity=Activity(what="evaluating rows", done=3, total=8))


@pytest.mark.parametrize(
    ("stage", "reports", "line"),
    [
        ("prepare", [], ("Fetching model and data", None, None, "")),
        ("train", [], ("Starting the training", None, None, "")),
        ("train", [READING], ("Reading rows", 7, None, "")),
        ("verify", [READING], ("Verifying: reading rows", 7, None, "")),
        ("merge", [READING, LIBRARIES], ("Merging: loading libraries", None, None, "")),
        ("merge", [EVALUATING], ("Merging: evaluating rows", 3, 8, "")),
        ("train", [EVALUATING, Report(dataset=filled(DatasetStats))], ("Loading the model", None, None, "")),
        ("train", [progress(phase=Phase.LOADING_MODEL), READING], ("Reading rows", 7, None, "")),
        (
            "train",
            [progress(phase=Phase.EVALUATING), EVALUATING, progress(phase=Phase.EVALUATING, updated_at=9.0)],
            ("Evaluating rows", 3, 8, ""),
        ),
        ("train", [EVALUATING, progress(phase=Phase.TRAINING, eval_loss=2.0)], ("Training", None, None, "")),
        ("train", [progress(phase=Phase.TRAINING, step=2, total_steps=9)], ("Training", 2, 9, "")),
        (
            "train",
            [progress(phase=Phase.TRAINING, step=2, total_steps=9, loss=1, estimated_remaining_seconds=90)],
            ("Training", 2, 9, "loss 1.0000, 1m30s left"),
        ),
        (
            "train",
            [progress(phase=Phase.TRAINING, step=2, total_steps=9), progress(phase=Phase.CHECKPOINTING)],
            ("Saving a checkpoint", None, None, ""),
        ),
        ("publish", [Report()], ("Publishing", None, None, "")),
    ],
)
def test_the_line_says_what_goes_on_now(
    stage: str, reports: list[Report], line: tuple[str, int | None, int | None, str]
) -> None:
    """From what the stage reported last that says something new."""
    view = LiveView()
    view.stage(stage)
    for report in reports:
        view.take(report)
    assert view.line is not None
    assert (view.line.what, view.line.done, view.line.total, view.line.facts) == line


def test_work_is_reported_a_few_times_a_second_and_at_its_end() -> None:
    """A row takes microseconds; without a listener nothing happens."""
    heard: list[Activity] = []
    now = [0.0]
    Counter("x", 3, lambda: now[0])(3)
    with heard_by(heard.append):
        counter = Counter("reading rows", 1000, lambda: now[0])
        for done in range(1, 1001):
            now[0] += REPORT_EVERY_S / 100
            counter(done)
    assert [activity.done for activity in heard] == [1, *range(101, 1000, 100), 1000]
    assert {(activity.what, activity.total) for activity in heard} == {("reading rows", 1000)}
    begun("loading libraries")
    with heard_by(heard.append):
        begun("loading libraries")
    assert heard[-1:] == [Activity(what="loading libraries")]
    assert len(heard) == 12


def test_a_stage_reports_its_work(workplace: Workplace) -> None:
    """To its supervisor, in this order."""
    place = Place(claims=workplace.claims, workspace=workplace.root / "work", config=workplace.config_file())
    place.workspace.mkdir()
    attempt = finish(place)
    assert attempt.process.exitcode == 0
    what = [line["activity"]["what"] for line in attempt.lines() if line.get("activity")]
    assert list(dict.fromkeys(what)) == ["reading rows", "loading libraries", "encoding rows", "evaluating rows"]


def test_a_supervisor_shows_what_it_hears_of_its_stages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Which begins, and what it reports."""

    class Reading:
        def __init__(self, *, started: Callable[[str], None], take: Callable[[Report], None], **_: object) -> None:
            started("verify")
            take(READING)
            raise DatasetError("no rows")

    monkeypatch.setattr("lora_trainer.host.supervisor.Stages", Reading)
    view = LiveView()
    settings = Settings(volumes=Volumes(claims=tmp_path), port=None)
    with pytest.raises(DatasetError):
        Supervisor(config=make_config(), settings=settings, view=view).run()
    assert view.line == Line(what="Verifying: reading rows", done=7)


def test_each_stage_is_named_when_it_begins(tmp_path: Path) -> None:
    """Before its process is there."""
    named: list[str] = []
    stages = Stages(
        config_file=tmp_path / "config.json",
        volumes=Volumes(claims=tmp_path),
        take=lambda report: None,
        grace_s=1,
        started=named.append,
        training=Program(command=(sys.executable, "-c", "")),
    )
    stages.run("train")
    assert named == ["train"]


def test_rows_that_are_read_encoded_and_evaluated_are_reported(
    workplace: Workplace, tiny_base: Base, encoder: Encoder, cpu: Device
) -> None:
    """In this order, each to its end."""
    heard: list[Activity] = []
    with heard_by(heard.append):
        index = load_index(make_config(), Volumes(claims=workplace.claims), Hub())
        data = encode(index, encoder)
        loaded = load_model(tiny_base, Quantization.NONE, cpu)
        limit = evaluation_limit(None, 64, STEADY, cpu.torch_device, trained=4096)
        evaluate(loaded.model, loaded.head, data.evaluation, cpu, lambda _rows: None, limit=limit)
    last = {activity.what: (activity.done, activity.total) for activity in heard}
    assert list(last) == ["reading rows", "encoding rows", "evaluating rows"]
    assert last["reading rows"][1] is None
    assert last["encoding rows"] == (40, 40)
    assert last["evaluating rows"] == (len(data.evaluation), len(data.evaluation))
