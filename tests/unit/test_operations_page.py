"""The commands of docs/operations.md, and what it shows of their output."""

import io
import re
from datetime import timedelta
from pathlib import Path

import pytest
from tests.pages.blocks import block
from tests.unit.builders import (
    CONFIG,
    NAME,
    NAMESPACE,
    NOW,
    UID,
    condition_object,
    make_finetune,
    make_job,
    make_job_object,
    make_pod_object,
    running_pod,
    with_status,
)
from tests.unit.reached import running

from lora_operator.cluster.cache import Key
from lora_operator.decision.decide import decide
from lora_operator.running import logs
from lora_operator.running.explain import describe, render
from lora_operator.running.logs import FIELDS, DecisionLine
from lora_operator.views.model import Observed
from lora_operator.views.observe import parse_job, parse_pod
from lora_operator.views.wording import instant
from lora_trainer.contract.progress import Phase, Progress

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


def test_the_explanation_is_what_the_command_prints() -> None:
    """Of a run whose claim nobody has made, at the ages that the page shows."""
    since = NOW - timedelta(minutes=12, seconds=29)
    finetune = make_finetune(metadata={"creationTimestamp": instant(since - timedelta(seconds=1))})
    job = make_job_object(status={"active": 1, "startTime": instant(since)})
    said = {"reason": "Unschedulable", "message": 'persistentvolumeclaim "data" not found'}
    pod = make_pod_object(node="", conditions=(condition_object("PodScheduled", "False", since=since, **said),))
    for child in (job, pod):
        child["metadata"]["creationTimestamp"] = instant(since)
    observed = Observed(jobs=(parse_job(job),), pods=(parse_pod(pod),))
    known = with_status(finetune, decide(finetune, observed, CONFIG, NOW).status)
    printed = render(describe(known, observed, decide(known, observed, CONFIG, NOW), config=CONFIG, now=NOW))
    assert masked(printed) == masked(block("docs/operations.md", "LoRAFineTune team-a/").output)


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
