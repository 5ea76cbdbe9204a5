"""The operator's metrics: names, first values, and one set of series for each resource."""

import pytest
from prometheus_client import CollectorRegistry, exposition
from tests.unit.builders import CREATED, NAME, NAMESPACE, condition_object, make_finetune, minutes_ago

from lora_operator.running.metrics import Metrics
from lora_operator.running.object_metrics import ObjectCollector
from lora_operator.views.model import FineTune
from lora_operator.views.wording import instant

WHO = {"namespace": NAMESPACE, "name": NAME}


def registry_of(*finetunes: FineTune) -> CollectorRegistry:
    registry = CollectorRegistry()
    registry.register(ObjectCollector(finetunes))
    return registry


def test_series_with_known_labels_are_there_before_the_first_event() -> None:
    """A rate over a series that is born with 1 would miss the first."""
    registry = CollectorRegistry()
    Metrics(registry)
    for result in ("success", "retry", "error"):
        assert registry.get_sample_value("lora_operator_reconcile_total", {"result": result}) == 0.0
    assert registry.get_sample_value("lora_operator_api_requests_total", {"verb": "update", "code": "200"}) == 0.0
    assert registry.get_sample_value("lora_operator_watch_last_event_timestamp_seconds", {"resource": "jobs"}) == 0.0
    assert registry.get_sample_value("lorafinetune_run_duration_seconds_count", {"result": "failed"}) == 0.0


def test_a_resource_says_what_it_trains_and_how() -> None:
    """Identity and facts as labels of an info series."""
    queue = {"labels": {"kueue.x-k8s.io/queue-name": "gpu"}}
    finetune = make_finetune(spec={"quantization": "NF4", "resources": {"gpus": 2, "nodes": 3}}, metadata=queue)
    registry = registry_of(finetune)
    facts = {**WHO, "base_model": "hf://acme/base", "quantization": "NF4", "queue": "gpu"}
    assert registry.get_sample_value("lorafinetune_info", facts) == 1.0
    assert registry.get_sample_value("lorafinetune_requested_gpus", WHO) == 6.0
    assert registry.get_sample_value("lorafinetune_created_timestamp_seconds", WHO) == CREATED.timestamp()


def test_the_quantization_is_the_one_that_was_resolved() -> None:
    """As the column of `kubectl get` has it; what the spec asks for only until then."""
    status = {"resolved": {"quantization": "INT8"}}
    registry = registry_of(make_finetune(spec={"quantization": "NF4"}, status=status))
    facts = {**WHO, "base_model": "hf://acme/base", "quantization": "INT8", "queue": ""}
    assert registry.get_sample_value("lorafinetune_info", facts) == 1.0


def test_a_condition_has_the_series_of_its_status_alone() -> None:
    """Two thirds of all series would be zeros else; a status that Kubernetes does not know has none."""
    conditions = [condition_object("Complete", "False"), condition_object("Accepted", "Maybe")]
    registry = registry_of(make_finetune(status={"conditions": conditions}))
    assert [s.labels["condition"] for m in registry.collect() for s in m.samples if "condition" in s.labels] == [
        "Complete"
    ]
    values = {
        status: registry.get_sample_value(
            "lorafinetune_status_condition", {**WHO, "condition": "Complete", "status": status}
        )
        for status in ("True", "False", "Unknown")
    }
    assert values == {"True": None, "False": 1.0, "Unknown": None}


def test_numbers_that_are_not_known_have_no_series() -> None:
    """No zero in place of nothing; attempts alone start at 0."""
    registry = registry_of(make_finetune())
    for name in ("started_timestamp_seconds", "completed_timestamp_seconds", "progress_ratio", "final_eval_loss"):
        assert registry.get_sample_value(f"lorafinetune_{name}", WHO) is None
    assert registry.get_sample_value("lorafinetune_attempts", WHO) == 0.0


def test_a_finished_run_keeps_its_final_numbers() -> None:
    """A pod's own series go stale when it ends; these stay while the resource does."""
    status = {
        "attempt": 1,
        "startTime": instant(minutes_ago(50)),
        "completionTime": instant(minutes_ago(10)),
        "progress": {"step": 40, "totalSteps": 40, "peakMemoryBytes": 2**30},
        "results": {"trainLoss": "1.2500", "evalLossAfter": "1.5000"},
    }
    registry = registry_of(make_finetune(status=status))
    read = {
        name: registry.get_sample_value(f"lorafinetune_{name}", WHO)
        for name in ("progress_ratio", "peak_memory_bytes", "final_loss", "final_eval_loss", "attempts")
    }
    assert read == {
        "progress_ratio": 1.0,
        "peak_memory_bytes": 2.0**30,
        "final_loss": 1.25,
        "final_eval_loss": 1.5,
        "attempts": 1.0,
    }


def test_an_odd_status_costs_its_own_series_only() -> None:
    """A scrape never fails because of one resource."""
    odd = make_finetune(status={"conditions": "none", "progress": {"step": "x", "totalSteps": 0}, "startTime": 5})
    registry = registry_of(odd)
    assert registry.get_sample_value("lorafinetune_progress_ratio", WHO) is None
    assert registry.get_sample_value("lorafinetune_attempts", WHO) == 0.0


@pytest.mark.parametrize("accept", ["text/plain", "application/openmetrics-text"])
def test_each_format_has_all_series_at_every_scrape(accept: str) -> None:
    """Samples are made while they are written: none may be missing from the second scrape."""
    finetunes = [make_finetune(status={"conditions": [condition_object("Complete", "True")]}) for _ in range(3)]
    registry = registry_of(*finetunes)
    encode, _ = exposition.choose_encoder(accept)
    first, second = encode(registry).decode(), encode(registry).decode()
    assert first == second
    assert first.count("lorafinetune_info{") == 3
    assert first.count('lorafinetune_status_condition{condition="Complete"') == 3
    assert first.count("lorafinetune_created_timestamp_seconds{") == 3
