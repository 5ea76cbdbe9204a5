"""A pod's end that a status has counted is never counted again, whoever looks, and whatever that process sees."""

import copy

import pytest
from tests.unit.builders import NAMESPACE, Object, condition_object, job_name, make_manifest, minutes_ago
from tests.unit.turns import World, pod_at

from lora_operator.cluster.cache import Store
from lora_operator.views.model import PodView
from lora_operator.views.wording import instant


def ended(name: str, version: str, ago: float) -> Object:
    """A pod that failed so many minutes ago."""
    failed = {"exitCode": 1, "reason": "Error", "message": "boom", "finishedAt": instant(minutes_ago(ago))}
    return pod_at(version, name=name, phase="Failed", state={"terminated": failed}, created_at=minutes_ago(ago + 10))


FIRST, SECOND = ended("first", "30", 30), ended("second", "50", 5)
THIRD = pod_at("60", name="third", node="", created_at=minutes_ago(5))


def make_world() -> World:
    """A run with two retries, of whose pods no process has heard yet."""
    states = [condition_object(kind, "Unknown", reason="Restarting") for kind in ("Complete", "PodsReady")]
    status = {"attempt": 1, "jobName": job_name(), "observedGeneration": 1, "conditions": states}
    return World(spec={"maxRetries": 2}, status=status)


def tell_job(world: World, version: str, failed: int) -> None:
    """The watch of Jobs brings how many failures the Job has counted."""
    counts = {"failed": failed, "active": 1, "startTime": instant(minutes_ago(55))}
    world.tell_job(version, spec={"backoffLimit": 2}, status=counts)


async def lead(world: World) -> None:
    """A leader sees the first pod fail and go, as with its node, and then the second one fail."""
    tell_job(world, "31", 1)
    world.cache.pods.put(FIRST)
    await world.turn()
    assert errors(world) == (1, "Unknown")
    world.cache.pods.remove(FIRST)
    await world.turn()
    tell_job(world, "55", 2)
    for pod in (SECOND, THIRD):
        world.cache.pods.put(pod)
    await world.turn()
    assert errors(world) == (2, "Unknown")


def errors(world: World) -> tuple[int, str]:
    """How many errors the stored status has counted, and whether the run has failed."""
    return world.server.finetune["status"]["retries"]["error"], world.condition("Failed")["status"]


def followed_by(store: Store[PodView]) -> None:
    """What the watch has brought a process that has not worked so far."""
    for pod in (FIRST, SECOND, THIRD):
        store.put(pod)


@pytest.mark.parametrize("how", ["stood by", "lags"])
async def test_a_process_that_takes_over_counts_no_end_again(how: str) -> None:
    """One that stood by kept the last state of the pod that went; to one whose watch lags, the pod is still there."""
    before, after = make_world(), make_world()
    await lead(before)
    followed_by(after.cache.pods)
    if how == "stood by":
        after.cache.pods.remove(FIRST)
    tell_job(after, "55", 2)
    after.server.finetune = copy.deepcopy(before.server.finetune)
    after.cache.finetunes.put(after.server.finetune)
    after.server.pods = [SECOND, THIRD]
    await after.turn()
    assert errors(after) == (2, "Unknown")


@pytest.mark.parametrize("field", [{"maxRetries": 3}, {"activeDeadlineSeconds": 90_000}])
async def test_a_counted_pod_that_a_live_read_brings_back_is_not_counted_again(field: Object) -> None:
    """To the watch it was deleted with its labels; what is patched is read first, and its Job still owns the pod."""
    world = make_world()
    await lead(world)
    stripped = copy.deepcopy(FIRST)
    stripped["metadata"]["resourceVersion"] = "70"
    world.server.pods = [stripped, SECOND, THIRD]
    manifest = make_manifest(spec={"maxRetries": 2, **field}, status=world.server.finetune["status"])
    manifest["metadata"] |= {"resourceVersion": "99", "generation": 2}
    world.server.finetune = manifest
    world.cache.finetunes.put(manifest)
    world.server.patched = world.tell_job("80", spec={"backoffLimit": 3}, status={"failed": 2, "active": 1})
    tell_job(world, "81", 2)
    await world.turn()
    assert [pod.name for pod in world.cache.pods] == ["second", "third", "first"]
    assert errors(world) == (2, "Unknown")


async def test_a_list_after_a_watch_that_was_cut_off_counts_nothing_again() -> None:
    """It shows pods in the versions that are known, and what it leaves out is kept as it was last."""
    world = make_world()
    await lead(world)
    for version, listed in (("90", [FIRST, SECOND, THIRD]), ("95", [THIRD])):
        for pod in listed:
            world.cache.pods.put(pod, as_of=version, listed=True)
        world.cache.pods.prune(version, {pod["metadata"]["uid"] for pod in listed}, NAMESPACE)
        await world.turn()
        assert errors(world) == (2, "Unknown")
