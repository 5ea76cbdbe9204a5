"""What the random life of the cluster has found, each as a short story of its own."""

from collections.abc import Iterator, Sequence
from typing import TypeVar

import pytest
from tests.component.documents import finetune
from tests.model.objects import Object
from tests.model.operators import Fault
from tests.model.world import World

from lora_operator.model.names import CONTROLLER_UID_LABEL, NAME_LABEL, QUEUE_LABEL, UID_LABEL

T = TypeVar("T")
QUOTA = 'pods "x" is forbidden: exceeded quota: gpus'


class First:
    """Chooses the first of everything."""

    def pick(self, among: Sequence[T]) -> T:
        """The first."""
        return among[0]

    def number(self, low: int, _high: int) -> int:
        """The lowest."""
        return low


class Lucky(First):
    """Chooses the first of everything, and the highest number: pods start."""

    def number(self, _low: int, high: int) -> int:
        """The highest."""
        return high


@pytest.fixture
def world() -> Iterator[World]:
    """A cluster with one operator and a run whose Job has just been made."""
    world = World(First())
    world.start_operator()
    world.life.create()
    world.settle()
    yield world
    world.close()


@pytest.fixture
def training() -> Iterator[World]:
    """A cluster with one operator and a run whose pod trains."""
    world = World(Lucky())
    world.start_operator()
    world.life.client.post(world.life.path("lorafinetunes"), run_of("tone"))
    world.pass_time(2)
    world.controllers.catch_up()
    world.life.start_pod()
    world.pass_time(5)
    yield world
    world.close()


def _job(world: World) -> Object:
    (job,) = world.server.all("jobs")
    return job


def test_an_operator_that_lags_does_not_take_back_what_another_did_to_a_job(world: World) -> None:
    """It reads the LoRAFineTune anew before it changes the Job."""
    world.controllers.catch_up()
    world.start_operator()
    world.settle()
    world.operators[0].deaf.add("lorafinetunes")
    world.life.edit()
    world.settle()
    world.pass_time(60)
    assert _job(world)["spec"]["suspend"] is True
    patches = [request for request in world.network.requests if request.method == "PATCH"]
    assert len(patches) == 1, patches


@pytest.mark.parametrize("preflight", ["Skip", "Run"])
def test_an_operator_that_lags_does_not_make_the_job_of_a_deleted_run_again(preflight: str) -> None:
    """A finalizer keeps the run; before its first status is stored, another operator stops its Job."""
    world = World(First())
    try:
        world.start_operator()
        world.settle()
        world.life.client.post(world.life.path("lorafinetunes"), finetune(preflight=preflight))
        world.loop.settle()
        world.operators[0].deaf.add("lorafinetunes")
        world.start_operator()
        world.settle()
        world.keep_runs(kept=True)
        world.life.delete()
        world.settle()
        world.pass_time(60)
        assert not list(world.server.all("jobs"))
        made = [r for r in world.network.requests if r.path.endswith("/jobs") and r.method == "POST" and not r.error]
        assert len(made) == 1
    finally:
        world.close()


@pytest.mark.parametrize("retries", [1, 5])
def test_an_operator_that_lags_reads_the_job_of_the_attempt_that_another_has_made(retries: int) -> None:
    """It knows that the first Job is gone, and neither the second nor the status that names it."""
    world = World(First())
    try:
        world.start_operator()
        world.settle()
        world.life.client.post(world.life.path("lorafinetunes"), run_of("tone", maxRetries=retries))
        world.settle()
        world.controllers.catch_up()
        world.pass_time(5)
        behind = world.operators[0]
        world.start_operator()
        world.settle()
        behind.deaf |= {"lorafinetunes", "jobs", "pods"}
        world.life.delete_job()
        world.life.stop_all()
        world.controllers.catch_up()
        world.pass_time(3)
        while behind.stores.jobs.places():
            behind.hear("jobs", 1)
        world.settle()
        world.check()
        (run,) = world.server.all("lorafinetunes")
        assert run["status"]["attempt"] == 2
        assert {c["type"]: c["status"] for c in run["status"]["conditions"]}["Failed"] != "True"
        assert [job["metadata"]["labels"]["lora-operator.io/attempt"] for job in world.server.all("jobs")] == ["2"]
    finally:
        world.close()


def run_of(name: str, **spec: object) -> Object:
    """A run as a user applies it."""
    document = finetune(name, **spec)
    document["metadata"]["annotations"] = {"team": "red"}
    return document


def test_a_restart_does_not_take_back_a_reason_that_events_reported(world: World) -> None:
    """The new process reads the Events before it says anything else of a run that waits."""
    world.controllers.refuses_pods = QUOTA
    world.controllers.catch_up()
    world.pass_time(60)
    (run,) = world.server.all("lorafinetunes")
    assert {c["reason"] for c in run["status"]["conditions"] if c["type"] == "Complete"} == {"QuotaExceeded"}
    world.restart_at_rest()
    version = world.server.version
    world.pass_time(60)
    assert world.server.version == version


def test_a_job_that_an_operator_makes_too_late_is_stopped() -> None:
    """Its request hangs; meanwhile another operator makes the Job, which a user deletes, and goes on with the next."""
    world = World(First())
    try:
        world.start_operator()
        world.settle()
        world.network.faults.append((Fault.SLOW, "POST"))
        world.life.client.post(world.life.path("lorafinetunes"), finetune(maxRetries=2))
        world.loop.settle()
        world.start_operator()
        world.settle()
        world.pass_time(2)  # the status names the Job
        world.life.delete_job()
        world.settle()
        assert [job["metadata"]["labels"]["lora-operator.io/attempt"] for job in world.server.all("jobs")] == ["2"]
        world.pass_time(60)
        made = [r for r in world.network.requests if r.path.endswith("/jobs") and r.writes and not r.error]
        assert len(made) == 3, "the first operator never made its Job"
        assert [job["metadata"]["labels"]["lora-operator.io/attempt"] for job in world.server.all("jobs")] == ["2"]
    finally:
        world.close()


def test_a_pod_that_its_job_counts_cannot_be_hidden_by_taking_labels_off(world: World) -> None:
    """All but the Job's uid, without which the Job would let go of it: the live read at the end finds the pod."""
    world.life.chance = Lucky()
    world.operators[0].deaf.add("pods")
    world.controllers.catch_up()
    world.life.start_pod()
    world.life.succeed()
    (pod,) = world.server.all("pods")
    bare = {"labels": dict.fromkeys(key for key in pod["metadata"]["labels"] if key != CONTROLLER_UID_LABEL)}
    world.life.client.patch(world.life.path("pods", pod["metadata"]["name"]), {"metadata": bare})
    world.operators[0].miss("pods")
    world.controllers.catch_up()
    world.pass_time(60)
    assert _reasons(world) == ["Succeeded"]


@pytest.mark.parametrize("restarted", [False, True])
@pytest.mark.parametrize("label", [NAME_LABEL, UID_LABEL])
def test_a_pod_cannot_be_hidden_by_changing_a_label(label: str, *, restarted: bool) -> None:
    """Whoever normalizes labels takes no result from its run: the live read at its end finds the pod."""
    world = World(Lucky())
    try:
        world.start_operator()
        world.settle()
        world.life.client.post(world.life.path("lorafinetunes"), run_of("tone", maxRetries=0))
        world.settle()
        world.controllers.catch_up()
        world.pass_time(3)
        (pod,) = world.server.all("pods")
        changed = {"metadata": {"labels": {label: "other"}}}
        world.life.client.patch(world.life.path("pods", pod["metadata"]["name"]), changed)
        if restarted:
            world.operators[0].kill()
        world.settle()
        world.life.start_pod()
        world.settle()
        world.pass_time(60)
        world.life.succeed()
        world.settle()
        world.controllers.catch_up()
        world.pass_time(60)
        assert _reasons(world) == ["Succeeded"]
        world.check()
    finally:
        world.close()


def _fail(world: World) -> str:
    """The pod that the Job makes after its backoff starts, fails and is counted; its uid."""
    world.pass_time(20)
    world.controllers.catch_up()
    (pod,) = world.life._pods("waiting")
    world.life.start_pod()
    world.settle()
    world.life.fail()
    world.controllers.catch_up()
    world.pass_time(5)
    world.check()
    return str(pod["metadata"]["uid"])


@pytest.mark.parametrize("how", ["stripped", "gone"])
def test_a_pod_that_was_counted_is_not_counted_again_by_who_has_seen_less_or_more(how: str) -> None:
    """It is hidden from a watch and shown by a live read, or gone before another operator takes over."""
    world = World(Lucky())
    try:
        world.start_operator()
        world.start_operator(leads=False)
        world.life.client.post(world.life.path("lorafinetunes"), run_of("tone", maxRetries=2))
        world.settle()
        world.controllers.catch_up()
        world.pass_time(5)
        first = _fail(world)
        (pod,) = (pod for pod in world.server.all("pods") if pod["metadata"]["uid"] == first)
        path = world.life.path("pods", pod["metadata"]["name"])
        if how == "stripped":
            bare = dict.fromkeys(key for key in pod["metadata"]["labels"] if not key.startswith("batch.kubernetes.io"))
            world.life.client.patch(path, {"metadata": {"labels": bare}})
        else:
            world.life.client.delete(path)
        world.pass_time(5)
        _fail(world)
        if how == "stripped":
            more = {"spec": {"activeDeadlineSeconds": 90_000}}
            world.life.client.patch(world.life.path("lorafinetunes", "tone"), more)
        else:
            world.operators[0].kill()
        world.settle()
        world.pass_time(60)
        world.check()
        (run,) = world.server.all("lorafinetunes")
        assert run["status"]["retries"]["used"] == 2
    finally:
        world.close()


def test_a_run_waits_in_its_queue_gives_way_and_ends() -> None:
    """Another one has the quota; it is evicted, deactivated and held by its user on the way; no retry is used up."""
    world = World(Lucky())
    try:
        world.install_kueue()
        assert world.queues is not None
        world.start_operator()
        for name in ("first", "second"):
            document = finetune(name, maxRetries=0)
            document["metadata"] |= {"labels": {QUEUE_LABEL: "gpus"}, "annotations": {"team": "red"}}
            world.life.client.post(world.life.path("lorafinetunes"), document)
            world.pass_time(2)

        def come_to(*reasons: str) -> None:
            for _ in range(3):
                world.controllers.catch_up()
                world.pass_time(5)
                world.life.stop_all()
            assert _reasons(world) == list(reasons)
            world.check_rest()

        come_to("Pending", "Queued")
        world.queues.quota = 0
        world.queues.evict(First())
        come_to("Preempted", "Queued")
        world.queues.quota = 1
        come_to("Pending", "Queued")
        world.life.client.patch(world.life.path("lorafinetunes", "first"), {"spec": {"suspend": True}})
        come_to("SuspendedByUser", "Pending")
        world.life.suspend_job()
        come_to("SuspendedByUser", "Pending")
        world.life.client.patch(world.life.path("lorafinetunes", "first"), {"spec": {"suspend": False}})
        come_to("Queued", "Pending")
        world.queues.deactivate(First())
        come_to("SuspendedExternally", "Pending")
        world.check_queues()
        assert _reasons(world) == ["Succeeded", "Succeeded"]
    finally:
        world.close()


def _reasons(world: World) -> list[str]:
    """The state of each run, by name."""
    conditions = [c for run in world.server.all("lorafinetunes") for c in run["status"]["conditions"]]
    return [c["reason"] for c in conditions if c["type"] == "Complete"]


def test_two_operators_that_cannot_agree_leave_longer_and_longer_pauses(world: World) -> None:
    """The clock of one is wrong by two hours, and with it how long a node has been silent."""
    world.life.chance = Lucky()
    world.controllers.catch_up()
    world.life.start_pod()
    world.start_operator(skew_s=7200)
    world.settle()
    world.life.silence_node()
    world.settle()
    writes = len([request for request in world.network.requests if request.method == "PUT"])
    world.pass_time(600)
    wrote = len([request for request in world.network.requests if request.method == "PUT"]) - writes
    assert wrote <= 40, f"{wrote} writes in ten minutes"
    world.check()


@pytest.mark.parametrize("behind_s", [2, 30])
def test_a_watch_of_pods_that_lags_loses_nothing_of_what_the_preflight_found(behind_s: float) -> None:
    """Its Job is Complete before the watch of pods brings the end, and with it the report and the plan."""
    world = World(Lucky())
    try:
        world.start_operator()
        world.settle()
        world.life.client.post(world.life.path("lorafinetunes"), run_of("tone", preflight="Run"))
        world.settle()
        world.controllers.catch_up()
        world.pass_time(2)
        world.life.start_pod()
        world.pass_time(5)
        world.operators[0].deaf.add("pods")
        world.life.succeed()
        world.controllers.catch_up()
        world.pass_time(behind_s)
        world.operators[0].deaf.discard("pods")
        world.operators[0].hear("pods")
        world.pass_time(60)
        world.check()
        (run,) = world.server.all("lorafinetunes")
        assert run["status"]["attempt"] == 1
        assert run["status"]["plan"]
    finally:
        world.close()


@pytest.mark.parametrize("restarted", [False, True])
def test_a_job_that_lost_its_controller_gets_no_other_one_beside_it(training: World, *, restarted: bool) -> None:
    """Its pod was drained and the next is not made yet, when somebody takes the reference off; perhaps labels, too."""
    training.life.disrupt()
    training.life.stop_all()
    training.life.disown()
    if restarted:
        training.life.strip_labels()
        training.operators[0].kill()
    training.settle()
    training.pass_time(60)
    training.check()
    (job,) = training.server.all("jobs")
    assert [owner["controller"] for owner in job["metadata"]["ownerReferences"]] == [True]
    training.controllers.catch_up()
    training.pass_time(60)
    training.check_rest()
    assert _reasons(training) == ["Pending"]
