"""Labels that pods lose while they are listed live: the watch reports that as a deletion, which overtakes the list."""

from typing import Any

import pytest
from tests.unit.builders import NAMESPACE, condition_object, job_name, make_job_object, minutes_ago
from tests.unit.turns import Object, World, pod_at

from lora_operator.cluster.api import PODS
from lora_operator.views.names import CONTROLLER_UID_LABEL, JOB_NAME_LABEL, SUSPEND_ANNOTATION
from lora_operator.views.wording import instant


def labelled(pod: Object) -> Object:
    """As the Job controller makes it."""
    pod["metadata"]["labels"] |= {JOB_NAME_LABEL: job_name(), CONTROLLER_UID_LABEL: "job-1"}
    return pod


def running(version: str) -> Object:
    """A pod that trains."""
    state = {"running": {"startedAt": instant(minutes_ago(20))}}
    conditions = (condition_object("Ready"),)
    return labelled(
        pod_at(version, name="second", phase="Running", state=state, conditions=conditions, created_at=minutes_ago(21))
    )


def at(pod: Object, version: str) -> Object:
    """The same pod at a later version."""
    return {**pod, "metadata": {**pod["metadata"], "resourceVersion": version}}


def bare(pod: Object) -> Object:
    """Without the operator's labels."""
    kept = {key: value for key, value in pod["metadata"]["labels"].items() if key.startswith("batch.kubernetes.io")}
    return {**pod, "metadata": {**pod["metadata"], "labels": kept}}


def lose_while_listed(world: World, monkeypatch: pytest.MonkeyPatch, pod: Object, *others: Object) -> None:
    """The first list is as of a moment before the labels went, and its answer comes after the watch's news of that."""
    ask, later = world.server.request, at(pod, "30")
    answers = iter([([pod], "29")])

    async def request(method: str, path: str, *more: Any, **options: Any) -> Object:
        if method != "GET" or path != PODS.path(NAMESPACE):
            return await ask(method, path, *more, **options)
        pods, version = next(answers, ([bare(later)], "31"))
        if version == "29":
            world.cache.pods.remove(later)
        return {"items": [*others, *pods], "metadata": {"resourceVersion": version}}

    monkeypatch.setattr(world.server, "request", request)


async def test_a_run_that_goes_on_while_its_pod_runs_does_not_fail(monkeypatch: pytest.MonkeyPatch) -> None:
    """It has used up its retries by an eviction that its Job does not count; that its pod runs is all that holds it."""
    world = World(spec={"maxRetries": 0, "activeDeadlineSeconds": 90000}, status={"attempt": 1, "jobName": job_name()})
    status = {"active": 1, "startTime": instant(minutes_ago(58))}
    world.tell_job(spec={"backoffLimit": 0, "activeDeadlineSeconds": 80000}, status=status)
    world.server.patched = make_job_object(
        version="50", spec={"backoffLimit": 0, "activeDeadlineSeconds": 90000}, status=status
    )
    evicted = labelled(
        pod_at(
            "12",
            name="first",
            phase="Failed",
            reason="Evicted",
            created_at=minutes_ago(50),
            state={"terminated": {"exitCode": 137, "finishedAt": instant(minutes_ago(22))}},
            conditions=(condition_object("DisruptionTarget", reason="TerminationByKubelet"),),
        )
    )
    world.cache.pods.put(evicted)
    world.cache.pods.put(running("15"))
    lose_while_listed(world, monkeypatch, running("15"), evicted)
    await world.turn()
    assert world.condition("Failed")["status"] == "Unknown"
    assert world.condition("Complete")["reason"] == "Starting"
    assert not [line for line in world.server.asked if line.startswith(("POST", "DELETE"))]


async def test_a_pod_that_is_gone_since_it_was_listed_is_read_once_more_and_no_oftener(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The second list has it no more, and settles it."""
    world = World(status={"attempt": 1, "jobName": job_name()})
    world.cache.pods.put(running("15"))
    world.cache.jobs.remove(make_job_object(version="25"))
    world.server.job = None
    ask, answers = world.server.request, iter([[running("15")]])
    lists: list[str] = []

    async def request(method: str, path: str, *more: Any, **options: Any) -> Object:
        if method != "GET" or path != PODS.path(NAMESPACE):
            return await ask(method, path, *more, **options)
        pods = next(answers, [])
        lists.append(path)
        if pods:
            world.cache.pods.remove(running("30"))
        return {"items": pods, "metadata": {"resourceVersion": "29" if pods else "31"}}

    monkeypatch.setattr(world.server, "request", request)
    await world.turn()
    assert len(lists) == 2
    assert len([line for line in world.server.asked if line.startswith("POST") and line.endswith("/jobs")]) == 1


@pytest.mark.parametrize("kind", ["Job", "Pipeline"])
@pytest.mark.parametrize("attempt", [1, 2])
@pytest.mark.parametrize("names_job", [False, True])
async def test_no_pod_whose_marks_contradict_each_other_holds_up_a_turn(
    kind: str, attempt: int, names_job: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its label is of one Job, and its owner has the name of another: the list of each has the pod or has it not."""
    world = World(spec={"suspend": True}, status={"attempt": 1, "jobName": job_name()})
    world.tell_job(status={"active": 1, "startTime": instant(minutes_ago(58))})
    world.server.patched = make_job_object(
        version="60", status={"active": 1}, annotations={SUSPEND_ANNOTATION: "true"}, spec={"suspend": True}
    )
    forged = pod_at("40", name="forged", attempt=2, phase="Pending", created_at=minutes_ago(5))
    forged["metadata"]["labels"] |= {CONTROLLER_UID_LABEL: "job-1", JOB_NAME_LABEL: job_name(2) if names_job else ""}
    owner = {"apiVersion": "example.com/v1", "kind": kind, "name": job_name(attempt), "uid": "nowhere"}
    forged["metadata"]["ownerReferences"] = [{**owner, "controller": True}]
    pods = [labelled(running("15")), forged]
    for pod in pods:
        world.cache.pods.put(pod)
    ask, lists = world.server.request, []

    async def request(method: str, path: str, query: Any = None, *more: Any, **options: Any) -> Object:
        if method != "GET" or path != PODS.path(NAMESPACE):
            return await ask(method, path, query, *more, **options)
        lists.append(path)
        label, _, values = query["labelSelector"].rstrip(")").partition(" in (")
        found = [pod for pod in pods if pod["metadata"]["labels"].get(label) in values.split(",")]
        return {"items": found, "metadata": {"resourceVersion": "100"}}

    monkeypatch.setattr(world.server, "request", request)
    await world.turn()
    assert (world.server.patches(), len(lists) <= 4) == (1, True)
