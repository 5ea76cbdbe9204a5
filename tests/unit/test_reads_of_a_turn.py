"""A plan rests on the Jobs that it names itself, read in the same turn for the same resource."""

from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
from tests.unit.builders import (
    NAME,
    NAMESPACE,
    NOW,
    UID,
    condition_object,
    job_name,
    make_job_object,
    make_manifest,
    make_pod_object,
)
from tests.unit.reports import make_report
from tests.unit.turns import KEY, Object, World, pod_at

from lora_operator.cluster.api import JOBS, PODS, ApiError, UnreachableError
from lora_operator.cluster.cache import Key
from lora_operator.views.names import job_name as job_name_of
from lora_operator.views.wording import instant

ATTEMPTED: Object = {"attempt": 1, "jobName": job_name()}
SECOND: Object = {"attempt": 2, "jobName": job_name(2)}
RUNNING: Object = {"running": {"startedAt": instant(NOW)}}
AT_WORK: Object = {
    "conditions": [condition_object(kind, "Unknown", reason="Preflight") for kind in ("Complete", "Failed")]
}


def at_version(version: str, manifest: Object, **metadata: Any) -> Object:
    """The resource as stored at this version."""
    return {**manifest, "metadata": {**manifest["metadata"], "resourceVersion": version, **metadata}}


def before(world: World, method: str, act: Callable[[], None]) -> None:
    """Something happens just before the first request by this method."""
    request, acts = world.server.request, [act]

    async def interrupted(verb: str, path: str, query: Any = None, **details: Any) -> Object:
        if verb == method and acts:
            acts.pop()()
        return await request(verb, path, query, **details)

    world.server.request = interrupted  # type: ignore[method-assign, assignment]


@pytest.mark.parametrize("retries", [1, 5])
async def test_the_job_of_the_attempt_that_the_resource_names_by_now_is_read_before_an_end_or_another_attempt(
    retries: int,
) -> None:
    """Another operator has made Job 2 in the place of the first. Read were the resource, which says so, and Job 1: it
    is no proof that the second is gone, for which the run would fail, or get a third Job beside the living one."""
    world = World(spec={"maxRetries": retries}, status=ATTEMPTED)
    (first,) = world.cache.jobs
    world.cache.jobs.mark_deleted(Key(NAMESPACE, first.name), first.uid)
    world.server.finetune = at_version("9", make_manifest(spec={"maxRetries": retries}, status=SECOND))
    world.server.job = make_job_object(attempt=2, uid="job-2", version="80", spec={"backoffLimit": retries})
    world.server.pods = [make_pod_object(attempt=2, job_uid="job-2")]
    await world.turn()
    assert f"GET {JOBS.path(NAMESPACE, job_name(2))}" in world.server.asked
    assert not [line for line in world.server.asked if line.startswith(("POST", "DELETE"))]
    assert world.condition("Failed")["status"] != "True"
    assert [job.attempt for job in world.cache.jobs.of(KEY, UID)] == [2]


async def test_what_was_read_for_one_resource_is_no_read_for_the_next_by_its_name() -> None:
    """The run is deleted and made again while its Job is read; the Jobs of the new one are read before its end."""
    world = World(spec={"maxRetries": 0}, status=ATTEMPTED)
    (job,) = world.cache.jobs
    world.cache.jobs.mark_deleted(Key(NAMESPACE, job.name), job.uid)
    world.server.job = None
    name = job_name_of(NAME, "another-uid", 1)
    status = {"attempt": 1, "jobName": name}

    def make_anew() -> None:
        world.server.finetune = at_version(
            "50", make_manifest(spec={"maxRetries": 0}, status=status), uid="another-uid"
        )
        world.cache.finetunes.put(world.server.finetune)

    before(world, "GET", make_anew)
    await world.turn()
    assert f"GET {JOBS.path(NAMESPACE, name)}" in world.server.asked


async def test_a_refusal_of_the_job_of_one_resource_is_not_reported_of_the_next_by_its_name() -> None:
    """The run is deleted and made again while the quota refuses its Job: the new one's own Job is asked for at once."""
    world = World()
    (job,) = world.cache.jobs
    world.cache.jobs.mark_deleted(Key(NAMESPACE, job.name), job.uid)
    world.cache.jobs.acknowledge(KEY)
    world.server.job = None

    def make_anew() -> None:
        world.server.finetune = at_version("50", make_manifest(), uid="another-uid")
        world.cache.finetunes.put(world.server.finetune)
        raise ApiError(403, "Forbidden", 'jobs.batch "x" is forbidden: exceeded quota: gpus')

    before(world, "POST", make_anew)
    await world.turn()
    assert [line for line in world.server.asked if line.startswith("POST")]
    assert "QuotaExceeded" not in str(world.server.finetune.get("status"))


async def test_what_was_read_before_the_resource_changed_is_read_again() -> None:
    """Somebody was faster with the status: the Job and its pods may have changed with the resource."""
    world = World(status=ATTEMPTED)
    failed = pod_at("21", phase="Failed", state={"terminated": {"exitCode": 70, "reason": "Error"}})
    world.cache.pods.put(failed)
    conditions = [condition_object("Failed", reason="BackoffLimitExceeded")]
    world.tell_job("30", status={"failed": 1, "conditions": conditions})

    def change() -> None:
        world.server.asked.append("PUT, refused")
        world.server.finetune = at_version("60", world.server.finetune)
        raise ApiError(409, "Conflict", "the object has been modified")

    before(world, "PUT", change)
    await world.turn()
    refused = world.server.asked.index("PUT, refused")
    assert f"GET {JOBS.path(NAMESPACE, job_name())}" in world.server.asked[:refused]
    assert f"GET {JOBS.path(NAMESPACE, job_name())}" in world.server.asked[refused:]
    assert world.condition("Failed")["status"] == "True"


@pytest.mark.parametrize("known", [True, False])
async def test_a_preflight_that_ended_well_is_not_taken_for_one_without_a_report_before_its_pod_is_read(
    *, known: bool
) -> None:
    """Its Job is Complete, and the watch of pods, which lags, shows its pod at work or not at all."""
    world = World(spec={"preflight": "Run"}, status=AT_WORK, stage="preflight")
    if known:
        running = {"running": {"startedAt": instant(NOW)}}
        world.cache.pods.put(pod_at("21", stage="preflight", phase="Running", state=running))
    report = {"exitCode": 0, "reason": "Completed", "message": make_report().to_message(), "finishedAt": instant(NOW)}
    world.server.pods = [pod_at("80", stage="preflight", phase="Succeeded", state={"terminated": report})]
    done = {"succeeded": 1, "completionTime": instant(NOW), "conditions": [condition_object("Complete")]}
    world.tell_job("30", stage="preflight", status=done)
    await world.turn()
    world.now_s += 60  # by when the status is due
    await world.turn()
    assert world.server.finetune["status"]["plan"]
    assert "no report" not in world.condition("PreflightPassed")["message"]
    lists = world.server.asked.count(f"GET {PODS.path(NAMESPACE)}")
    assert lists == 2, "of the pods of its Job and, as it is not there, of the training's"


async def test_a_job_whose_creation_was_not_answered_is_looked_for_before_the_wait_ends_the_run() -> None:
    """It may have been made: the run would fail for good beside a Job that goes on."""
    waits = [condition_object(kind, "Unknown", reason="Pending") for kind in ("Complete", "Failed")]
    waits += [condition_object("PodsReady", "False", reason="Pending")]
    long_since = instant(NOW - timedelta(hours=5))
    conditions = [{**condition, "lastTransitionTime": long_since} for condition in waits]
    world = World(spec={"pendingTimeoutSeconds": 3600}, status={**ATTEMPTED, "conditions": conditions})
    (first,) = world.cache.jobs
    world.cache.jobs.mark_deleted(Key(NAMESPACE, first.name), first.uid)
    world.server.job = None
    answer = world.server.request

    async def unanswered(method: str, path: str, query: Any = None, **details: Any) -> Object:
        if method == "POST" and path.endswith("/jobs"):
            world.server.job = make_job_object(attempt=2, uid="job-2", version="90")
            raise UnreachableError("no answer")
        return await answer(method, path, query, **details)

    world.server.request = unanswered  # type: ignore[method-assign, assignment]
    await world.reconciler.reconcile(KEY, failures=2)
    assert world.condition("Failed")["status"] == "Unknown"
    assert world.server.finetune["status"]["attempt"] == 2


async def test_a_former_job_that_cannot_be_deleted_keeps_nobody_from_asking_the_run_that_goes_on() -> None:
    """A webhook may deny that for as long as the run takes."""
    world, asked = World(status=SECOND), list[str]()
    second = make_job_object(attempt=2, uid="job-2", version="21")
    world.cache.jobs.put(second)
    running = {"phase": "Running", "podIP": "10.0.0.1", "containerStatuses": [{"name": "trainer", "state": RUNNING}]}
    world.cache.pods.put(pod_at("30", attempt=2, job_uid="job-2") | {"status": running})
    answer = world.server.request
    world.poller.ask = lambda key, pod: asked.append(pod.name) or 15.0  # type: ignore[method-assign, func-returns-value]

    async def denied(method: str, path: str, query: Any = None, **details: Any) -> Object:
        if method == "DELETE":
            raise ApiError(403, "Forbidden", 'admission webhook "keep" denied the request')
        if method == "GET" and path.endswith(job_name(2)):
            return second
        return await answer(method, path, query, **details)

    world.server.request = denied  # type: ignore[method-assign, assignment]
    with pytest.raises(ApiError, match="keep"):
        await world.turn()
    assert asked


async def test_what_a_failed_run_may_have_left_is_looked_for_among_jobs_alone() -> None:
    """A list of pods would go over all of the namespace, for each such run at each start of an operator."""
    failed = [
        condition_object("Complete", "False", reason="Failed"),
        condition_object("Failed", "True", reason="Error"),
    ]
    world = World(status={**ATTEMPTED, "completionTime": instant(NOW), "conditions": failed})
    (first,) = world.cache.jobs
    world.cache.jobs.mark_deleted(Key(NAMESPACE, first.name), first.uid)
    world.server.job = None
    await world.turn()
    assert [line for line in world.server.asked if "pods" in line] == []
    assert any(job_name() in line for line in world.server.asked)
