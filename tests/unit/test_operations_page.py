"""The commands of docs/operations.md, and what it shows of their output."""

import io
import re
from pathlib import Path

import pytest
from tests.pages.blocks import block
from tests.unit.builders import (
    CONFIG,
    NAME,
    NAMESPACE,
    NOW,
    UID,
    make_finetune,
    make_job,
    running_pod,
    with_status,
)
from tests.unit.deciding import decide
from tests.unit.reached import running

from lora_operator.cluster.store import Key
from lora_operator.controller import logs
from lora_operator.controller.logs import FIELDS, DecisionLine
from lora_operator.model.objects import Observed
from lora_trainer.spec.progress import Phase, Progress

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs/operations.md").read_text()


def section(title: str) -> str:
    """The text under a heading."""
    return PAGE.split(f"\n## {title}\n")[1].split("\n## ")[0]


def test_the_questions_ask_for_fields_that_there_are() -> None:
    """A query for a field by another name finds nothing, at night."""
    queries = re.findall(r"jq -\w+ '(.+?)'", section("Logs"))
    assert len(queries) >= 8
    for query in queries:
        asked = set(re.findall(r"(?<![\w\]])\.([a-zA-Z]+)", query))
        assert asked
        assert asked <= {*FIELDS, "time", "message", "level"}, query


def masked(text: str) -> str:
    """Without times, numbers of turns, and the part of a name that is chance."""
    plain = re.sub(r"\S+Z (?=[A-Z]+ )|turn=\S+", "<time>", text)
    return re.sub(r"support-tone-[a-z0-9]{5}-1(-0-[a-z0-9]{5})?", "<name>", plain)


@pytest.fixture
def stream() -> io.StringIO:
    """Where the operator's log goes."""
    text = io.StringIO()
    logs.configure("INFO", "text", text)
    return text


def test_the_lines_of_the_log_are_what_the_operator_writes(stream: io.StringIO) -> None:
    """Of a new run, and of one that begins to train."""
    loading = with_status(make_finetune(), running(Phase.LOADING_MODEL))
    progress = Progress(phase=Phase.TRAINING, step=3, total_steps=40, estimated_remaining_seconds=310)
    trains = Observed(jobs=(make_job(),), pods=(running_pod(),), progress=progress)
    for finetune, observed, next_look_s in ((make_finetune(), Observed(), 10.0), (loading, trains, 15.0)):
        plan = decide(finetune, observed, CONFIG, NOW)
        with logs.turn(Key(NAMESPACE, NAME), UID), DecisionLine(finetune, plan) as line:
            for job in plan.create:
                line.wrote("created", "Job", job["metadata"]["name"])
            line.wrote_status()
            line.next_look_s = next_look_s
    assert masked(stream.getvalue()) == masked(block("docs/operations.md", "2026-03-01T").output)
