"""A resource that came back from a backup of resources: with a new uid, and maybe with the status of the old one."""

from pathlib import Path
from typing import Any

import pytest
import yaml
from prometheus_client import CollectorRegistry
from tests.unit.builders import (
    CONFIG,
    NAME,
    NAMESPACE,
    NOW,
    UID,
    condition_object,
    job_name,
    make_finetune,
    minutes_ago,
)
from tests.unit.plans import finished, plan_for, stated

from lora_operator.decision.decide import decide
from lora_operator.running.object_metrics import ObjectCollector
from lora_operator.views import names
from lora_operator.views.model import Observed, Rejection
from lora_operator.views.observe import parse_finetune
from lora_operator.views.wording import instant

RECORDED = Path(__file__).resolve().parents[1] / "faults/earlier_release/runs.yaml"
NEW = {"uid": "99999999-2222-3333-4444-555555555555"}
TRAINING: dict[str, Any] = {
    "observedGeneration": 1,
    "conditions": [
        condition_object("Accepted", reason="Accepted"),
        condition_object("PreflightPassed", reason="PreflightPassed"),
        condition_object("CheckpointSaved", reason="CheckpointSaved"),
        condition_object("Complete", "Unknown", reason="Training"),
        condition_object("Failed", "Unknown", reason="Training"),
    ],
    "attempt": 1,
    "jobName": job_name(),
    "podName": f"{job_name()}-0-x7k2p",
    "startTime": instant(minutes_ago(50)),
    "activeSince": instant(minutes_ago(50)),
    "runSeconds": 0,
    "retries": {"error": 1},
    "progress": {"phase": "Training", "step": 500, "totalSteps": 1000, "checkpointStep": 480},
    "resolved": {"pod": {"cpu": "2", "memory": "9Gi"}},
}


@pytest.mark.parametrize(
    "held",
    [{"rejection": Rejection(code=403, kind="Job", name="x", reason="Forbidden", message="")}],
)
def test_a_wait_of_the_old_run_is_none_of_the_new_one(held: dict[str, Any]) -> None:
    """Of a run that had no training yet the status names no Job."""
    since = minutes_ago(2000)
    conditions = [condition_object(kind, "False", since=since) for kind in ("PodsReady", "Suspended")]
    new = {**NEW, "creationTimestamp": instant(minutes_ago(1))}
    finetune = make_finetune(spec={"pendingTimeoutSeconds": 3600}, status={"conditions": conditions}, metadata=new)
    assert stated(plan_for(finetune, **held), "Failed")[0] == "Unknown"


@pytest.mark.parametrize("retries", [0, 3])
@pytest.mark.parametrize(("preflight", "stage"), [("Run", names.PREFLIGHT), ("Skip", names.TRAIN)])
def test_an_unfinished_run_begins_anew(retries: int, preflight: str, stage: str) -> None:
    """None of what its status tells was done under this uid: its Job was not deleted, its checkpoints are elsewhere."""
    finetune = make_finetune(spec={"maxRetries": retries, "preflight": preflight}, status=TRAINING, metadata=NEW)
    plan = plan_for(finetune)
    assert [made["metadata"]["name"] for made in plan.create] == [names.job_name(NAME, NEW["uid"], 1, stage)]
    assert plan.status.get("attempt", 0) == (stage == names.TRAIN)
    assert stated(plan)[1] != "BackoffLimitExceeded"
    assert "JobRecreated" not in {event.reason for event in plan.events}
    conditions = {found["type"]: found["status"] for found in plan.status["conditions"]}
    assert conditions.get("CheckpointSaved") != "True"
    assert conditions.get("PreflightPassed") != "True"
    assert not {"progress", "retries", "podName", "startTime", "activeSince"} & set(plan.status)
    assert plan.status["resolved"]["pod"]["memory"] != "9Gi"
    again = parse_finetune({**finetune.manifest, "status": plan.status})
    assert again.status == plan.status


def test_its_series_tell_nothing_of_the_other_either() -> None:
    """As for one that the operator has not seen yet."""
    registry = CollectorRegistry()
    registry.register(ObjectCollector([make_finetune(status=TRAINING, metadata=NEW)], NOW.timestamp))
    whose = {"namespace": NAMESPACE, "name": NAME}
    assert registry.get_sample_value("lorafinetune_attempts", whose) == 0.0
    assert registry.get_sample_value("lorafinetune_retries_total", {**whose, "cause": "error"}) == 0.0
    assert registry.get_sample_value("lorafinetune_active_seconds", whose) in (None, 0.0)


def test_a_finished_run_stays_finished() -> None:
    """Its result is as good as before."""
    before = finished()
    after = parse_finetune({**before.manifest, "metadata": {**before.manifest["metadata"], **NEW}})
    assert after.status == before.status
    plan = plan_for(after)
    assert (stated(plan), plan.create, plan.delete) == (("True", "Succeeded"), (), ())


@pytest.mark.parametrize("name", [job_name(), job_name(12), "", "support-tone-1", "x", 7, None])
def test_any_other_status_is_read_as_it_is(name: object) -> None:
    """Its Job's name is of this uid, or none that the operator gives, whoever wrote it."""
    status = {**TRAINING, "jobName": name}
    assert make_finetune(status=status).status == status


@pytest.mark.parametrize("length", [1, 40, 63, 253])
def test_a_long_name_hides_no_uid(length: int) -> None:
    """Names of Jobs have the end of it cut off."""
    for stage in (names.TRAIN, names.PREFLIGHT):
        name = names.job_name("a" * length, UID, 9999, stage)
        assert not names.is_of_another(name, UID)
        assert names.is_of_another(name, NEW["uid"])


@pytest.mark.parametrize("name", sorted(yaml.safe_load(RECORDED.read_text())))
def test_a_status_of_an_earlier_release_is_its_own(name: str) -> None:
    """What the operator of then left goes on."""
    recorded = yaml.safe_load(RECORDED.read_text())[name]["finetune"]
    assert recorded["status"]["jobName"]
    assert parse_finetune(recorded).status == recorded["status"]
    assert decide(parse_finetune(recorded), Observed(), CONFIG, NOW).status["attempt"] >= 1
