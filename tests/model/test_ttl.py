"""What becomes of the Jobs of a run that has ended."""

from collections.abc import Iterator

import pytest
from tests.model.objects import Object
from tests.model.operators import ModelOperator, Request
from tests.model.test_lagging_operators import Lucky, run_of
from tests.model.world import World

from lora_operator.cluster.api import ApiError

TTL_S = 600
DENIED = "ValidatingAdmissionPolicy 'kept' denied request: Jobs are kept"


@pytest.fixture
def world() -> Iterator[World]:
    """One operator."""
    world = World(Lucky())
    world.start_operator()
    yield world
    world.close()


def end(world: World, **spec: object) -> None:
    """A run goes through its preflight and its training."""
    world.life.client.post(world.life.path("lorafinetunes"), run_of("tone", **spec))
    for _ in range(8):
        world.pass_time(5)
        world.controllers.catch_up()
        world.life.end_all()
    assert run(world)["status"]["completionTime"]


def run(world: World) -> Object:
    (document,) = world.server.all("lorafinetunes")
    return document


def jobs(world: World) -> dict[str, int | None]:
    """By what kind of Job each is the time to live that it has."""
    world.controllers.catch_up()
    names = sorted(world.server.all("jobs"), key=lambda job: str(job["metadata"]["name"]))
    return {job["metadata"]["name"].removeprefix("tone-"): job["spec"].get("ttlSecondsAfterFinished") for job in names}


def change(world: World, **spec: object) -> None:
    world.life.client.patch(world.life.path("lorafinetunes", "tone"), {"spec": spec})
    world.pass_time(5)


def test_both_jobs_get_the_time_to_live_of_the_resource_and_kubernetes_deletes_them(world: World) -> None:
    """Not before it is over; the run and its status stay, and nobody writes any more."""
    end(world, preflight="Run", ttlSecondsAfterFinished=TTL_S)
    world.pass_time(5)
    assert list(jobs(world).values()) == [TTL_S, TTL_S]
    world.pass_time(TTL_S - 60)
    assert len(jobs(world)) == 2
    world.pass_time(60)
    assert jobs(world) == {}
    status = run(world)["status"]
    world.restart_at_rest()
    assert run(world)["status"] == status


def test_without_a_time_to_live_jobs_stay_and_another_one_that_is_wished_for_later_counts(world: World) -> None:
    """Taken away again, it changes nothing: what a policy of the cluster set would be undone by that, too."""
    end(world, preflight="Skip")
    world.pass_time(10 * TTL_S)
    assert list(jobs(world).values()) == [None]
    change(world, ttlSecondsAfterFinished=20 * TTL_S)
    assert list(jobs(world).values()) == [20 * TTL_S]
    change(world, ttlSecondsAfterFinished=None)
    assert list(jobs(world).values()) == [20 * TTL_S]
    change(world, ttlSecondsAfterFinished=TTL_S)
    assert jobs(world) == {}


def test_a_time_to_live_that_is_refused_is_told_and_tried_again(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """About once a minute, beside nothing else; the run stays a success."""
    deliver = world.network._deliver
    tries: list[str] = []

    def policy(operator: ModelOperator, method: str, path: str, body: Object | None, query: object) -> Object:
        if method == "PATCH" and "/jobs/" in path:
            tries.append(path)
            world.network.requests.append(
                Request(operator=operator.number, method=method, path=path, body=body, answer={}, error=422)
            )
            raise ApiError(422, "Invalid", DENIED)
        return deliver(operator, method, path, body, query)

    with monkeypatch.context() as patch:
        patch.setattr(world.network, "_deliver", policy)
        end(world, preflight="Skip", ttlSecondsAfterFinished=TTL_S)
        world.pass_time(5)
        (advice,) = (one for one in run(world)["status"]["advice"] if one["code"] == "CleanupRefused")
        assert "Jobs are kept" in advice["evidence"]
        before = len(tries)
        world.pass_time(TTL_S)
        assert 8 <= len(tries) - before <= 11
        assert list(jobs(world).values()) == [None]
    world.pass_time(61)
    assert jobs(world) == {}
    world.pass_time(5)
    assert "CleanupRefused" not in {one["code"] for one in run(world)["status"].get("advice", ())}
    assert {c["type"]: c["status"] for c in run(world)["status"]["conditions"]}["Complete"] == "True"
