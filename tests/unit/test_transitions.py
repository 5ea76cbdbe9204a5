"""What is counted when a status is written: each fact once."""

from typing import Any

from prometheus_client import CollectorRegistry
from tests.unit.builders import NAMESPACE, condition_object, ended_pod, make_finetune, minutes_ago, running_pod

from lora_operator.running.metrics import Metrics
from lora_operator.running.transitions import has_just_ended, restart_cause, run_s, waited_s
from lora_operator.views.model import Observed
from lora_operator.views.names import PREFLIGHT

STARTED = "2026-03-01T11:10:00Z"
ENDED = "2026-03-01T11:40:00Z"
TRAINS, LATER = minutes_ago(40), minutes_ago(30)


def ended(reason: str = "Succeeded") -> dict[str, Any]:
    good = reason == "Succeeded"
    return {
        "conditions": [
            condition_object("Complete", "True" if good else "False", reason=reason),
            condition_object("Failed", "False" if good else "True", reason=reason),
        ],
        "startTime": STARTED,
        "completionTime": ENDED,
    }


def going(**fields: Any) -> dict[str, Any]:
    conditions = [condition_object(kind, "Unknown", reason="Training") for kind in ("Complete", "Failed")]
    return {"conditions": conditions, "startTime": STARTED, **fields}


def test_the_step_to_a_verdict_is_the_end_of_a_run_and_a_later_write_of_it_is_not() -> None:
    """Whether it is a good one or not."""
    for reason in ("Succeeded", "DatasetInvalid"):
        assert has_just_ended(make_finetune(status=going()), ended(reason))
        assert not has_just_ended(make_finetune(status=ended(reason)), ended(reason))
    assert not has_just_ended(make_finetune(), going())


def test_a_run_lasts_from_its_first_start_to_its_end() -> None:
    """One that never started lasted for no time that could be counted."""
    assert run_s(ended()) == 1800.0
    assert run_s({**ended(), "startTime": ""}) is None


def test_the_wait_for_the_training_is_reported_once() -> None:
    """From the creation of the resource to its first pod that trains, when the status names one for the first time."""
    first, second = running_pod(name="first", created_at=TRAINS), running_pod(name="second", created_at=LATER)
    seen = Observed(pods=(second, first))
    assert waited_s(make_finetune(), seen, going(podName="first")) == 1200.0
    assert waited_s(make_finetune(), seen, going(podName="second")) == 1200.0
    assert waited_s(make_finetune(status=going(podName="first")), seen, going(podName="second")) is None


def test_the_preflight_belongs_to_the_wait() -> None:
    """Its Job is the first to start, and holds no GPU; where it fails, no wait for one is counted."""
    checks = running_pod(name="checks", created_at=minutes_ago(49), stage=PREFLIGHT)
    assert waited_s(make_finetune(), Observed(pods=(checks,)), going()) is None
    trains = running_pod(name="trains", created_at=TRAINS)
    seen = Observed(pods=(checks, trains))
    assert waited_s(make_finetune(status=going()), seen, going(podName="trains")) == 1200.0


def test_a_new_pod_in_place_of_an_old_one_is_a_restart_with_the_old_ones_reason() -> None:
    """The exit code of the pod before is the cause."""
    old = ended_pod(137, reason="OOMKilled", name="old", phase="Failed")
    before = make_finetune(status=going(podName="old"))
    assert restart_cause(before, Observed(pods=(old,)), going(podName="new")) == "OOMKilled"
    assert restart_cause(before, Observed(), going(podName="new")) == "Unknown"
    assert restart_cause(before, Observed(), going(podName="old")) is None
    assert restart_cause(make_finetune(status=going()), Observed(), going(podName="new")) is None


def test_a_new_attempt_is_a_restart_because_its_job_was_deleted() -> None:
    """The pod of the deleted Job is gone, the attempt tells."""
    before = make_finetune(status=going(podName="old", attempt=1))
    assert restart_cause(before, Observed(), going(podName="new", attempt=2)) == "JobRecreated"


def test_counters_follow_the_steps() -> None:
    """Label by label."""
    registry = CollectorRegistry()
    metrics = Metrics(registry)
    old = ended_pod(137, reason="OOMKilled", name="old", phase="Failed", created_at=TRAINS)
    metrics.runs.observe(make_finetune(), Observed(pods=(old,)), going(podName="old"))
    metrics.runs.observe(make_finetune(status=going(podName="old")), Observed(pods=(old,)), going(podName="new"))
    metrics.runs.observe(make_finetune(status=going()), Observed(), ended("DatasetInvalid"))
    metrics.runs.observe(make_finetune(status=ended("DatasetInvalid")), Observed(), ended("DatasetInvalid"))
    labels = {"namespace": NAMESPACE, "result": "failed", "reason": "DatasetInvalid"}
    assert registry.get_sample_value("lorafinetune_finished_total", labels) == 1.0
    assert registry.get_sample_value("lorafinetune_run_duration_seconds_sum", {"result": "failed"}) == 1800.0
    assert registry.get_sample_value("lorafinetune_queue_wait_seconds_sum") == 1200.0
    labels = {"namespace": NAMESPACE, "cause": "OOMKilled"}
    assert registry.get_sample_value("lorafinetune_restarts_total", labels) == 1.0
