"""How often pods of a run ended early, by cause, each once; and what that leaves of the retries."""

import dataclasses
from collections.abc import Iterable
from datetime import datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.unit.builders import (
    NOW,
    condition_object,
    ended_pod,
    finished_job,
    make_job,
    make_pod,
    make_summary,
    minutes_ago,
    running_pod,
)

from lora_operator.decision.retries import (
    MOST_COUNTED,
    Cause,
    Retries,
    cause_of,
    count_ends,
    retries_block,
    stored_retries,
)
from lora_operator.decision.rounds import PodEnd, Rounds
from lora_operator.views.budget import Used, backoff_limit, is_spent, seconds_left
from lora_operator.views.model import JobView, PodView
from lora_operator.views.pods import ignored_by_job
from lora_operator.views.request import Policy
from lora_operator.views.wording import instant
from lora_trainer.contract.exit_codes import FINAL
from lora_trainer.contract.reasons import Reason

PEER = make_summary(Reason.PEER_FAILED, "Node 0 failed").to_message()
SAVED = make_summary(Reason.EVICTED, "The run was asked to stop: its state after step 7 of 9 is saved").to_message()
GOING = (make_job(),)
SUSPENDED = (make_job(spec={"suspend": True}),)
RESUMED = (make_job(status={"startTime": "2026-03-01T11:30:00Z"}),)


def count_pods(before: Retries, jobs: Iterable[JobView], pods: Iterable[PodView], *, nodes: int = 64) -> Retries:
    """With the pods that failed since, of a run that has so many nodes and these Jobs."""
    return count_ends(before, Rounds(pods, jobs, nodes=nodes))


def disrupted(reason: str, code: int = 143, **changes: Any) -> PodView:
    """A pod that the cluster took away."""
    return ended_pod(code, conditions=(condition_object("DisruptionTarget", reason=reason),), **changes)


PREEMPTED = disrupted("PreemptionByScheduler")
CASES: dict[str, tuple[PodView, tuple[JobView, ...], Cause | None]] = {
    "a pod that runs": (running_pod(), GOING, None),
    "a pod that did its work": (ended_pod(0), GOING, None),
    "a preemption": (disrupted("PreemptionByScheduler"), GOING, Cause.PREEMPTED),
    "a drain": (disrupted("EvictionByEvictionAPI", deleting=True), GOING, Cause.PREEMPTED),
    "an unheard-of disruption": (disrupted("DeletionByRobot"), GOING, Cause.PREEMPTED),
    "a tainted node": (disrupted("DeletionByTaintManager"), GOING, Cause.NODE_LOST),
    "a node that is gone": (disrupted("DeletionByPodGC"), GOING, Cause.NODE_LOST),
    "a node short of disk": (disrupted("TerminationByKubelet", 137, evicted=("Evicted", "")), GOING, Cause.ERROR),
    "a node that does not say what for": (disrupted("TerminationByKubelet", 137), GOING, Cause.ERROR),
    "a node that shuts down": (disrupted("TerminationByKubelet", evicted=("Terminated", "")), GOING, Cause.NODE_LOST),
    "a critical pod": (disrupted("TerminationByKubelet", evicted=("Preempting", "")), GOING, Cause.PREEMPTED),
    "a limit of the pod's own for disk": (ended_pod(137, evicted=("Evicted", "")), GOING, Cause.ERROR),
    "a probe that it did not survive": (ended_pod(137), GOING, Cause.ERROR),
    "a container that its node lost": (ended_pod(137, reason="ContainerStatusUnknown"), GOING, Cause.NODE_LOST),
    "too little memory": (ended_pod(137, reason="OOMKilled"), GOING, Cause.OUT_OF_MEMORY),
    "a deleted pod": (ended_pod(143, deleting=True), GOING, Cause.PREEMPTED),
    "a deleted pod that did not stop in time": (ended_pod(137, deleting=True), GOING, Cause.PREEMPTED),
    "a pod deleted before it began": (make_pod(phase="Failed", deleting=True), GOING, Cause.PREEMPTED),
    "a liveness probe": (ended_pod(143), GOING, Cause.ERROR),
    "a transient error": (ended_pod(75), GOING, Cause.ERROR),
    "an error while it is deleted": (ended_pod(1, deleting=True), GOING, Cause.ERROR),
    "a GPU fault": (ended_pod(72), GOING, Cause.ERROR),
    "a failure before the container ran": (make_pod(phase="Failed", reason="OutOfcpu"), GOING, Cause.ERROR),
    "a suspension": (ended_pod(143, deleting=True), SUSPENDED, None),
    "a suspension that is over": (ended_pod(143, deleting=True), RESUMED, None),
    "an error before a suspension": (ended_pod(75), SUSPENDED, Cause.ERROR),
    "a deadline": (ended_pod(143, deleting=True), (finished_job("Failed", reason="DeadlineExceeded"),), None),
    "a Job that gives up": (
        ended_pod(143, deleting=True),
        (make_job(status={"conditions": [condition_object("FailureTarget")]}),),
        None,
    ),
    "a deleted Job": (ended_pod(143, deleting=True), (), None),
    "a Job that is being deleted": (ended_pod(143, deleting=True), (make_job(deleting=True),), None),
    "a pod of the preflight": (ended_pod(75, stage="preflight"), GOING, Cause.ERROR),
    **{f"exit code {int(code)}": (ended_pod(code), GOING, None) for code in FINAL},
}


def stored(retries: Retries) -> Retries:
    """As the next process reads it."""
    return stored_retries({"retries": retries_block(retries)})


@pytest.mark.parametrize(("pod", "jobs", "cause"), CASES.values(), ids=CASES)
def test_each_end_has_its_cause(pod: PodView, jobs: tuple[JobView, ...], cause: Cause | None) -> None:
    """And is counted under it, once."""
    assert cause_of(PodEnd(pod), Rounds((pod,), jobs, nodes=1)) is cause
    found = count_pods(Retries(), jobs, (pod,))
    assert {cause: number for cause, number in found.counts.items() if number} == ({cause: 1} if cause else {})
    assert found.counted == ((pod.uid,) if cause else ())
    assert count_pods(found, jobs, (pod,)) is found
    assert stored(found).counted == found.counted
    assert count_pods(stored(found), jobs, (pod,)) == stored(found)


ENDS = st.sampled_from(
    [
        ended_pod(75),
        ended_pod(137, reason="OOMKilled"),
        disrupted("PreemptionByScheduler"),
        ended_pod(65),
        running_pod(),
        ended_pod(0),
    ]
)


@given(st.lists(ENDS, max_size=9), st.data())
def test_the_count_does_not_depend_on_how_often_and_when_pods_are_seen(
    ends: list[PodView], data: st.DataObject
) -> None:
    """Pods come into sight one after the other, in any order and portions, and stay in sight."""
    pods = [make_named(pod, number) for number, pod in enumerate(ends)]
    at_once = count_pods(Retries(), GOING, pods)
    retries, seen = Retries(), list[PodView]()
    for pod in data.draw(st.permutations(pods)):
        seen.append(pod)
        if data.draw(st.booleans()):
            retries = stored(count_pods(retries, GOING, seen))
    retries = count_pods(retries, GOING, seen)
    assert [retries.of(cause) for cause in Cause] == [at_once.of(cause) for cause in Cause]
    assert set(retries.counted) == set(at_once.counted)


def make_named(pod: PodView, number: int) -> PodView:
    """The pod under a name and a uid of its own."""
    return dataclasses.replace(pod, name=f"pod-{number}", uid=f"uid-{number}")


@given(st.lists(ENDS, min_size=1, max_size=9), st.data())
def test_whatever_several_processes_see_no_end_is_counted_twice(ends: list[PodView], data: st.DataObject) -> None:
    """Each sees some pods of all: its watch lags, a live read brings one back, it kept the last state of one that went.

    The number is that of all pods that anybody has seen at a time when a status was written.
    """
    pods = [make_named(pod, number) for number, pod in enumerate(ends)]
    retries, seen = Retries(), set[str]()
    for _ in range(data.draw(st.integers(1, 6))):
        view = data.draw(st.lists(st.sampled_from(pods), unique_by=lambda pod: pod.uid))
        retries = stored(count_pods(retries, GOING, view))
        seen.update(pod.uid for pod in view)
    at_once = count_pods(Retries(), GOING, [pod for pod in pods if pod.uid in seen])
    assert [retries.of(cause) for cause in Cause] == [at_once.of(cause) for cause in Cause]
    assert sorted(retries.counted) == sorted(at_once.counted)


def test_uids_of_pods_that_are_gone_are_kept() -> None:
    """Another process may see them yet; and a pod alone that goes is no reason to write."""
    first, second = make_named(ended_pod(75), 1), make_named(ended_pod(75), 2)
    one = count_pods(Retries(), GOING, (first,))
    assert count_pods(one, GOING, ()) is one
    two = count_pods(one, GOING, (second,))
    assert (two.of(Cause.ERROR), two.counted) == (2, ("uid-1", "uid-2"))
    assert count_pods(two, GOING, (first,)) is two


def aged(number: int, of: int, end: PodView = PREEMPTED) -> PodView:
    """The pod with this number of so many, which were made and ended one after the other."""
    made_at = NOW - timedelta(minutes=2 * (of - number))
    trainer = dataclasses.replace(end.trainer, started_at=made_at, finished_at=made_at + timedelta(minutes=1))
    return dataclasses.replace(make_named(end, number), created_at=made_at, trainer=trainer)


MANY = MOST_COUNTED + 40


def test_a_run_whose_pods_end_for_weeks_is_counted_beyond_the_length_of_the_list() -> None:
    """Each as it ends, before the next is made; one of the first stays, with a node that is lost. The list is bounded,
    and neither what stays nor a process that has kept the last hundreds counts one again."""
    pods = [aged(number, MANY) for number in range(MANY)]
    retries = Retries()
    for pod in pods[1:]:
        retries = stored(count_pods(retries, GOING, (pods[0], pod)))
        assert len(retries.counted) <= MOST_COUNTED
    assert retries.of(Cause.PREEMPTED) == MANY
    assert retries.counted == ("uid-0", *(f"uid-{number}" for number in range(MANY - MOST_COUNTED + 1, MANY)))
    for view in ((pods[0],), pods, pods[40:], pods[: MANY - 30]):
        assert count_pods(retries, GOING, view) is retries
    new = dataclasses.replace(aged(MANY, MANY), uid="new")
    assert count_pods(retries, GOING, (*pods, new)).of(Cause.PREEMPTED) == MANY + 1


def test_more_pods_than_the_list_holds_are_each_counted_once_though_all_stay() -> None:
    """As with 64 nodes in five rounds, whose failed pods their Job keeps."""
    pods = [aged(number, MANY, ended_pod(75)) for number in range(MANY)]
    found = count_pods(Retries(), GOING, pods)
    assert (found.of(Cause.ERROR), len(found.counted)) == (MANY, MOST_COUNTED)
    assert count_pods(found, GOING, pods) is found
    one_by_one = Retries()
    for number in range(MANY):
        one_by_one = count_pods(one_by_one, GOING, pods[: number + 1])
    assert one_by_one == found


def test_the_newest_that_were_counted_are_kept_also_where_they_are_out_of_sight() -> None:
    """Somebody takes their labels off, and more pods end meanwhile; a live read brings them back."""
    pods = [aged(number, MANY, ended_pod(75)) for number in range(MANY)]
    retries = Retries()
    for number in range(MOST_COUNTED):
        retries = count_pods(retries, GOING, pods[: number + 1])
    end = MOST_COUNTED + 6
    retries = count_pods(retries, GOING, [*pods[: MOST_COUNTED - 6], *pods[MOST_COUNTED:end]])
    assert retries.of(Cause.ERROR) == end
    assert count_pods(retries, GOING, pods[:end]) is retries


@pytest.mark.parametrize("end", [ended_pod(0, make_summary().to_message()), ended_pod(65)], ids=["success", "final"])
def test_pods_that_their_job_stops_with_its_end_are_no_preemption_before_it_says_so(end: PodView) -> None:
    """The Job controller deletes the pods of the other nodes first; a busy one writes the Job's status much later."""
    stopped = ended_pod(143, deleting=True, index=1)
    assert count_pods(Retries(), GOING, (end, stopped)).counts == {}
    assert count_pods(Retries(), GOING, (ended_pod(0), stopped)).counts == {Cause.PREEMPTED: 1}


def test_of_several_nodes_the_pod_that_failed_counts_and_those_that_followed_do_not() -> None:
    """In whichever order their ends are seen."""
    cause, follower = ended_pod(72, index=1), ended_pod(75, PEER, index=0)
    for seen in ((cause, follower), (follower, cause)):
        assert count_pods(Retries(), GOING, seen).counts == {Cause.ERROR: 1}
        replaced = count_pods(Retries(), GOING, (*seen, running_pod(index=1, name="again")))
        assert set(replaced.counted) == {cause.uid, follower.uid}
    early = count_pods(Retries(), GOING, (follower, running_pod(index=1)))
    assert early == Retries()
    later = count_pods(early, GOING, (follower, cause))
    assert (later.counts, set(later.counted)) == ({Cause.ERROR: 1}, {cause.uid, follower.uid})


def test_a_pod_of_a_node_that_the_run_does_not_have_is_no_peer() -> None:
    """Somebody made it: nothing waits for how it ends."""
    follower, forged = ended_pod(76, PEER), running_pod(index=7)
    assert count_pods(Retries(), GOING, (follower, forged), nodes=8).counts == {}
    for nodes in (1, 2, 7):
        assert count_pods(Retries(), GOING, (follower, forged), nodes=nodes).counts == {Cause.ERROR: 1}


def test_of_several_nodes_that_only_blame_each_other_one_counts() -> None:
    """Somebody failed, after all."""
    pods = tuple(ended_pod(75, PEER, index=index) for index in range(3))
    assert count_pods(Retries(), GOING, pods).counts == {Cause.ERROR: 1}


@pytest.mark.parametrize(
    "follower",
    [
        ended_pod(75, PEER, index=0),
        ended_pod(76, PEER, index=0),
        ended_pod(76, index=0),
        ended_pod(143, SAVED, index=0),
    ],
    ids=["a transient end", "a peer's", "without a word", "told to stop"],
)
def test_a_preempted_node_takes_no_retry_from_the_others(follower: PodView) -> None:
    """Its peers end with it: where it saves before it goes, as pods that were told to stop."""
    preempted = disrupted("PreemptionByScheduler", index=1)
    for seen in ((preempted, follower), (follower, preempted)):
        found = count_pods(Retries(), GOING, seen)
        assert (found.counts, found.used(0)) == ({Cause.PREEMPTED: 1}, 0)
        assert set(found.counted) == {preempted.uid, follower.uid}
    early = count_pods(Retries(), GOING, (follower, running_pod(index=1)))
    assert early == Retries()
    assert count_pods(early, GOING, (follower, preempted)).counts == {Cause.PREEMPTED: 1}


@pytest.mark.parametrize("code", [75, 76, 143])
def test_nodes_that_were_all_told_to_stop_by_nobody_known_take_one_retry_together(code: int) -> None:
    """As with a liveness probe: the node that it ended tells the others, and its pod looks like theirs."""
    told = tuple(ended_pod(code, SAVED if code == 143 else PEER, index=index) for index in range(3))
    assert count_pods(Retries(), GOING, told).counts == {Cause.ERROR: 1}
    mixed = (ended_pod(75, PEER, index=0), *told[1:])
    assert count_pods(Retries(), GOING, mixed).counts == {Cause.ERROR: 1}


@pytest.mark.parametrize("started_s", [None, 97])
def test_a_round_without_a_cause_counts_though_a_node_has_its_next_pod_already(started_s: int | None) -> None:
    """That the other one, which was slower to end, did not wait for: it had met the pod before."""

    def ago(seconds: float) -> datetime:
        return NOW - timedelta(seconds=seconds)

    def ran(index: int, ended_s: float) -> PodView:
        pod = ended_pod(76, PEER, index=index, created_at=ago(600), ended_at=ago(ended_s))
        began = dataclasses.replace(pod.trainer, started_at=ago(600))
        return dataclasses.replace(pod, name=f"first-{index}", uid=f"first-{index}", trainer=began)

    following = make_pod(index=1, created_at=ago(105))
    if started_s is not None:
        running = running_pod(index=1, created_at=ago(105))
        following = dataclasses.replace(
            running, trainer=dataclasses.replace(running.trainer, started_at=ago(started_s))
        )
    found = count_pods(Retries(), (make_job(),), (ran(0, 100), ran(1, 115), following))
    assert found.counts == {Cause.ERROR: 1}
    assert set(found.counted) == {"first-0", "first-1"}


@pytest.mark.parametrize(("code", "message"), [(75, PEER), (76, PEER), (143, SAVED)])
def test_a_node_that_did_its_part_is_not_to_blame_for_the_end_of_the_first(code: int, message: str) -> None:
    """Else nothing would bound a run whose first node never gets to its end. Once that has published, nobody failed."""
    pods = (ended_pod(code, message, index=0), ended_pod(0, index=1))
    assert count_pods(Retries(), GOING, pods).counts == {Cause.ERROR: 1}
    published = (ended_pod(0, make_summary().to_message(), index=0), ended_pod(75, PEER, index=1))
    assert count_pods(Retries(), GOING, published).counts == {}


@pytest.mark.parametrize("code", [75, 76])
def test_nodes_that_waited_in_vain_for_one_that_had_not_started_take_no_retry(code: int) -> None:
    """Whether it still waits for a GPU, is gone again or runs by now: `pendingTimeoutSeconds` limits that."""
    waited = [make_named(ended_pod(code, PEER, index=0), number) for number in range(3)]
    pending, late = make_pod(index=1), running_pod(index=1, state={"running": {"startedAt": instant(minutes_ago(5))}})
    for there in (pending, late):
        found = count_pods(Retries(), GOING, (*waited, there))
        assert (found.counts, len(found.counted)) == ({}, 3)
        assert count_pods(found, GOING, waited) is found
    others = (ended_pod(code, PEER, index=1), make_pod(index=2))
    assert count_pods(Retries(), GOING, (waited[0], *others)).counts == {}


@pytest.mark.parametrize(
    ("pod", "ignored"),
    [
        (ended_pod(143), True),
        (ended_pod(76, PEER), True),
        (ended_pod(75, PEER), False),
        (ended_pod(75), False),
        (ended_pod(1), False),
        (disrupted("PreemptionByScheduler", 1), True),
    ],
)
def test_what_its_job_does_not_count(pod: PodView, ignored: bool) -> None:
    """By exit code and disruption, as its pod failure policy has it. Trainers of earlier releases have no 76."""
    assert ignored_by_job(pod) is ignored


def test_nodes_that_fail_each_by_themselves_take_one_retry_together() -> None:
    """All of them lost the network: one new round follows, whether they are seen at once or one after the other."""
    pods = tuple(ended_pod(75, index=index) for index in range(4))
    found = count_pods(Retries(), GOING, pods)
    assert (found.counts, len(found.counted)) == ({Cause.ERROR: 1}, 4)
    first = count_pods(Retries(), GOING, (pods[3], *(running_pod(index=index) for index in range(3))))
    assert count_pods(first, GOING, pods).counts == {Cause.ERROR: 1}


@pytest.mark.parametrize(
    ("counts", "deleted", "used"),
    [
        ({}, 0, 0),
        ({Cause.ERROR: 2, Cause.OUT_OF_MEMORY: 1}, 0, 3),
        ({Cause.PREEMPTED: 9, Cause.NODE_LOST: 9}, 0, 0),
        ({Cause.ERROR: 1}, 2, 3),
    ],
)
def test_errors_memory_and_deleted_jobs_use_up_retries(counts: dict[Cause, int], deleted: int, used: int) -> None:
    """Preemptions and lost nodes do not."""
    assert Retries(counts=counts).used(deleted) == used


@pytest.mark.parametrize(
    ("block", "counts"),
    [
        (None, {}),
        ("many", {}),
        ({"error": "3"}, {}),
        ({"error": True, "preempted": -1}, {}),
        ({"error": 3, "counted": [1, "a"]}, {Cause.ERROR: 3}),
    ],
)
def test_an_odd_block_reads_as_far_as_it_makes_sense(block: Any, counts: dict[Cause, int]) -> None:
    """Foreign writers are no reason to fail."""
    found = stored_retries({"retries": block})
    assert {cause: number for cause, number in found.counts.items() if number} == counts
    assert found.counted == (("a",) if counts else ())


def test_a_job_gets_what_is_left_of_retries_and_time() -> None:
    """Never less than a second, which Kubernetes asks for, and never fewer than no retries."""
    policy, used = Policy(max_retries=3, active_deadline_s=600), Used(retries=2, run_s=450)
    assert (backoff_limit(policy, used, 1), backoff_limit(policy, used, 4)) == (1, 4)
    assert (seconds_left(policy, used), is_spent(policy, used)) == (150, False)
    over = Used(retries=5, run_s=700)
    assert (backoff_limit(policy, over, 1), seconds_left(policy, over), is_spent(policy, over)) == (0, 1, True)
    assert (seconds_left(Policy(), over), is_spent(Policy(), over)) == (None, False)
