"""What a run costs the API server."""

from tests.component.documents import succeeded
from tests.component.patience import eventually
from tests.component.stage import Stage
from tests.faults.one_run import begin, free_of_claims

MOST_WRITES = 11


def test_a_run_from_the_resource_to_the_adapter_costs_at_most_eleven_writes(stage: Stage) -> None:
    """Job, statuses and Events together, beside the progress of the training."""
    room = {"cpu": "64", "memory": "256Gi", "pods": "100", "ephemeral-storage": "1Ti", "nvidia.com/gpu": "8"}
    node = f"/api/v1/nodes/{stage.node}"
    stage.api.patch(f"{node}/status", {"status": {"capacity": room, "allocatable": room}})
    stage.api.patch(node, {"spec": {"unschedulable": False}})
    proxy = stage.proxy()
    stage.start(proxy=proxy)
    run = begin(stage, "tone", **free_of_claims())
    eventually(lambda: run.pod()["spec"].get("nodeName"), "the scheduler has found a node")
    run.running_pod()
    stage.end_pod(run.pod(), 0, succeeded())
    run.wait("Complete", "True")
    run.wait_event("Succeeded", "Normal")
    writes = [call.what for call in proxy.made(about="tone*") if call.mutates]
    assert len(writes) <= MOST_WRITES, writes
    assert {"create jobs", "update lorafinetunes/status", "create events"} == set(writes)
