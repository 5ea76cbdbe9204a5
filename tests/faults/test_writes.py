"""What a run costs the API server."""

import itertools
from collections.abc import Collection

import pytest
from tests.component.documents import Object, succeeded
from tests.component.patience import eventually
from tests.component.stage import Stage
from tests.faults.calls import Call
from tests.faults.one_run import Run, begin, free_of_claims
from tests.faults.proxy import FaultProxy
from tests.unit.reports import make_report

from lora_operator.views.conditions import state_of
from lora_operator.views.names import PREFLIGHT

MOST_WRITES = 11
OF_A_PREFLIGHT = 3
"""Its Job, its state and its Event; where the pod of the training waits for a node, a state and an Event more."""
CHANCE = ("Pending", "Publishing")
"""Whether a pod is seen before it has a node, and the last one to have ended before its Job has."""


@pytest.fixture
def proxy(stage: Stage) -> FaultProxy:
    """In front of an operator that works on a cluster with room for every pod."""
    room = {"cpu": "64", "memory": "256Gi", "pods": "100", "ephemeral-storage": "1Ti", "nvidia.com/gpu": "8"}
    node = f"/api/v1/nodes/{stage.node}"
    stage.api.patch(f"{node}/status", {"status": {"capacity": room, "allocatable": room}})
    stage.api.patch(node, {"spec": {"unschedulable": False}})
    proxy = stage.proxy()
    stage.start(proxy=proxy)
    return proxy


def test_a_run_from_the_resource_to_the_adapter_costs_at_most_eleven_writes(stage: Stage, proxy: FaultProxy) -> None:
    """Job, statuses and Events together, beside the progress of the training."""
    _train(stage, begin(stage, "tone", **free_of_claims()))
    assert len(_writes(proxy, "tone")) <= MOST_WRITES, _writes(proxy, "tone")


def test_a_preflight_costs_at_most_five_writes_more(stage: Stage, proxy: FaultProxy) -> None:
    """Against a run without one, on the same cluster."""
    _train(stage, begin(stage, "tone", **free_of_claims(preflight="Skip")))
    run = begin(stage, "mood", **free_of_claims(preflight="Run"))
    pod = _placed(run, PREFLIGHT)
    stage.run_pod(pod)
    run.wait_state("Preflight")
    stage.end_pod(pod, 0, make_report().to_message())
    _train(stage, run)
    with_one, without = (_writes(proxy, name, but=CHANCE) for name in ("mood", "tone"))
    assert with_one.count("create jobs") == 2
    assert len(with_one) <= len(without) + OF_A_PREFLIGHT, (with_one, without)


def _train(stage: Stage, run: Run) -> None:
    pod = _placed(run)
    stage.run_pod(pod)
    run.wait("PodsReady", "True")
    stage.end_pod(pod, 0, succeeded())
    run.wait("Complete", "True")
    run.wait_event("Succeeded", "Normal")


def _placed(run: Run, stage: str = "train") -> Object:
    """Wait until the scheduler has found a node for the run's only pod of a stage."""

    def look() -> Object | None:
        return next((pod for pod in run.children("pods", stage) if pod["spec"].get("nodeName")), None)

    return eventually(look, "the pod has a node")


def _writes(proxy: FaultProxy, name: str, *, but: Collection[str] = ()) -> list[str]:
    """What was written about a run; with `but` without these states and their Events, and each state once."""
    calls = [call for call in proxy.made(about=f"{name}*") if call.mutates]
    assert {"create jobs", "update lorafinetunes/status", "create events"} == {call.what for call in calls}
    if not but:
        return [call.what for call in calls]
    states = [state_of(_status(call)) if call.what == "update lorafinetunes/status" else None for call in calls]
    kept = [
        (call.what, state)
        for call, state in zip(calls, states, strict=True)
        if not {call.body.get("reason"), state} & {*but}
    ]
    told = [state for _, state in kept if state is not None]
    again = sum(one == other for one, other in itertools.pairwise(told))
    found = [what for what, _ in kept]
    for _ in range(again):
        found.remove("update lorafinetunes/status")
    return found


def _status(call: Call) -> Object:
    status: Object = call.body.get("status") or {}
    return status
