"""What a process that stands by keeps of pods that are gone: each end that no status counts, and not much more."""

from typing import TYPE_CHECKING, Any

import pytest
from tests.unit.builders import (
    NAME,
    NAMESPACE,
    UID,
    Object,
    condition_object,
    job_name,
    make_job_object,
    make_manifest,
    make_pod_object,
    make_summary,
)
from tests.unit.test_standby import Followed, follow, operator_with
from tests.unit.turns import KEY, World

from lora_operator.cluster.cache import Key
from lora_operator.cluster.tombstones import MOST, MOST_OF_ONE
from lora_operator.decision.retries import MOST_COUNTED
from lora_operator.running.operator import Operator
from lora_operator.running.watch import sources_of

if TYPE_CHECKING:
    from lora_operator.cluster.cache import Store
    from lora_operator.views.model import PodView

BOOM = {"exitCode": 1, "reason": "Error", "message": "boom", "finishedAt": "2026-03-01T11:55:00Z"}
GOING = {"attempt": 1, "jobName": job_name(), "observedGeneration": 1}


class Watches:
    """What the watches bring a process."""

    def __init__(self, operator: Operator) -> None:
        self.operator = operator
        self.version = 100
        runs, jobs, pods, *_ = sources_of(operator.cache, operator.kueue, operator.wake)
        self.runs, self.jobs, self.pods = runs, jobs, pods
        listed = Followed("/api/v1/pods")
        listed.listed.set()
        follow(operator, listed)

    def _next(self, document: Object) -> Object:
        self.version += 1
        document["metadata"]["resourceVersion"] = str(self.version)
        return document

    def tell_status(self, status: Object, **metadata: Any) -> None:
        """Another process has stored a status."""
        manifest = make_manifest(status=status)
        manifest["metadata"] |= metadata
        owner = self.runs.store.put(self._next(manifest))
        assert owner is not None
        self.runs.wake(owner)

    def lose_run(self) -> None:
        """The run is deleted."""
        owner = self.runs.store.remove(self._next(make_manifest()))
        assert owner is not None
        self.runs.wake(owner)

    def lose_pod(self, name: str, **changes: Any) -> str:
        """A pod has ended and goes; its uid."""
        pod = make_pod_object(name=name, **{"phase": "Failed", "state": {"terminated": BOOM}, **changes})
        for take in (self.pods.store.put, self.pods.store.remove):
            owner = take(self._next(pod))
            assert owner is not None
            self.pods.wake(owner)
        return str(pod["metadata"]["uid"])

    def lose_job(self) -> None:
        """The Job is deleted."""
        job = make_job_object()
        for take in (self.jobs.store.put, self.jobs.store.remove):
            owner = take(self._next(job))
            assert owner is not None
            self.jobs.wake(owner)


def counting(*uids: str) -> Object:
    """A status that has counted these pods."""
    return {**GOING, "retries": {"error": len(uids), "counted": list(uids)}}


def kept(operator: Operator) -> list[str]:
    """Pods of which the last state is kept for the run."""
    return sorted(pod.name for pod in operator.cache.pods.tombstones(KEY, UID))


def test_an_end_is_kept_until_a_status_counts_it() -> None:
    """Whichever of the two comes first."""
    watches = Watches(operator_with())
    watches.tell_status(GOING)
    first = watches.lose_pod("first")
    assert kept(watches.operator) == ["first"]
    watches.tell_status(counting(first))
    assert kept(watches.operator) == []
    watches.tell_status(counting(first, "uid-of-second"))
    watches.lose_pod("second")
    assert kept(watches.operator) == []


def test_an_end_that_is_counted_explains_another_that_is_not_yet() -> None:
    """Of pods that train together: the second one ended since the first did, and takes no retry of its own."""
    watches = Watches(operator_with())
    watches.tell_status(counting("uid-of-first"))
    watches.lose_pod("second", index=1)
    watches.lose_pod("first")
    assert kept(watches.operator) == ["first", "second"]
    watches.tell_status(counting("uid-of-first", "uid-of-second"))
    assert kept(watches.operator) == []


def test_a_success_that_no_verdict_rests_on_yet_is_kept() -> None:
    """Until there is one; then the last state of its Job goes, too."""
    watches = Watches(operator_with())
    watches.tell_status(GOING)
    message = make_summary().to_message()
    done = {"terminated": {**BOOM, "exitCode": 0, "message": message}}
    watches.lose_pod("done", phase="Succeeded", state=done)
    watches.lose_job()
    watches.tell_status(counting("uid-of-first"))
    assert kept(watches.operator) == ["done"]
    assert len(watches.operator.cache.jobs.tombstones(KEY, UID)) == 1
    watches.tell_status({**GOING, "conditions": [condition_object("Complete", reason="Succeeded")]})
    assert kept(watches.operator) == []
    assert watches.operator.cache.jobs.tombstones(KEY, UID) == ()


def test_of_a_run_that_is_gone_nothing_is_kept() -> None:
    """Neither what went before it nor what goes after it, as its pods do."""
    watches = Watches(operator_with())
    watches.tell_status(GOING)
    watches.lose_pod("first")
    watches.lose_job()
    watches.lose_run()
    assert kept(watches.operator) == []
    watches.lose_pod("second")
    watches.lose_job()
    assert kept(watches.operator) == []
    assert watches.operator.cache.jobs.tombstones(KEY, UID) == ()


def test_before_the_first_lists_are_complete_no_run_is_taken_for_gone() -> None:
    """A pod may go while runs are still being listed: the last leader may not have counted it."""
    watches = Watches(operator_with())
    follow(watches.operator, Followed("/apis/lora-operator.io/v1alpha1/lorafinetunes"))
    watches.lose_pod("first")
    assert kept(watches.operator) == ["first"]
    watches.tell_status(GOING)
    watches.operator.begin_work()
    assert kept(watches.operator) == ["first"]


def test_what_is_left_of_runs_that_are_gone_goes_when_the_work_begins() -> None:
    """No turn would look after them."""
    watches = Watches(operator_with())
    follow(watches.operator, Followed("/apis/lora-operator.io/v1alpha1/lorafinetunes"))
    watches.lose_pod("first")
    watches.lose_job()
    watches.operator.begin_work()
    assert kept(watches.operator) == []
    assert watches.operator.cache.jobs.tombstones(KEY, UID) == ()


def test_a_run_by_the_name_of_an_earlier_one_keeps_its_own() -> None:
    """The status that is known may still be the earlier one's."""
    watches = Watches(operator_with())
    watches.tell_status({**GOING, "conditions": [condition_object("Complete", reason="Succeeded")]}, uid="earlier")
    watches.lose_pod("first")
    assert kept(watches.operator) == ["first"]


async def test_a_new_leader_counts_the_ends_that_the_last_one_did_not_live_to_count() -> None:
    """And no other."""
    watches = Watches(operator_with())
    watches.tell_status(counting("uid-of-first"))
    watches.lose_pod("first")
    watches.lose_pod("second")
    watches.operator.begin_work()
    world = World(status=counting("uid-of-first"))
    world.cache.pods = watches.operator.cache.pods
    await world.turn()
    retries = world.server.finetune["status"]["retries"]
    assert (retries["error"], retries["counted"]) == (2, ["uid-of-first", "uid-of-second"])


def test_no_more_ends_of_a_run_are_kept_than_its_status_has_uids() -> None:
    """Else a new leader could not tell which of them are counted."""
    assert MOST_OF_ONE <= MOST_COUNTED < MOST


@pytest.mark.parametrize(("owners", "each", "most"), [(1, 3000, MOST_OF_ONE), (30, 300, MOST), (6000, 1, MOST)])
def test_however_many_pods_go_so_many_are_kept(owners: int, each: int, most: int) -> None:
    """Of one name, as of a run that is made anew each night, and of all together; the newest of each are kept."""
    store: Store[PodView] = operator_with().cache.pods
    pod = make_pod_object(phase="Failed", state={"terminated": BOOM})
    for number in range(each):
        for owner in range(owners):
            labels = {**pod["metadata"]["labels"], "lora-operator.io/name": f"{NAME}-{owner}"}
            place = {"name": f"{owner}-{number}", "uid": f"{owner}-{number}", "labels": labels}
            for version in "12":
                document = {**pod, "metadata": {**pod["metadata"], **place, "resourceVersion": version}}
                if version == "1":
                    store.put(document)
                else:
                    store.remove(document)
    left = {owner: store.tombstones(Key(NAMESPACE, f"{NAME}-{owner}"), UID) for owner in range(owners)}
    assert sum(map(len, left.values())) <= most
    assert left[owners - 1][-1].name == f"{owners - 1}-{each - 1}"
