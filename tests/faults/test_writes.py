"""What a run costs the API server."""

from collections.abc import Collection

import pytest
from tests.component.documents import Object, succeeded
from tests.component.patience import eventually
from tests.component.stage import Stage
from tests.faults.calls import Call
from tests.faults.one_run import Run, begin, free_of_claims
from tests.faults.proxy import FaultProxy
from tests.unit.reports import make_report

from lora_operator.model.conditions import state_of
from lora_operator.model.names import PREFLIGHT

SURE_WRITES = 6
"""The Job; the states Starting and Succeeded, each with its Event; the Event that the run is accepted."""
MOST_WRITES = 8
"""With Publishing and its Event, where the pod is seen to have ended before its Job has."""
OF_A_PREFLIGHT = 3
"""Its Job, its state and its Event."""
PENDING = ("Pending",)
"""A state more, where the scheduler takes longer than the operator waits for its word."""
CHANCE = (*PENDING, "Publishing")


@pytest.fixture
def proxy(stage: Stage) -> FaultProxy:
    """In front of an operator that works on a cluster with room for every pod."""
    room = {"cpu": "64", "memory": "256Gi", "pods": "100", "ephemeral-storage": "1Ti", "nvidia.com/gpu": "8"}
    node = f"/api/v1/nodes/{stage.node}"
    stage.api.patch(f"{node}/status", {"status": {"capacity": room, "allocatable": room}})
    stage.api.patch(node, {"spec": {"unschedulable": False}})
    proxy = stage.proxy()
    stage.start(proxy=proxy, statusDelaySeconds=2)
    return proxy


def test_a_run_from_the_resource_to_the_adapter_costs_at_most_eight_writes(stage: Stage, proxy: FaultProxy) -> None:
    """Job, statuses and Events together, beside the progress of the training."""
    _train(stage, begin(stage, "tone", **free_of_claims()))
    assert len(_writes(proxy, "tone", but=CHANCE)) == SURE_WRITES, _writes(proxy, "tone")
    assert len(_writes(proxy, "tone", but=PENDING)) <= MOST_WRITES, _writes(proxy, "tone")


def test_a_preflight_costs_three_writes_more(stage: Stage, proxy: FaultProxy) -> None:
    """Against a run without one, on the same cluster; Pending and its Event come too, where the training waits."""
    _train(stage, begin(stage, "tone", **free_of_claims(preflight="Skip")))
    run = begin(stage, "mood", **free_of_claims(preflight="Run"))
    pod = _placed(run, PREFLIGHT)
    stage.run_pod(pod)
    run.wait_state("Preflight")
    stage.end_pod(pod, 0, make_report().to_message())
    _train(stage, run)
    with_one, without = (_writes(proxy, name, but=CHANCE) for name in ("mood", "tone"))
    assert with_one.count("create jobs") == 2
    assert len(with_one) == len(without) + OF_A_PREFLIGHT, (with_one, without)


def _train(stage: Stage, run: Run) -> None:
    pod = _placed(run)
    stage.run_pod(pod)
    run.wait("PodsReady", "True")
    stage.end_pod(pod, 0, succeeded())
    run.wait("Complete", "True")
    run.wait_event("Succeeded", "Normal")


def _placed(run: Run, stage: str = "train") -> Object:
    """Wait until the scheduler has found a node for the run's only pod of a stage, and its Job says when it began.

    A status of the running pod would otherwise be followed by one with the time of a busy Job controller.
    """

    def look() -> Object | None:
        begun = [job for job in run.children("jobs", stage) if job["status"].get("startTime")]
        return next((pod for pod in run.children("pods", stage) if begun and pod["spec"].get("nodeName")), None)

    return eventually(look, "the pod has a node, and its Job has begun")


def _writes(proxy: FaultProxy, name: str, *, but: Collection[str] = ()) -> list[str]:
    """What was written about a run, but for these states and their Events."""
    calls = [call for call in proxy.made(about=f"{name}*") if call.mutates]
    assert {"create jobs", "update lorafinetunes/status", "create events"} == {call.what for call in calls}
    return [call.what for call in calls if _tells(call) not in but]


def _tells(call: Call) -> str:
    """The state that a status is written for, or the reason of an Event."""
    if call.what == "update lorafinetunes/status":
        return state_of(call.body["status"])
    return str(call.body.get("reason", ""))
