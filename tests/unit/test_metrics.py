"""The operator's metrics: names, first values, and one set of series for each resource."""

import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from prometheus_client import CollectorRegistry
from tests.unit.builders import (
    CREATED,
    NAME,
    NAMESPACE,
    NOW,
    condition_object,
    make_finetune,
    make_manifest,
    minutes_ago,
    running_pod,
)

from lora_operator.cluster.store import Stores
from lora_operator.controller.metrics import Metrics
from lora_operator.controller.object_metrics import ObjectCollector
from lora_operator.model.names import PREFLIGHT
from lora_operator.model.objects import FineTune, Observed
from lora_operator.model.wording import instant

DEFINITION = Path(__file__).resolve().parents[2] / "crds/lorafinetunes.yaml"
WHO = {"namespace": NAMESPACE, "name": NAME}


def registry_of(*finetunes: FineTune) -> CollectorRegistry:
    registry = CollectorRegistry()
    registry.register(ObjectCollector(finetunes, NOW.timestamp))
    return registry


def series_of(registry: CollectorRegistry, name: str) -> dict[tuple[str, ...], float]:
    """The values of a metric by the labels that it has beside a resource's place."""
    return {
        tuple(value for label, value in sample.labels.items() if label not in WHO): sample.value
        for family in registry.collect()
        for sample in family.samples
        if sample.name == name
    }


def test_no_label_can_hold_credentials() -> None:
    """Of what a user writes the model's address alone becomes one: the definition takes none with a password."""
    made = {"model": {"uri": "hf://org/model"}, "dataset": {"uri": "hf://org/rows"}, "output": {"uri": "pvc://a/b"}}
    registry = registry_of(make_finetune(spec=made))
    labels = {value for family in registry.collect() for s in family.samples for value in s.labels.values()}
    assert {value for value in labels if "://" in value} == {"hf://org/model"}
    uri = yaml.safe_load(DEFINITION.read_text())["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]
    rules = [
        rule["rule"] for rule in uri["spec"]["properties"]["model"]["properties"]["uri"]["x-kubernetes-validations"]
    ]
    for scheme in ("hf", "s3", "pvc"):
        begun = [rule for rule in rules if rule.startswith(f"!self.startsWith('{scheme}://') || ")]
        patterns = [re.findall(r"self\.matches\('(.*?)'\)", rule.replace("!self.matches", "!")) for rule in begun]
        assert patterns, scheme
        for address in (
            f"{scheme}://user:pw@org/model",
            f"{scheme}://user:pw@host/org/model",
            f"{scheme}://pw@org/model",
        ):
            assert not all(re.search(one, address) for found in patterns for one in found), address


def test_a_resource_says_what_it_trains_and_how() -> None:
    """Identity and facts as labels of an info series."""
    queue = {"labels": {"kueue.x-k8s.io/queue-name": "gpu"}}
    finetune = make_finetune(spec={"quantization": "NF4", "resources": {"gpus": 2, "nodes": 3}}, metadata=queue)
    registry = registry_of(finetune)
    facts = {**WHO, "base_model": "hf://acme/base", "quantization": "NF4", "queue": "gpu"}
    assert registry.get_sample_value("lorafinetune_info", facts) == 1.0
    assert registry.get_sample_value("lorafinetune_requested_gpus", WHO) == 6.0


def test_the_quantization_is_the_one_that_was_resolved() -> None:
    """As the column of `kubectl get` has it; what the spec asks for only until then."""
    status = {"resolved": {"quantization": "INT8"}}
    registry = registry_of(make_finetune(spec={"quantization": "NF4"}, status=status))
    facts = {**WHO, "base_model": "hf://acme/base", "quantization": "INT8", "queue": ""}
    assert registry.get_sample_value("lorafinetune_info", facts) == 1.0


def test_an_odd_status_costs_its_own_series_only() -> None:
    """A scrape never fails because of one resource."""
    odd = make_finetune(
        status={"conditions": ["none"], "advice": {}, "progress": {"step": "x", "totalSteps": 0}, "startTime": 5}
    )
    registry = registry_of(odd)
    assert registry.get_sample_value("lorafinetune_progress_ratio", WHO) is None
    assert registry.get_sample_value("lorafinetune_attempts", WHO) == 0.0


def stated(reason: str, complete: str = "Unknown", **status: Any) -> dict[str, Any]:
    conditions = [
        condition_object("Complete", complete, reason=reason),
        condition_object("Failed", {"True": "False", "False": "True"}.get(complete, "Unknown"), reason=reason),
    ]
    return {"observedGeneration": 1, "conditions": conditions, **status}


@pytest.mark.parametrize(
    ("status", "wanted"),
    [
        (stated("Training"), ("Running", "Training")),
        (stated("Queued"), ("Held", "Queued")),
        (stated("Unschedulable"), ("Waiting", "Unschedulable")),
        (stated("OOMKilled"), ("Failing", "OOMKilled")),
        (stated("OOMKilled", "False"), ("Failed", "OOMKilled")),
        (stated("Succeeded", "True"), ("Succeeded", "Succeeded")),
    ],
)
def test_the_state_is_one_series_with_its_group(status: dict[str, Any], wanted: tuple[str, str]) -> None:
    """A dashboard counts runs by it, an alert knows whom to wake."""
    assert series_of(registry_of(make_finetune(status=status)), "lorafinetune_state") == {wanted: 1.0}


@pytest.mark.parametrize("reason", ["", "Whatever\n", "Accepted"])
def test_a_state_that_is_none_has_no_series(reason: str) -> None:
    """Whoever may write a status may write anything there."""
    assert series_of(registry_of(make_finetune(status=stated(reason))), "lorafinetune_state") == {}


def test_the_time_of_activity_goes_on_while_a_run_is_active_and_so_does_that_of_its_gpus() -> None:
    """What was counted, and the present period; of all nodes."""
    status = {"runSeconds": 60, "activeUntil": instant(minutes_ago(30)), "activeSince": instant(minutes_ago(2))}
    registry = registry_of(make_finetune(spec={"resources": {"gpus": 4, "nodes": 2}}, status=status))
    assert series_of(registry, "lorafinetune_active_seconds") == {(): 180.0}
    assert series_of(registry, "lorafinetune_gpu_seconds") == {(): 1440.0}


def test_retries_are_counted_by_kind() -> None:
    """Both while the run goes on, so that the first is not born with 1; then those that there were."""
    going = registry_of(make_finetune(status=stated("Training", retries={"used": 2})))
    assert series_of(going, "lorafinetune_retries_total") == {("used",): 2.0, ("preempted",): 0.0}
    ended = registry_of(make_finetune(status=stated("OOMKilled", "False", retries={"used": 2})))
    assert series_of(ended, "lorafinetune_retries_total") == {("used",): 2.0}
    assert len(series_of(registry_of(make_finetune()), "lorafinetune_retries_total")) == 2


def test_advice_has_a_series_for_each_code_that_there_is() -> None:
    """No text of it, and nothing that is no code."""
    advice = [
        {"code": "NodePressure", "severity": "Warning", "message": "token hf_abcdefgh"},
        {"code": "Own", "severity": "Info"},
        {"code": "OftenPreempted", "severity": "Loud"},
        {"code": ["x"], "severity": "Info"},
        7,
    ]
    registry = registry_of(make_finetune(status={"advice": advice}))
    assert series_of(registry, "lorafinetune_advice") == {("NodePressure", "Warning"): 1.0}


def test_namespaces_that_are_looked_after_again_are_no_longer_left_out() -> None:
    """The rights are looked at again while the start waits for the API server, and may be there then."""
    registry = CollectorRegistry()
    metrics = Metrics(registry)
    metrics.left_out(["a", "b"])
    metrics.left_out(["b"])
    name = "lora_operator_left_out_namespace"
    assert [registry.get_sample_value(name, {"namespace": namespace}) for namespace in "ab"] == [None, 1.0]


def test_series_that_alerts_count_by_are_there_before_the_first_event() -> None:
    """An increase of a series that is born with 1 would miss the first."""
    registry = CollectorRegistry()
    Metrics(registry)
    for result in ("success", "retry", "error"):
        assert registry.get_sample_value("lora_operator_reconcile_total", {"result": result}) == 0.0
    for result in ("succeeded", "failed"):
        assert registry.get_sample_value("lorafinetune_finished_total", {"result": result}) == 0.0


def test_an_end_is_counted_when_its_verdict_is_written_and_not_again() -> None:
    """Whichever it is."""
    registry = CollectorRegistry()
    metrics = Metrics(registry)
    good, bad = stated("Succeeded", "True"), stated("DatasetInvalid", "False")
    for before, after in (({}, stated("Training")), (stated("Training"), good), (good, good), ({}, bad), (bad, bad)):
        metrics.status_written(make_finetune(status=before), Observed(), after)
    for result in ("succeeded", "failed"):
        assert registry.get_sample_value("lorafinetune_finished_total", {"result": result}) == 1.0


def test_the_wait_for_the_training_is_counted_once_and_the_preflight_belongs_to_it() -> None:
    """From the creation of the resource to its first pod that trains, when the status names one for the first time."""
    registry = CollectorRegistry()
    metrics = Metrics(registry)
    checks = running_pod(name="checks", created_at=minutes_ago(49), stage=PREFLIGHT)
    first, second = (running_pod(name=n, created_at=minutes_ago(m)) for n, m in (("first", 40), ("second", 30)))
    metrics.status_written(make_finetune(), Observed(pods=(checks,)), stated("Preflight"))
    assert registry.get_sample_value("lorafinetune_queue_wait_seconds_count") == 0.0
    seen = Observed(pods=(checks, second, first))
    metrics.status_written(make_finetune(), seen, stated("Training", podName="second"))
    for name in ("first", "second"):
        known = make_finetune(status=stated("Training", podName="first"))
        metrics.status_written(known, seen, stated("Training", podName=name))
    assert registry.get_sample_value("lorafinetune_queue_wait_seconds_sum") == 1200.0
    assert registry.get_sample_value("lorafinetune_queue_wait_seconds_count") == 1.0


def test_the_state_has_a_beginning() -> None:
    """As the status says; before the first one since the creation."""

    def seconds(status: dict[str, Any]) -> float | None:
        registry = registry_of(make_finetune(status=status))
        return registry.get_sample_value("lorafinetune_state_since_timestamp_seconds", WHO)

    assert seconds(stated("Training", stateSince=instant(minutes_ago(7)))) == minutes_ago(7).timestamp()
    assert seconds({"conditions": stated("Pending")["conditions"]}) == CREATED.timestamp()
    assert seconds(stated("Training")) is None


def test_numbers_that_are_not_known_have_no_series() -> None:
    """No zero in place of nothing, and nothing that has no end; attempts alone start at 0."""
    odd = {"results": {"evalLossAfter": "inf", "evalLossBefore": "1e999"}, "progress": {"step": "nan"}}
    for registry in (registry_of(make_finetune()), registry_of(make_finetune(status=odd))):
        for name in (
            "completed_timestamp_seconds",
            "active_seconds",
            "gpu_seconds",
            "progress_ratio",
            "checkpoint_step",
            "estimated_memory_bytes",
            "final_eval_loss",
            "final_eval_loss_before",
        ):
            assert registry.get_sample_value(f"lorafinetune_{name}", WHO) is None
        assert registry.get_sample_value("lorafinetune_attempts", WHO) == 0.0


def full_status(result: str) -> dict[str, Any]:
    """Everything that a series is read from, for a run that goes on or has ended."""
    going = {
        "attempt": 1,
        "runSeconds": 60,
        "stateSince": instant(minutes_ago(9)),
        "activeUntil": instant(minutes_ago(9)),
        "plan": {"peakBytes": 1},
        "progress": {"step": 1, "totalSteps": 2, "checkpointStep": 30},
        "retries": {"used": 1, "preempted": 1},
        "advice": [{"code": "NodePressure", "severity": "Warning"}],
    }
    if result == "going":
        return {**going, **stated("Training")}
    end = {"completionTime": instant(minutes_ago(1)), "results": {"evalLossBefore": "2.5", "evalLossAfter": "1.5"}}
    return {**going, **end, "checkpoint": {"step": 35}, **stated("Succeeded", "True")}


@pytest.mark.parametrize(
    ("result", "wanted"),
    [
        (
            "going",
            {
                "lorafinetune_state_since_timestamp_seconds": minutes_ago(9).timestamp(),
                "lorafinetune_active_seconds": 60.0,
                "lorafinetune_requested_gpus": 1.0,
                "lorafinetune_attempts": 1.0,
                "lorafinetune_checkpoint_step": 30.0,
                "lorafinetune_estimated_memory_bytes": 1.0,
            },
        ),
        (
            "ended",
            {
                "lorafinetune_completed_timestamp_seconds": minutes_ago(1).timestamp(),
                "lorafinetune_checkpoint_step": 35.0,
                "lorafinetune_final_eval_loss": 1.5,
                "lorafinetune_final_eval_loss_before": 2.5,
            },
        ),
    ],
)
def test_a_run_has_few_series_fewer_after_its_end_and_none_once_it_is_deleted(
    result: str, wanted: dict[str, float]
) -> None:
    """From a store as the operator has it, in which those that are done are packed."""
    cache = Stores()
    manifest = make_manifest(status=full_status(result))
    manifest["metadata"]["resourceVersion"] = "1"
    cache.finetunes.put(manifest)
    registry = CollectorRegistry()
    registry.register(ObjectCollector(cache.finetunes, NOW.timestamp))
    samples = {sample.name: sample.value for family in registry.collect() for sample in family.samples}
    always = {"lorafinetune_info": 1.0, "lorafinetune_state": 1.0, "lorafinetune_advice": 1.0}
    numbers = {"lorafinetune_gpu_seconds": 60.0, "lorafinetune_progress_ratio": 0.5, "lorafinetune_retries_total": 1.0}
    assert samples == {**always, **numbers, **wanted}
    manifest["metadata"]["resourceVersion"] = "2"
    cache.finetunes.remove(manifest)
    assert not [sample for family in registry.collect() for sample in family.samples]
