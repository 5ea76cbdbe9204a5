"""What is counted when a status is written: each fact once."""

from typing import Any

from prometheus_client import CollectorRegistry
from tests.unit.builders import NAMESPACE, condition_object, ended_pod, make_finetune

from lora_operator.running.metrics import Metrics
from lora_operator.running.transitions import read_transition
from lora_operator.views.model import Observed

STARTED = "2026-03-01T11:10:00Z"
ENDED = "2026-03-01T11:40:00Z"


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


def test_the_end_of_a_run_is_counted_once() -> None:
    """The step to the verdict counts; a later write of the same verdict does not."""
    first = read_transition(make_finetune(status=going()), Observed(), ended())
    assert first.ending is not None
    assert (first.ending.result, first.ending.reason, first.ending.duration_s) == ("succeeded", "Succeeded", 1800.0)
    assert read_transition(make_finetune(status=ended()), Observed(), ended()).ending is None


def test_a_failed_end_carries_its_reason() -> None:
    """The reason of Failed is the label."""
    ending = read_transition(make_finetune(status=going()), Observed(), ended("DatasetInvalid")).ending
    assert ending is not None
    assert (ending.result, ending.reason) == ("failed", "DatasetInvalid")


def test_the_wait_for_the_first_start_is_told_once() -> None:
    """From the creation of the resource, and only while the status knew of no start."""
    assert read_transition(make_finetune(), Observed(), going()).waited_s == 600.0
    assert read_transition(make_finetune(status=going()), Observed(), going()).waited_s is None


def test_a_new_pod_in_place_of_an_old_one_is_a_restart_with_the_old_ones_reason() -> None:
    """The exit code of the pod before is the cause."""
    old = ended_pod(137, name="old", phase="Failed")
    before = make_finetune(status=going(podName="old"))
    assert read_transition(before, Observed(pods=(old,)), going(podName="new")).restart_cause == "OOMKilled"
    assert read_transition(before, Observed(), going(podName="new")).restart_cause == "Unknown"
    assert read_transition(before, Observed(), going(podName="old")).restart_cause is None
    assert read_transition(make_finetune(status=going()), Observed(), going(podName="new")).restart_cause is None


def test_a_new_attempt_is_a_restart_because_its_job_was_deleted() -> None:
    """The pod of the deleted Job is gone, the attempt tells."""
    before = make_finetune(status=going(podName="old", attempt=1))
    assert read_transition(before, Observed(), going(podName="new", attempt=2)).restart_cause == "JobRecreated"


def test_counters_follow_the_transitions() -> None:
    """Label by label."""
    registry = CollectorRegistry()
    metrics = Metrics(registry)
    metrics.observe(read_transition(make_finetune(status=going()), Observed(), ended("OOMKilled")))
    labels = {"namespace": NAMESPACE, "result": "failed", "reason": "OOMKilled"}
    assert registry.get_sample_value("lorafinetune_finished_total", labels) == 1.0
    assert registry.get_sample_value("lorafinetune_run_duration_seconds_sum", {"result": "failed"}) == 1800.0
