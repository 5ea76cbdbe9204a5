"""docs/operations.md names what the code has."""

import io
import re
from datetime import timedelta
from pathlib import Path

import pytest
import yaml
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
from lora_operator.running.decision_log import DecisionLine
from lora_operator.running.explain import describe, render
from lora_operator.running.logs import FIELDS
from lora_operator.running.self_check import LEASE_RIGHTS, RIGHTS
from lora_operator.views.config import OperatorConfig, yaml_name
from lora_operator.views.model import Observed
from lora_operator.views.observe import parse_job, parse_pod
from lora_operator.views.wording import instant
from lora_trainer.contract.progress import Phase, Progress

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs/operations.md").read_text()


def section(title: str) -> str:
    """The text under a heading."""
    return PAGE.split(f"\n## {title}\n")[1].split("\n## ")[0]


def test_every_setting_is_a_value_of_the_chart_or_in_the_table_and_no_other() -> None:
    """By its name in YAML, each in one place; that of the cache is an earlier name among the chart's."""
    rows = [line.split("|")[1] for line in section("Settings").splitlines() if line.startswith("| `")]
    listed = re.findall(r"`(\w+)`", " ".join(rows))
    values = yaml.safe_load((ROOT / "helm/lora-finetune-operator/values.yaml").read_text())["config"]
    assert sorted({*listed, *values}) == sorted(map(yaml_name, OperatorConfig.__dataclass_fields__))
    assert [name for name in listed if name in values] == ["cacheClaim"]


def test_every_right_that_the_operator_checks_is_in_the_table_and_no_other() -> None:
    """Of docs/install.md, by plural names; those on a Lease are in the sentence below it."""
    page = (ROOT / "docs/install.md").read_text().split("\n### What it may do\n")[1].split("\n### ")[0]
    rows = re.findall(r"^\| `([a-z/]+)` \| ([a-z, ]+) \|", page, flags=re.MULTILINE)
    rows += re.findall(r"for `(leases)` \(([a-z, ]+)\)", page)
    listed = {f"{verb} {name}" for name, verbs in rows for verb in verbs.split(", ")}
    only_on_some_clusters = {"update lorafinetunes/finalizers"}
    checked = {re.sub(r"\.[a-z0-9.-]+", "", str(right)) for right in (*RIGHTS, *LEASE_RIGHTS)}
    assert listed - only_on_some_clusters == checked


def test_every_field_of_the_log_is_explained_as_in_the_code() -> None:
    """By the same words, in the same order."""
    rows = re.findall(r"^\| `(\w+)` \| (.+) \|$", section("Logs"), re.MULTILINE)
    assert rows == list(FIELDS.items())


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
