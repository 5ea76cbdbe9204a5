"""What would make a run go better: said where there is a reason for it, once, and in the bounds of the schema."""

from typing import Any

import pytest
from tests.unit.builders import (
    condition_object,
    ended_pod,
    make_finetune,
    make_job,
    make_summary,
    minutes_ago,
    running_pod,
    with_status,
)
from tests.unit.plans import plan_for
from tests.unit.status_schema import check_status

from lora_operator.decision.advice import Code
from lora_operator.views.model import PodView
from lora_trainer.contract.reasons import Reason

GPU = make_summary(Reason.GPU_FAULT, "CUDA error: the GPU fell off the bus").to_message()


def silent(minutes: float) -> PodView:
    """A pod on a node that has been silent for so long."""
    return running_pod(conditions=(condition_object("Ready", "False", since=minutes_ago(minutes)),))


def pressed() -> PodView:
    """A pod that its node evicted."""
    reason = condition_object("DisruptionTarget", reason="TerminationByKubelet", message="The node was low on memory")
    return ended_pod(137, conditions=(reason,))


CASES: dict[str, tuple[dict[str, Any], dict[str, Any], tuple[PodView, ...], str | None, str]] = {
    "no claim": ({"output": {"uri": "s3://adapters/tone"}}, {}, (), "NoCheckpointClaim", "s3://adapters/tone"),
    "a claim": ({}, {}, (), None, ""),
    "DoRA alone": ({"lora": {"variant": "DoRA"}}, {}, (), "ServeMerged", "DoRA"),
    "DoRA and the merged model": (
        {"lora": {"variant": "DoRA"}, "output": {"uri": "pvc://a/b", "merge": "Both"}},
        {},
        (),
        None,
        "",
    ),
    "killed for memory": (
        {"resources": {"memory": "3Gi"}},
        {},
        (ended_pod(137, reason="OOMKilled"),),
        "MoreMemory",
        "1 pod was killed for memory; a pod that trains has 3Gi",
    ),
    "a node silent for long": ({}, {}, (silent(6),), "NodeSilent", "node-1"),
    "a node silent for a moment": ({}, {}, (silent(4),), None, ""),
    "a node short of memory": ({}, {}, (pressed(),), "NodePressure", "low on memory"),
    "a GPU fault": ({}, {}, (ended_pod(72, GPU),), "GPUFault", "fell off the bus"),
    "preempted twice": ({}, {"retries": {"preempted": 2}}, (), None, ""),
    "preempted often": ({}, {"retries": {"preempted": 3}}, (), "OftenPreempted", "3 times"),
}


@pytest.mark.parametrize(("spec", "status", "pods", "code", "evidence"), CASES.values(), ids=CASES)
def test_advice_has_its_reason(
    spec: dict[str, Any], status: dict[str, Any], pods: tuple[PodView, ...], code: str | None, evidence: str
) -> None:
    """And its evidence; without a reason there is none."""
    finetune = with_status(make_finetune(spec=spec), {"attempt": 1, **status})
    plan = plan_for(finetune, jobs=(make_job(),), pods=pods)
    check_status(plan.status)
    advice = plan.status.get("advice", [])
    assert [one["code"] for one in advice] == ([code] if code else [])
    assert all(evidence in one["evidence"] for one in advice)


def test_several_pieces_of_advice_stand_in_order_and_once_each() -> None:
    """However many pods give the reason."""
    spec = {"output": {"uri": "s3://adapters/tone"}, "lora": {"variant": "DoRA"}, "maxRetries": 9}
    pods = (pressed(), ended_pod(72, GPU, name="a"), ended_pod(72, GPU, name="b"), ended_pod(137, reason="OOMKilled"))
    plan = plan_for(make_finetune(spec=spec), jobs=(make_job(),), pods=pods)
    codes = [one["code"] for one in plan.status["advice"]]
    assert codes == ["NoCheckpointClaim", "MoreMemory", "NodePressure", "GPUFault", "ServeMerged"]
    assert codes == [code.value for code in Code if code.value in codes]
    assert {one["severity"] for one in plan.status["advice"]} == {"Warning", "Info"}
