"""Turns of one run against an API server in memory: what is read and written, and when it is looked at next."""

import asyncio
from datetime import timedelta
from typing import Any

import pytest
from tests.unit.builders import (
    CONFIG,
    NAMESPACE,
    NOW,
    UID,
    condition_object,
    job_name,
    make_job_object,
    make_manifest,
    make_pod_object,
    make_summary,
    make_workload_object,
    minutes_ago,
)
from tests.unit.turns import KEY, Object, World, pod_at

from lora_operator.cluster import child_events
from lora_operator.cluster.api import JOBS, SERVICES, ApiError, UnreachableError
from lora_operator.cluster.cache import Key
from lora_operator.cluster.carry_out import TryAgainError
from lora_operator.views.names import GROUP, MANAGED_BY_LABEL, PREFLIGHT, SUSPEND_ANNOTATION, TRAIN
from lora_operator.views.wording import instant


async def test_a_pod_that_gets_another_reason_to_wait_tells_it_though_there_are_no_events_to_read() -> None:
    """Its claim was made, and now all GPUs are taken: what the status said before came from the pod itself."""
    world = World()
    world.tell_pod('persistentvolumeclaim "adapters" not found', "21")
    await world.turn()
    assert world.condition("Complete")["reason"] == "VolumeNotReady"
    world.tell_pod("0/5 nodes are available: 5 Insufficient nvidia.com/gpu.", "22")
    await world.turn()
    assert world.condition("Complete")["reason"] == "Unschedulable"


async def test_what_an_earlier_process_learned_from_events_ends_when_a_pod_without_a_node_is_there() -> None:
    """A quota held the Job up; now its pod waits for a node, of which there are no Events to read."""
    stored = {
        "conditions": [condition_object("Complete", "Unknown", reason="QuotaExceeded", message="no quota")],
        "attempt": 1,
        "jobName": job_name(),
    }
    world = World(status=stored)
    world.tell_pod("0/5 nodes are available: 5 Insufficient nvidia.com/gpu.", "21")
    await world.turn()
    assert world.condition("Complete")["reason"] == "Unschedulable"


async def test_what_an_earlier_process_learned_from_events_stays_until_they_are_read(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Its namespace's line for them is long: the turn goes on without, and the run is looked at once they are there."""
    monkeypatch.setattr(child_events, "IN_LINE_S", 0.001)
    monkeypatch.setattr(child_events, "PATIENCE_S", 0.5)
    stored = {
        "conditions": [condition_object("Complete", "Unknown", reason="QuotaExceeded", message="no quota")],
        "attempt": 1,
        "jobName": job_name(),
    }
    world = World(status=stored)
    events = world.reconciler._events
    async with events._slots.slot(NAMESPACE):
        for _ in range(2):
            wait_s = await world.turn()
            assert world.condition("Complete")["reason"] == "QuotaExceeded"
            assert wait_s is not None
            assert 0 < wait_s <= 10
            assert events.is_in_line(KEY)
    while events.is_in_line(KEY):  # noqa: ASYNC110 - it is woken, and there is no queue
        await asyncio.sleep(0.001)
    await world.turn()
    assert world.condition("Complete")["reason"] == "Pending"


async def test_a_refused_patch_of_a_run_that_waits_for_a_node_is_tried_again() -> None:
    """Whatever refused it, a webhook for instance, tells nobody when it would take it."""
    world = World(spec={"suspend": True})
    world.tell_pod("0/5 nodes are available: 5 Insufficient nvidia.com/gpu.", "21")
    world.server.patched = ApiError(403, "Forbidden", "admission webhook x denied the request: no")
    wait_s = await world.turn()
    assert world.condition("Accepted")["status"] == "False"
    assert wait_s is not None
    assert 0 < wait_s <= CONFIG.retry_max_s


async def test_what_the_answer_to_a_patch_tells_of_the_job_counts_at_once() -> None:
    """The Job had completed meanwhile: the watch that will say so brings no news any more."""
    world = World(spec={"suspend": True})
    world.tell_pod("0/5 nodes are available: 5 Insufficient nvidia.com/gpu.", "21")
    done = make_job_object(
        spec={"suspend": True},
        annotations={SUSPEND_ANNOTATION: "true"},
        status={"conditions": [condition_object("Failed", reason="BackoffLimitExceeded", message="all pods failed")]},
    )
    done["metadata"]["resourceVersion"] = "30"
    world.server.patched = done
    await world.turn()
    assert world.server.patches() == 1
    assert world.condition("Failed")["status"] == "True"


async def test_a_job_that_is_gone_is_looked_for_and_not_patched_again() -> None:
    """Its deletion is never told where a watch missed it."""
    world = World(spec={"suspend": True}, status={"attempt": 1, "jobName": job_name()})
    world.server.job = None
    await world.turn()
    assert world.server.patches() == 0
    assert f"GET {JOBS.path(NAMESPACE, job_name())}" in world.server.asked
    assert f"POST {JOBS.path(NAMESPACE)}" in world.server.asked


async def test_a_job_that_goes_between_the_read_and_the_patch_is_looked_for_again() -> None:
    """The turn ends, and the next one reads anew."""
    world = World(spec={"suspend": True}, status={"attempt": 1, "jobName": job_name()})
    world.server.patched = ApiError(404, "NotFound", "jobs not found")
    with pytest.raises(TryAgainError, match="is gone"):
        await world.turn()
    world.server.job = None
    await world.turn()
    assert world.server.patches() == 1


async def test_a_change_that_the_cluster_undoes_does_not_keep_the_status_from_being_reported() -> None:
    """A mutating policy puts the Job back at each update: the status is the Job's, and advice says what is undone."""
    world = World(spec={"suspend": True})
    world.tell_pod("0/5 nodes are available: 5 Insufficient nvidia.com/gpu.", "21")
    world.server.patched = make_job_object()
    world.server.patched["metadata"]["resourceVersion"] = "30"
    await world.turn()
    assert world.server.patches() == 1
    assert world.condition("Suspended")["status"] == "False"
    assert world.condition("Accepted")["status"] == "True"
    (advice,) = (a for a in world.server.finetune["status"]["advice"] if a["code"] == "ChangeUndone")
    assert f"Job {job_name()} does not keep metadata.annotations, spec.suspend=True" in advice["evidence"]


async def turns_of_an_hour(world: World) -> list[Object]:
    """The status after each turn of an hour in which the run is looked at every fifteen seconds, or when it asks."""
    statuses = []
    while world.now_s < 3600:
        wait_s = await world.turn()
        statuses.append(world.server.finetune["status"])
        world.now_s += min(15.0, wait_s or 15.0)
    return statuses


async def test_a_change_that_the_cluster_undoes_is_tried_less_and_less_often() -> None:
    """After 1, 2 and 4 minutes, then every 5: each try costs four requests and a line, of a thousand runs at once."""
    world = World(spec={"activeDeadlineSeconds": 7200})
    world.tell_pod("0/5 nodes are available: 5 Insufficient nvidia.com/gpu.", "21")
    world.server.patched = make_job_object(version="30")
    statuses = await turns_of_an_hour(world)
    assert world.server.patches() == 1 + 3 + (3600 - 420) // 300
    assert len(world.server.asked) < 8 * world.server.patches()
    assert all("ChangeUndone" in [a["code"] for a in status["advice"]] for status in statuses)


async def test_a_change_that_the_cluster_denies_is_tried_every_minute() -> None:
    """However often the run is looked at meanwhile; until then the denial stands."""
    world = World(spec={"activeDeadlineSeconds": 7200})
    world.tell_pod("0/5 nodes are available: 5 Insufficient nvidia.com/gpu.", "21")
    world.server.patched = ApiError(403, "Forbidden", 'admission webhook "x" denied the request: no')
    for status in await turns_of_an_hour(world):
        (accepted,) = (c for c in status["conditions"] if c["type"] == "Accepted")
        assert accepted["status"] == "False"
    assert world.server.patches() == 60


async def test_another_change_is_made_at_once_beside_one_that_the_cluster_undoes() -> None:
    """A user who suspends the run waits for nobody's policy."""
    world = World(spec={"activeDeadlineSeconds": 7200})
    world.tell_pod("0/5 nodes are available: 5 Insufficient nvidia.com/gpu.", "21")
    world.server.patched = make_job_object(version="30")
    await world.turn()
    manifest = make_manifest(spec={"activeDeadlineSeconds": 7200, "suspend": True})
    manifest["status"], manifest["metadata"] = world.server.finetune["status"], dict(manifest["metadata"])
    manifest["metadata"]["resourceVersion"] = "60"
    world.server.finetune = manifest
    world.cache.finetunes.put(manifest)
    world.server.patched = make_job_object(
        spec={"suspend": True}, annotations={SUSPEND_ANNOTATION: "true"}, version="31"
    )
    await world.turn()
    assert world.condition("Suspended")["status"] == "True"


async def test_labels_and_annotations_that_somebody_strips_are_not_put_back_without_end() -> None:
    """The count of how often stands in an annotation, which goes with them: it is tried after some time."""
    world = World(status={"attempt": 1, "jobName": job_name()})
    for number in range(20):
        world.strip({}, str(30 + 2 * number))
        world.server.patched = make_job_object(version=str(31 + 2 * number))
        await world.turn()
    assert world.server.patches() == 1
    world.now_s = 60.0
    await world.turn()
    assert world.server.patches() == 2


async def test_no_job_is_made_for_a_run_whose_end_another_operator_has_reported() -> None:
    """The Job went with the end, and this process' watch of the runs is behind: it looks, and makes none."""
    world = World(status={"attempt": 1, "jobName": job_name()})
    (job,) = world.cache.jobs
    world.cache.jobs.mark_deleted(Key(NAMESPACE, job.name), job.uid)
    world.server.job = None
    ended = {"conditions": [condition_object("Complete", reason="Succeeded")], "attempt": 1, "jobName": job_name()}
    world.server.finetune = make_manifest(status=ended)
    world.server.finetune["metadata"]["resourceVersion"] = "9"
    await world.turn()
    assert not [line for line in world.server.asked if line.startswith("POST")]


@pytest.mark.parametrize("labels", [{}, {MANAGED_BY_LABEL: "Helm"}])
async def test_a_job_that_has_lost_labels_is_not_made_a_second_time(labels: dict[str, str]) -> None:
    """Neither our watch nor our lists show it: it is the run's by its owner, and gets its labels back."""
    world = World(status={"attempt": 1, "jobName": job_name()})
    world.strip(labels, "30")
    world.server.patched = make_job_object(version="31")
    await world.turn()
    assert not [line for line in world.server.asked if line.startswith("POST")]
    assert world.condition("Complete")["reason"] == "Pending"
    assert world.server.patches() == 1


@pytest.mark.parametrize("during", ["/jobs/", "/pods"])
async def test_a_label_that_is_lost_while_a_job_is_read_ends_no_run(
    during: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The watch reports it as a deletion, which the read of a moment ago does not confirm: it is read once more."""
    world = World(spec={"maxRetries": 0}, status={"attempt": 1, "jobName": job_name()})
    world.strip({}, "30")
    world.server.patched = make_job_object(version="50")
    ask, lost = world.server.request, iter(["40"])

    async def request(method: str, path: str, *more: Any, **options: Any) -> Object:
        if method == "GET" and during in path and (version := next(lost, "")):
            world.strip({}, version)
        return await ask(method, path, *more, **options)

    monkeypatch.setattr(world.server, "request", request)
    await world.turn()
    assert next(lost, "") == ""
    assert world.condition("Failed")["status"] == "Unknown"
    assert world.condition("Complete")["reason"] == "Pending"
    assert not [line for line in world.server.asked if line.startswith("POST")]


@pytest.mark.parametrize("labels", [{}, None], ids=["no labels", "our labels"])
@pytest.mark.parametrize("controller", [("example.com/v1", "Pipeline"), (f"{GROUP}/v1alpha1", "LoRAFineTune"), None])
async def test_a_job_that_somebody_else_makes_by_the_name_of_one_that_is_gone_holds_up_no_verdict(
    controller: tuple[str, str] | None, labels: Object | None
) -> None:
    """Whatever it carries, the cache has none of the run's by its uid, however often it is read."""
    world = World(spec={"maxRetries": 0}, status={"attempt": 1, "jobName": job_name()})
    (job,) = world.cache.jobs
    world.cache.jobs.mark_deleted(Key(NAMESPACE, job.name), job.uid)
    forged = make_job_object(version="50")
    forged["spec"]["template"]["metadata"]["labels"] = {}
    forged["metadata"] |= {"uid": "another", "ownerReferences": []}
    if labels is not None:
        forged["metadata"]["labels"] = labels
    if controller is not None:
        owner = {"apiVersion": controller[0], "kind": controller[1], "name": "other", "uid": "other-uid"}
        forged["metadata"]["ownerReferences"] = [{**owner, "controller": True}]
    world.server.job = forged
    await world.turn()
    assert world.condition("Failed")["reason"] == "BackoffLimitExceeded"
    assert len(world.server.asked) <= 4


async def test_what_a_queue_says_of_a_run_that_waits_is_read_live_only_where_it_is_written() -> None:
    """The run was preempted, and the status names its last pod: a list of the namespace's pods for each message of
    Kueue would be a thousand of them whenever a thousand runs wait."""
    world = World(status={"attempt": 1, "jobName": job_name(), "podName": f"{job_name()}-0-abcde"})
    world.kueue.served = True
    suspended = condition_object("Suspended", since=minutes_ago(20))
    world.tell_job(version="21", queue="gpus", spec={"suspend": True}, status={"conditions": [suspended]})
    evicted = condition_object("Evicted", since=minutes_ago(21), reason="Preempted", message="Preempted")
    asked = []
    for number in range(32):
        message = f"insufficient unused quota, {number} more needed"
        pending = condition_object("QuotaReserved", "False", reason="Pending", message=message)
        workload = make_workload_object(pending, evicted)
        workload["metadata"]["resourceVersion"] = str(100 + number)
        world.cache.workloads.put(workload)
        await world.turn()
        asked.append(len(world.server.asked))
        world.now_s += 1
    assert asked[1] == asked[-1] > 0


@pytest.mark.parametrize("spec", [{"suspend": True}, {"maxRetries": 0}, {"activeDeadlineSeconds": 9000}])
async def test_a_change_that_is_due_hides_no_job_that_has_lost_its_labels(spec: Object) -> None:
    """The answer to the patch lacks them, too: no second Job, no end of the run while its first Job goes on."""
    world = World(spec=spec, status={"attempt": 1, "jobName": job_name()})
    world.strip({}, "30")
    limits = {"backoffLimit": spec.get("maxRetries", 3), "activeDeadlineSeconds": spec.get("activeDeadlineSeconds")}
    changed = make_job_object(
        spec={**limits, "suspend": bool(spec.get("suspend"))},
        annotations={SUSPEND_ANNOTATION: str(bool(spec.get("suspend"))).lower()},
        version="31",
    )
    changed["metadata"]["labels"] = {}
    world.server.patched = changed
    await world.turn()
    assert not [line for line in world.server.asked if line.startswith("POST")]
    assert world.condition("Failed")["status"] == "Unknown"


@pytest.mark.parametrize("stage", [TRAIN, PREFLIGHT])
@pytest.mark.parametrize("killed", [False, True])
async def test_a_job_without_labels_is_adopted_before_there_is_a_status(stage: str, killed: bool) -> None:
    """Somebody took its labels off; an operator that was killed in between has never seen it."""
    world = World(spec={"preflight": "Run" if stage == PREFLIGHT else "Skip"}, stage=stage)
    world.strip({}, "30", stage)
    if killed:
        world.cache.jobs.acknowledge(KEY)
    world.server.conflict = True
    world.server.patched = make_job_object(version="31", stage=stage)
    await world.turn()
    assert len([line for line in world.server.asked if line.startswith("POST")]) == killed
    world.now_s = 1.0
    await world.turn()
    assert len(world.server.asked) <= 10
    assert world.condition("Complete")["reason"] == "Pending"
    assert world.server.finetune["status"].get("jobName") == (job_name() if stage == TRAIN else None)


async def test_a_service_that_is_refused_holds_no_suspension_up() -> None:
    """Several nodes, and no room in the quota of Services: what the user wishes for is done first."""
    stored = {"attempt": 1, "jobName": job_name(), "conditions": [condition_object("Accepted", "False")]}
    world = World(spec={"suspend": True, "resources": {"nodes": 2}}, status=stored)
    world.tell_pod("0/5 nodes are available: 5 Insufficient nvidia.com/gpu.", "21")
    held = make_job_object(spec={"suspend": True, "backoffLimit": 6}, annotations={SUSPEND_ANNOTATION: "true"})
    held["metadata"]["resourceVersion"] = "30"
    world.server.patched, world.server.refused = held, "/services"
    await world.turn()
    assert world.server.patches() == 1
    assert world.condition("Suspended")["status"] == "True"


@pytest.mark.parametrize("gone_with", ["watch", "list"])
async def test_a_pod_that_ended_and_was_gone_before_anybody_looked_is_counted_once(gone_with: str) -> None:
    """A drain: the kubelet told its end and let the object go within the moment that the operator waits for its Job."""
    world = World()
    world.cache.pods.put(pod_at("5", phase="Running", state={"running": {}}, conditions=(condition_object("Ready"),)))
    await world.turn()
    world.lose_pod(_drained("7"), gone_with)
    await world.turn()
    assert world.server.finetune["status"]["retries"]["preempted"] == 1
    await world.turn()
    await world.turn()
    assert world.server.finetune["status"]["retries"]["preempted"] == 1


async def test_the_pod_that_follows_is_looked_at_without_the_one_that_is_gone() -> None:
    """Both were seen at once, and the new one may have no news for hours: the status does not stay with the old one."""
    world = World()
    world.cache.pods.put(pod_at("5", phase="Running", state={"running": {}}, conditions=(condition_object("Ready"),)))
    await world.turn()
    world.lose_pod(_drained("7"), "watch")
    world.cache.pods.put(pod_at("8", name="second", phase="Pending"))
    wait_s = await world.turn()
    assert (world.condition("Complete")["reason"], wait_s) == ("Evicted", 1.0)
    world.now_s += 1
    wait_s = await world.turn()
    assert (world.condition("Complete")["reason"], "of pod second" in world.condition("Complete")["message"]) == (
        "Pending",
        True,
    )
    assert wait_s != 1.0


async def test_a_success_outlives_its_pod_until_the_job_says_so() -> None:
    """The pod has published and is deleted by somebody, and the Job controller is late: nothing is trained again."""
    world = World(status={"attempt": 1, "jobName": job_name()})
    done = pod_at("7", phase="Succeeded", state={"terminated": {"exitCode": 0, "message": make_summary().to_message()}})
    world.cache.pods.put(pod_at("5", phase="Running", state={"running": {}}, conditions=(condition_object("Ready"),)))
    world.lose_pod(done, "watch")
    await world.turn()
    await world.turn()
    assert world.condition("Complete")["reason"] == "Publishing"
    world.tell_job("30", status={"succeeded": 1, "conditions": [condition_object("Complete")]})
    await world.turn()
    assert (world.condition("Complete")["status"], world.cache.pods.tombstones(KEY, UID)) == ("True", ())
    assert world.poller.forgotten == [done["metadata"]["uid"]], "it is asked no more"


def _drained(version: str) -> Object:
    target = condition_object("DisruptionTarget", reason="EvictionByEvictionAPI")
    ended = {"terminated": {"exitCode": 143, "reason": "Error"}}
    return pod_at(version, phase="Failed", state=ended, conditions=(target,), deleting=True)


def statuses(world: World) -> int:
    """How often a status was written."""
    return sum(line.startswith("PUT") for line in world.server.asked)


async def test_the_first_status_waits_for_the_scheduler() -> None:
    """A Job, its pod and what the scheduler says of that cost one status and one look less."""
    world = World()
    assert await world.turn() == 1.0
    world.now_s = 0.4
    assert await world.turn() == pytest.approx(0.6)
    assert statuses(world) == 0
    world.tell_pod("0/5 nodes are available: 5 Insufficient nvidia.com/gpu.", "21")
    await world.turn()
    assert statuses(world) == 1
    assert world.condition("Complete")["reason"] == "Unschedulable"


async def test_the_first_status_waits_a_second_and_no_longer() -> None:
    """A scheduler may be away."""
    world = World()
    await world.turn()
    world.now_s = 1.0
    await world.turn()
    assert statuses(world) == 1
    assert world.condition("Complete")["reason"] == "Pending"


async def test_a_sentence_that_changes_alone_waits_a_minute() -> None:
    """The scheduler counts nodes anew each few seconds; the next reason is told at once."""
    world = World()
    world.tell_pod("0/5 nodes are available: 5 Insufficient nvidia.com/gpu.", "21")
    await world.turn()
    for seconds in range(0, 60, 10):
        world.now_s = seconds
        world.tell_pod(f"0/5 nodes are available: {seconds} are busy.", str(22 + seconds))
        assert await world.turn() == 60 - seconds
    assert statuses(world) == 1
    world.now_s = 60.0
    await world.turn()
    assert statuses(world) == 2
    assert "50 are busy" in world.condition("Complete")["message"]
    world.tell_pod('persistentvolumeclaim "adapters" not found', "99")
    await world.turn()
    assert world.condition("Complete")["reason"] == "VolumeNotReady"


async def test_the_more_trainings_report_the_later_each_is_asked_again() -> None:
    """A thousand of them write 20 statuses a second at most; the end of one is another's gain."""
    world = World(status={"attempt": 1, "jobName": job_name(), "progress": {"lastUpdateTime": instant(NOW)}})
    running = make_pod_object(state={"running": {}}, phase="Running")
    world.cache.pods.put(running)
    waits: list[float] = []
    for world.poller.number in (10, 1000):
        waits.append(await world.turn() or 0)
    assert waits[0] == CONFIG.progress_interval_s
    assert 50 <= waits[1] <= 60


def _failed_job(world: World, failed: int = 1) -> None:
    """The watch has brought the Job's failure."""
    conditions = [condition_object("Failed", reason="BackoffLimitExceeded")]
    world.tell_job("30", status={"failed": failed, "conditions": conditions})


def _failed_pod() -> Object:
    state = {"terminated": {"exitCode": 70, "reason": "Error", "message": "", "finishedAt": instant(NOW)}}
    pod = make_pod_object(phase="Failed", state=state)
    pod["metadata"]["resourceVersion"] = "21"
    return pod


@pytest.mark.parametrize(("counted", "lists"), [(1, 0), (2, 1)])
async def test_a_failure_is_read_live_and_pods_are_listed_only_where_one_is_not_known(counted: int, lists: int) -> None:
    """The API server goes over all pods of the namespace for a list, and a mass failure would ask for thousands."""
    world = World()
    world.cache.pods.put(_failed_pod())
    _failed_job(world, counted)
    await world.turn()
    reads = [line for line in world.server.asked if line.startswith("GET")]
    assert reads[0].endswith(f"/jobs/{job_name()}")
    assert sum(line.endswith("/pods") for line in reads) == lists
    assert world.condition("Failed")["status"] == "True"


async def test_pods_are_listed_while_one_is_not_known_to_have_ended() -> None:
    """What it did last is in no cache yet."""
    world = World()
    running = make_pod_object(phase="Running", state={"running": {}})
    running["metadata"]["resourceVersion"] = "21"
    world.cache.pods.put(running)
    _failed_job(world)
    await world.turn()
    assert any(line.endswith("/pods") for line in world.server.asked)


async def test_a_further_attempt_rests_on_the_resource_as_it_is_whatever_was_read_before_for_an_end() -> None:
    """The Job of a run that has waited too long turns out to be gone, which asks for another attempt; its user has
    suspended the run meanwhile."""
    waits = [condition_object("PodsReady", "False", since=NOW - timedelta(hours=1))]
    world = World(spec={"pendingTimeoutSeconds": 60}, status={"attempt": 1, "jobName": job_name(), "conditions": waits})
    world.server.job = None
    world.server.finetune = make_manifest(spec={"suspend": True}, status=world.server.finetune["status"])
    world.server.finetune["metadata"]["resourceVersion"] = "99"
    await world.turn()
    (job,) = world.cache.jobs.of(KEY, UID)
    assert (job.attempt, job.suspended) == (2, True)


async def test_an_end_that_the_answer_to_a_patch_shows_is_read_live_once_more() -> None:
    """What was read before a write of ours is of a time before it."""
    world = World(spec={"suspend": True})
    world.cache.pods.put(_failed_pod())
    conditions = [condition_object("Failed", reason="BackoffLimitExceeded")]
    failed = make_job_object(
        spec={"suspend": True},
        status={"failed": 1, "conditions": conditions},
        annotations={SUSPEND_ANNOTATION: "true"},
        version="30",
    )
    world.server.patched = failed
    await world.turn()
    patched = next(number for number, line in enumerate(world.server.asked) if line.startswith("PATCH"))
    assert f"GET {JOBS.path(NAMESPACE, job_name())}" in world.server.asked[patched:]
    assert world.condition("Failed")["status"] == "True"


@pytest.mark.parametrize("spoken", [True, False])
async def test_the_first_status_of_a_run_in_a_queue_waits_for_what_the_queue_says(*, spoken: bool) -> None:
    """Kueue speaks within a moment of the Job, and its reason is worth more than that it has yet to speak."""
    world = World()
    world.tell_job("30", queue="gpus", spec={"suspend": True})
    pending = condition_object("QuotaReserved", "False", reason="Pending", message="no quota")
    world.cache.workloads.put(make_workload_object(*([pending] if spoken else [])))
    await world.turn()
    assert ("jobName" in world.server.finetune.get("status", {})) == spoken


@pytest.mark.parametrize("code", [401, 402, 404, 409, 410, 412, 429, 451])
async def test_a_webhook_that_denies_the_job_is_quoted_whatever_code_it_chose(code: int) -> None:
    """In the condition, by the first turn; and the next one tries again after a while."""
    world = World()
    world.cache.jobs.remove(world.server.job or {})
    world.cache.jobs.acknowledge(KEY)
    world.server.job = None
    denial = 'admission webhook "costs.example" denied the request:\nno budget'
    world.server.denied = ApiError(code, "AlreadyExists", denial, retry_after_s=3)
    assert await world.turn() == CONFIG.retry_max_s
    accepted = world.condition("Accepted")
    assert (accepted["status"], accepted["reason"]) == ("False", "AdmissionDenied")
    assert 'admission webhook "costs.example" denied the request: no budget' in accepted["message"]


@pytest.mark.parametrize(
    ("answer", "locked_out"),
    [
        (ApiError(401, "Unauthorized", "Unauthorized"), True),
        (ApiError(403, "Forbidden", "no right"), False),
        (ApiError(404, "NotFound", "gone"), False),
        (UnreachableError("no answer"), False),
        (None, False),
    ],
)
async def test_only_a_read_that_is_refused_tells_that_the_credentials_are(
    answer: Exception | None, locked_out: bool
) -> None:
    """No webhook is asked about a read."""
    world = World()
    world.server.unreadable = answer
    assert await world.reconciler.is_locked_out(KEY) is locked_out


@pytest.mark.parametrize("refused", ["jobs", "services"])
async def test_a_deletion_that_is_refused_keeps_no_other(refused: str) -> None:
    """Least of all that of a Job that holds GPUs; and the turn is tried again."""
    ended = {"conditions": [condition_object("Failed", reason="PendingTimeout")], "attempt": 1, "jobName": job_name()}
    world = World(spec={"resources": {"nodes": 2}}, status=ended)
    deleted = []

    async def request(method: str, path: str, *args: Any, **others: Any) -> Object:
        if method == "DELETE":
            deleted.append(path)
            if f"/{refused}/" in path:
                raise ApiError(403, "Forbidden", "no right")
            return {}
        if path.startswith(SERVICES.path(NAMESPACE)):
            return make_job_object()
        return await answer(method, path, *args, **others)

    answer, world.server.request = world.server.request, request  # type: ignore[method-assign] # a server in between
    with pytest.raises(ApiError, match="no right"):
        await world.turn()
    assert set(deleted) == {JOBS.path(NAMESPACE, job_name()), SERVICES.path(NAMESPACE, job_name())}


async def test_what_was_read_before_a_conflict_is_read_again_before_the_verdict() -> None:
    """Somebody wrote the resource meanwhile, and may have made what the verdict says is not there."""
    stored = {"attempt": 1, "jobName": job_name(), "conditions": [condition_object("PodsReady", "False")]}
    world = World(spec={"pendingTimeoutSeconds": 60}, status=stored)
    conflicts = [ApiError(409, "Conflict", "the object has been modified")]
    asked = []

    async def request(method: str, path: str, *args: Any, **others: Any) -> Object:
        asked.append(f"{method} {path.rsplit('/', 1)[-1]}")
        if method == "PUT" and conflicts:
            metadata = {**world.server.finetune["metadata"], "resourceVersion": "77"}
            world.server.finetune = {**world.server.finetune, "metadata": metadata}
            raise conflicts.pop()
        return await answer(method, path, *args, **others)

    answer, world.server.request = world.server.request, request  # type: ignore[method-assign] # a server in between
    await world.turn()
    assert world.condition("Failed")["reason"] == "PendingTimeout"
    first, second = (number for number, line in enumerate(asked) if line == "PUT status")
    read = f"GET {job_name()}"
    assert read in asked[:first]
    assert read in asked[first:second]
