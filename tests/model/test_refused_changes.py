"""A policy that denies a change of a Job, and what the user wishes for beside it."""

import dataclasses
from typing import Any

import pytest
from tests.component.documents import finetune
from tests.model.objects import Object
from tests.model.operators import ModelOperator, Request
from tests.model.test_lagging_operators import Lucky
from tests.model.world import CONFIG, World

from lora_operator.cluster.api import ApiError
from lora_operator.model.names import QUEUE_LABEL

DENIED = "ValidatingAdmissionPolicy 'fixed' denied request: this may not be changed"


def _deny(world: World, monkeypatch: pytest.MonkeyPatch, field: str) -> None:
    """From now on no Job's field may be changed."""
    deliver = world.network._deliver

    def policy(operator: ModelOperator, method: str, path: str, body: Any, query: Any) -> Object:
        if method == "PATCH" and "/jobs/" in path and field in (body.get("spec") or {}):
            request = Request(operator=operator.number, method=method, path=path, body=body, answer={}, error=422)
            world.network.requests.append(request)
            raise ApiError(422, "Invalid", DENIED)
        return deliver(operator, method, path, body, query)

    monkeypatch.setattr(world.network, "_deliver", policy)


def _reported(world: World) -> dict[str, str]:
    (run,) = world.server.all("lorafinetunes")
    return {condition["type"]: condition["status"] for condition in run["status"]["conditions"]}


@pytest.mark.parametrize(
    ("queue", "denied", "suspended"),
    [(False, "backoffLimit", "True"), (True, "backoffLimit", "True"), (False, "suspend", "False")],
)
def test_a_run_is_suspended_and_resumed_though_another_change_of_its_job_is_denied(
    queue: bool, denied: str, suspended: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each change that is denied is tried about once a minute, and the denial is reported."""
    world = World(Lucky(), dataclasses.replace(CONFIG, pending_check_s=60.0))
    try:
        if queue:
            world.install_kueue()
        world.start_operator()
        _deny(world, monkeypatch, denied)
        document = finetune("tone", preflight="Skip", maxRetries=3)
        document["metadata"]["labels"] = {QUEUE_LABEL: "gpus"} if queue else {}
        world.life.client.post(world.life.path("lorafinetunes"), document)
        for _ in range(2):
            world.settle()
            world.controllers.catch_up()
        world.life.client.patch(world.life.path("lorafinetunes", "tone"), {"spec": {"maxRetries": 1}})
        world.settle()
        world.pass_time(600)
        world.life.client.patch(world.life.path("lorafinetunes", "tone"), {"spec": {"suspend": True}})
        world.settle()
        before = len(world.network.requests)
        world.pass_time(600)
        world.controllers.catch_up()
        world.settle()
        reported = _reported(world)
        assert (reported["Suspended"], reported["Accepted"]) == (suspended, "False")
        held = [workload["spec"]["active"] for workload in world.server.all("workloads")]
        assert held == ([False] if queue else [])
        assert sum(request.method == "PATCH" for request in world.network.requests[before:]) <= 20
        world.life.client.patch(world.life.path("lorafinetunes", "tone"), {"spec": {"suspend": False}})
        for _ in range(2):
            world.settle()
            world.pass_time(60)
            world.controllers.catch_up()
        world.settle()
        assert [job["spec"]["suspend"] for job in world.server.all("jobs")] == [False]
        assert _reported(world)["Suspended"] == "False"
        assert [workload["spec"]["active"] for workload in world.server.all("workloads")] == ([True] if queue else [])
    finally:
        world.close()
