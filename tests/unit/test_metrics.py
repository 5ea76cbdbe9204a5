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
)

from lora_operator.cluster.cache import Cache
from lora_operator.running.metrics import Metrics
from lora_operator.running.object_metrics import ObjectCollector
from lora_operator.views.model import FineTune
from lora_operator.views.wording import instant

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


def test_series_with_known_labels_are_there_before_the_first_event() -> None:
    """A rate over a series that is born with 1 would miss the first."""
    registry = CollectorRegistry()
    Metrics(registry)
    for result in ("success", "retry", "error"):
        assert registry.get_sample_value("lora_operator_reconcile_total", {"result": result}) == 0.0
    assert registry.get_sample_value("lora_operator_api_requests_total", {"verb": "update", "code": "200"}) == 0.0
    assert registry.get_sample_value("lora_operator_watch_last_event_timestamp_seconds", {"resource": "jobs"}) == 0.0
    assert registry.get_sample_value("lorafinetune_run_duration_seconds_count", {"result": "failed"}) == 0.0


def test_an_hour_after_its_last_run_a_namespace_has_no_counters() -> None:
    """Those of a thousand short-lived namespaces would else be there for as long as the process."""
    registry = CollectorRegistry()
    metrics = Metrics(registry)

    def shown() -> set[str]:
        samples = [sample for family in registry.collect() for sample in family.samples]
        return {sample.labels["namespace"] for sample in samples if "namespace" in sample.labels}

    metrics.runs.finished.labels("lasting", "failed", "Unknown").inc()
    metrics.runs.finished.labels("brief", "failed", "Unknown").inc()
    metrics.runs.restarts.labels("brief", "Evicted").inc()
    metrics.runs.keep(["brief", "lasting"], 1000)
    metrics.runs.keep(["lasting"], 4600)
    assert shown() == {"brief", "lasting"}
    metrics.runs.keep(["lasting"], 4601)
    assert shown() == {"lasting"}


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
    for name in (
        "started_timestamp_seconds",
        "completed_timestamp_seconds",
        "active_seconds",
        "progress_ratio",
        "checkpoint_step",
        "estimated_memory_bytes",
        "final_eval_loss",
        "final_eval_loss_before",
    ):
        assert registry.get_sample_value(f"lorafinetune_{name}", WHO) is None
    assert registry.get_sample_value("lorafinetune_attempts", WHO) == 0.0


def test_a_finished_run_keeps_its_final_numbers() -> None:
    """A pod's own series go stale when it ends; these stay while the resource does."""
    status = {
        "attempt": 1,
        "startTime": instant(minutes_ago(50)),
        "completionTime": instant(minutes_ago(10)),
        "runSeconds": 2400,
        "activeUntil": instant(minutes_ago(10)),
        "plan": {"peakBytes": 2**31},
        "progress": {"step": 40, "totalSteps": 40, "peakMemoryBytes": 2**30, "checkpointStep": 30},
        "results": {"trainLoss": "1.2500", "evalLossBefore": "2.5000", "evalLossAfter": "1.5000"},
        "checkpoint": {"uri": "pvc://a/b", "step": 35},
    }
    registry = registry_of(make_finetune(status=status))
    wanted = {
        "progress_ratio": 1.0,
        "peak_memory_bytes": 2.0**30,
        "estimated_memory_bytes": 2.0**31,
        "checkpoint_step": 35.0,
        "active_seconds": 2400.0,
        "final_loss": 1.25,
        "final_eval_loss": 1.5,
        "final_eval_loss_before": 2.5,
        "attempts": 1.0,
    }
    assert {name: registry.get_sample_value(f"lorafinetune_{name}", WHO) for name in wanted} == wanted


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


def test_the_state_has_a_beginning() -> None:
    """As the status says; before the first one since the creation, and after the last since the end."""
    since, ended = instant(minutes_ago(7)), instant(minutes_ago(3))

    def seconds(status: dict[str, Any]) -> float | None:
        registry = registry_of(make_finetune(status=status))
        return registry.get_sample_value("lorafinetune_state_since_timestamp_seconds", WHO)

    assert seconds(stated("Training", stateSince=since)) == minutes_ago(7).timestamp()
    assert seconds({"conditions": stated("Pending")["conditions"]}) == CREATED.timestamp()
    assert seconds(stated("Succeeded", "True", completionTime=ended)) == minutes_ago(3).timestamp()
    assert seconds(stated("Training")) is None


def test_the_time_of_activity_goes_on_while_a_run_is_active_and_so_does_that_of_its_gpus() -> None:
    """What was counted, and the present period; of all nodes."""
    status = {"runSeconds": 60, "activeUntil": instant(minutes_ago(30)), "activeSince": instant(minutes_ago(2))}
    registry = registry_of(make_finetune(spec={"resources": {"gpus": 4, "nodes": 2}}, status=status))
    assert series_of(registry, "lorafinetune_active_seconds") == {(): 180.0}
    assert series_of(registry, "lorafinetune_gpu_seconds") == {(): 1440.0}


def test_retries_are_counted_by_cause() -> None:
    """Four series while the run goes on, so that the first retry is not born with 1; then those that there were."""
    retries = {"preempted": 0, "outOfMemory": 2, "nodeLost": 0, "error": 0}
    going = series_of(
        registry_of(make_finetune(status=stated("Training", retries=retries))), "lorafinetune_retries_total"
    )
    assert going == {("preempted",): 0.0, ("outOfMemory",): 2.0, ("nodeLost",): 0.0, ("error",): 0.0}
    ended = make_finetune(status=stated("OOMKilled", "False", retries=retries))
    assert series_of(registry_of(ended), "lorafinetune_retries_total") == {("outOfMemory",): 2.0}
    assert len(series_of(registry_of(make_finetune()), "lorafinetune_retries_total")) == 4


def test_advice_has_a_series_for_each_code_that_there_is() -> None:
    """No text of it, and nothing that is no code."""
    advice = [
        {"code": "MoreMemory", "severity": "Warning", "message": "token hf_abcdefgh"},
        {"code": "Own", "severity": "Info"},
        {"code": "NodeSilent", "severity": "Loud"},
        {"code": ["x"], "severity": "Info"},
        7,
    ]
    registry = registry_of(make_finetune(status={"advice": advice}))
    assert series_of(registry, "lorafinetune_advice") == {("MoreMemory", "Warning"): 1.0}


def test_conditions_of_others_and_numbers_without_end_have_no_series() -> None:
    """Labels come from lists of ours."""
    status = {
        "conditions": [condition_object("acme.com/Own", "True"), condition_object("Complete", "True")],
        "results": {"trainLoss": "nan", "evalLossAfter": "inf", "evalLossBefore": "1e999"},
    }
    registry = registry_of(make_finetune(status=status))
    assert series_of(registry, "lorafinetune_status_condition") == {("Complete", "True"): 1.0}
    for name in ("final_loss", "final_eval_loss", "final_eval_loss_before"):
        assert series_of(registry, f"lorafinetune_{name}") == {}


def full_status(result: str) -> dict[str, Any]:
    """Everything that a status may hold, for a run that goes on or has ended."""
    kinds = ("Accepted", "QuotaReserved", "PreflightPassed", "PodsReady", "CheckpointSaved", "Suspended")
    conditions = [condition_object(kind) for kind in (*kinds, "ArtifactPublished")]
    times = dict.fromkeys(("stateSince", "startTime", "activeUntil"), instant(minutes_ago(9)))
    going = {
        "observedGeneration": 1,
        "attempt": 1,
        "runSeconds": 60,
        **times,
        "plan": {"peakBytes": 1},
        "progress": {"step": 1, "totalSteps": 2, "peakMemoryBytes": 1, "checkpointStep": 1},
        "retries": {"error": 1},
        "advice": [{"code": "MoreMemory", "severity": "Warning"}],
    }
    if result == "going":
        return {**going, **stated("Training", conditions=[*conditions, *stated("Training")["conditions"]])}
    end: dict[str, Any] = {
        "completionTime": instant(minutes_ago(1)),
        "results": {"trainLoss": "1", "evalLossAfter": "1"},
    }
    end["results"]["evalLossBefore"] = "1"
    return {**going, **end, "conditions": [*conditions, *stated("Succeeded", "True")["conditions"]]}


@pytest.mark.parametrize("result", ["going", "ended"])
def test_a_thousand_resources_have_at_most_26_series_each_and_none_once_they_are_deleted(result: str) -> None:
    """Advice and retries apart; from a store as the operator has it, in which those that are done are packed."""
    cache = Cache()
    manifests = []
    for number in range(1000):
        manifest = make_manifest(status=full_status(result))
        manifest["metadata"] |= {"name": f"run-{number}", "uid": f"uid-{number}", "resourceVersion": "1"}
        cache.finetunes.put(manifest)
        manifests.append(manifest)
    registry = CollectorRegistry()
    registry.register(ObjectCollector(cache.finetunes, NOW.timestamp))
    counts: dict[str, int] = {}
    for sample in (sample for family in registry.collect() for sample in family.samples):
        if sample.name not in ("lorafinetune_advice", "lorafinetune_retries_total"):
            counts[sample.labels["name"]] = counts.get(sample.labels["name"], 0) + 1
    assert set(counts.values()) == {26 if result == "ended" else 22}
    assert len(counts) == 1000
    for manifest in manifests:
        manifest["metadata"]["resourceVersion"] = "2"
        cache.finetunes.remove(manifest)
    assert not [sample for family in registry.collect() for sample in family.samples]


def test_namespaces_that_are_looked_after_again_are_no_longer_left_out() -> None:
    """The rights are looked at again while the start waits for the API server, and may be there then."""
    registry = CollectorRegistry()
    metrics = Metrics(registry)
    metrics.left_out(["a", "b"])
    metrics.left_out(["b"])
    name = "lora_operator_left_out_namespace"
    assert [registry.get_sample_value(name, {"namespace": namespace}) for namespace in "ab"] == [None, 1.0]
