"""Whoever may create Jobs can make thousands that are a run's by controller reference, each with any number."""

import dataclasses
from typing import Any

import pytest
from tests.unit.builders import (
    CONFIG,
    NAMESPACE,
    NOW,
    condition_object,
    job_name,
    make_finetune,
    make_job,
    make_job_object,
)
from tests.unit.test_explain import explained
from tests.unit.turns import Object, World

from lora_operator.cluster.api import ApiError
from lora_operator.cluster.cache import Cache, Key
from lora_operator.cluster.look import MOST_JOBS, look
from lora_operator.decision.decide import decide
from lora_operator.views.model import Answer, Observed
from lora_operator.views.wording import instant

MANY = 1000
MOST_REQUESTS = 100
ENDED: Object = {
    "attempt": 1,
    "jobName": job_name(),
    "completionTime": instant(NOW),
    "observedGeneration": 1,
    "conditions": [condition_object("Complete", reason="Succeeded", message="ok")],
}
ON_TWO_NODES: Object = {"resources": {"nodes": 2, "gpus": 1}}


def forge(world: World, number: int, **changes: Any) -> Object:
    """Somebody makes a Job with the name that the run's Job of this attempt would have."""
    job = make_job_object(attempt=number, uid=f"forged-{number}", version=str(100 + number), **changes)
    world.cache.jobs.put(job)
    return job


def serve(world: World, jobs: list[Object]) -> None:
    """The API server has these Jobs, too, and deletes what it is to, as the watch says at once."""
    stored, request = {job["metadata"]["name"]: job for job in jobs}, world.server.request

    async def served(method: str, path: str, query: Any = None, **details: Any) -> Object:
        name = path.rpartition("/")[2]
        if method != "DELETE" and not (method == "GET" and name in stored):
            return await request(method, path, query, **details)
        world.server.asked.append(f"{method} {path}")
        if method == "GET":
            return stored[name]
        if name not in stored:
            raise ApiError(404, "NotFound", "gone")
        world.cache.jobs.mark_deleted(Key(NAMESPACE, name), stored.pop(name)["metadata"]["uid"])
        return {}

    world.server.request = served  # type: ignore[method-assign, assignment]


@pytest.mark.parametrize("name", ["whatever-9999", job_name(9999)])
async def test_a_job_with_a_high_number_is_no_thousand_services_of_a_finished_run(name: str) -> None:
    """One whose name the operator never gave is not touched at all."""
    world = World(spec=ON_TWO_NODES, status=ENDED)
    job = make_job_object(attempt=9999, uid="forged", version="30")
    job["metadata"]["name"] = name
    world.cache.jobs.put(job)
    serve(world, [job])
    await world.turn()
    assert len(world.server.asked) <= MOST_REQUESTS
    assert any(line.startswith("DELETE") and line.endswith(name) for line in world.server.asked) is (
        name == job_name(9999)
    )


@pytest.mark.parametrize("status", [{"attempt": 1, "jobName": job_name()}, ENDED])
async def test_of_thousands_of_jobs_each_turn_reads_and_deletes_a_few(status: Object) -> None:
    """And the next ones go on, until those that must not be there are gone."""
    world = World(status={"observedGeneration": 1, **status})
    serve(world, [forge(world, number, spec={"suspend": False}) for number in range(2, MANY + 2)])
    for _ in range(2 * MANY // MOST_JOBS):
        world.server.asked.clear()
        await world.turn()
        assert len(world.server.asked) <= MOST_REQUESTS
    assert len(world.cache.jobs) <= 2


async def test_jobs_that_a_finalizer_keeps_cost_a_turn_a_few_reads() -> None:
    """One has lost its labels, for which a run's Jobs are read by name at each look."""
    world = World(status={"attempt": 1, "jobName": job_name(), "observedGeneration": 1})
    kept = [forge(world, number, deleting=True) for number in range(2, MANY + 2)]
    kept[0]["metadata"]["labels"]["lora-operator.io/uid"] = "x"
    serve(world, kept)
    for _ in range(3):
        world.server.asked.clear()
        await world.turn()
        assert len(world.server.asked) <= MOST_REQUESTS


def test_the_jobs_that_a_run_needs_are_looked_at_however_many_are_newer() -> None:
    """Its attempt's, and the next one's and the preflight's, which may have been made without a status."""
    cache = Cache()
    needed = [(2, "train"), (3, "train"), (1, "preflight")]
    for number in range(50, 50 + MANY):
        job = make_job_object(attempt=number, uid=f"forged-{number}", version=str(number))
        job["metadata"]["creationTimestamp"] = instant(NOW)
        cache.jobs.put(job)
    for number, stage in needed:
        cache.jobs.put(make_job_object(attempt=number, stage=stage, uid=f"{number}-{stage}", version="9"))
    observed = look(cache, make_finetune(status={"attempt": 2}), events=(), ask=lambda _: Answer())
    assert {(job.attempt, job.stage) for job in observed.jobs}.issuperset(needed)
    assert (len(observed.jobs), observed.jobs_left_out) == (MOST_JOBS, MANY + len(needed) - MOST_JOBS)


def test_a_job_that_goes_on_is_not_left_out_for_one_that_is_on_its_way_out() -> None:
    """It holds GPUs, and is to be stopped."""
    cache = Cache()
    for number in range(3, MANY):
        cache.jobs.put(make_job_object(attempt=number, uid=f"forged-{number}", version=str(number), deleting=True))
    cache.jobs.put(make_job_object(attempt=MANY, uid="going", version="9"))
    observed = look(cache, make_finetune(status={"attempt": 1}), events=(), ask=lambda _: Answer())
    assert "going" in {job.uid for job in observed.jobs}


def test_the_explanation_says_that_jobs_are_left_out() -> None:
    """As many as there are more."""
    observed = Observed(jobs=(make_job(),), jobs_left_out=7)
    assert any(note.startswith("7 more Jobs") for note in explained(make_finetune(), observed)["notes"])


def test_a_job_by_another_name_is_not_deleted_with_a_finished_run() -> None:
    """The operator did not make it."""
    job = make_job()
    finetune = make_finetune(spec={"ttlSecondsAfterFinished": 0}, status=ENDED)
    named = Observed(jobs=(job, dataclasses.replace(job, uid="other", name="other-1")))
    assert [target.name for target in decide(finetune, named, CONFIG, NOW).delete] == [job.name]
