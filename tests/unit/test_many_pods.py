"""Anyone who may create pods can label thousands as a run's: what a look costs grows with their number, and is bounded.

Costs are counted by how often a field of a pod is read or a time of one is compared, and do not depend on the machine.
"""

import dataclasses
from collections.abc import Callable, Iterable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from tests.unit.builders import (
    CONFIG,
    NAMESPACE,
    NOW,
    ended_pod,
    job_name,
    make_finetune,
    make_job,
    make_job_object,
    make_pod,
    make_pod_object,
    make_summary,
    running_pod,
)
from tests.unit.test_explain import explained
from tests.unit.test_retries import count_pods
from tests.unit.turns import World

from lora_operator.cluster import cache as cache_module
from lora_operator.cluster.cache import Cache, Key
from lora_operator.cluster.look import MOST_PODS, look
from lora_operator.decision.decide import decide
from lora_operator.decision.retries import MOST_COUNTED, Cause, Retries
from lora_operator.views import wording
from lora_operator.views.model import Answer, Observed, PodView
from lora_trainer.contract.reasons import Reason

MANY = 2000
GOING = (make_job(),)
PEER = make_summary(Reason.PEER_FAILED, "Node 0 failed").to_message()
reads = 0


class Moment(datetime):
    """A time whose comparisons are counted."""

    __slots__ = ()

    def __lt__(self, other: Any) -> bool:
        """As of any time."""
        global reads  # noqa: PLW0603 - as below
        reads += 1
        return super().__lt__(other)

    def __le__(self, other: Any) -> bool:
        """As of any time."""
        global reads  # noqa: PLW0603 - as below
        reads += 1
        return super().__le__(other)


class Counting(PodView):
    """A pod whose fields are counted as they are read."""

    __slots__ = ()

    def __getattribute__(self, name: str) -> Any:
        """The field."""
        global reads  # noqa: PLW0603 - the pods are frozen
        reads += 1
        return super().__getattribute__(name)


def counting(pods: Iterable[PodView]) -> tuple[PodView, ...]:
    """The same pods, each under a name and a uid of its own, the first one being the oldest."""
    fields = [field.name for field in dataclasses.fields(PodView)]
    found = []
    for number, pod in enumerate(pods):
        values = {name: getattr(pod, name) for name in fields}
        made_at = Moment.fromtimestamp(pod.created_at.timestamp(), UTC) + timedelta(milliseconds=number)
        found.append(Counting(**{**values, "name": f"pod-{number}", "uid": f"uid-{number}", "created_at": made_at}))
    return tuple(found)


def reads_of(act: Callable[[], object]) -> int:
    """How many fields of pods are read meanwhile."""
    before = reads
    act()
    return reads - before


FORGED = {
    "that ended, and of which no Job knows": lambda number: ended_pod(1, job_uid="", index=number % 3),
    "that wait, and of which no Job knows": lambda _: make_pod(job_uid="", node=""),
    "that say that another failed": lambda number: ended_pod(76, PEER, job_uid="", index=number % 3),
    "that say so to their Job, each at a place of its own": lambda number: ended_pod(76, PEER, index=number),
    "that say so to their Job, at two places": lambda number: ended_pod(76, PEER, index=number % 2),
    "that failed at two places": lambda number: ended_pod(1, index=number % 2),
    "that were deleted with their Job": lambda _: ended_pod(143, deleting=True),
    "of a Job that nobody made": lambda number: ended_pod(1, job_uid="forged"),
}


@pytest.mark.parametrize("forge", FORGED.values(), ids=FORGED)
def test_counting_many_pods_looks_at_each_a_few_times(forge: Callable[[int], PodView]) -> None:
    """Also where the list of those that are counted is full, and they come last."""
    counted = [ended_pod(1) for _ in range(MOST_COUNTED)]
    living = make_pod(node="", index=1)
    pods = counting([*(forge(number) for number in range(MANY)), *counted, living])
    before = Retries(counts={Cause.ERROR: MOST_COUNTED}, counted=tuple(pod.uid for pod in pods[MANY:-1]))
    assert reads_of(lambda: count_pods(before, GOING, pods)) <= 120 * len(pods)
    assert reads_of(lambda: count_pods(Retries(), GOING, pods)) <= 120 * len(pods)


def forged_object(number: int) -> dict[str, Any]:
    """A pod that somebody made with the labels of the run."""
    ended = {"exitCode": 76, "reason": "Error", "message": PEER, "finishedAt": "2026-03-01T11:59:00Z"}
    made_at = NOW - timedelta(minutes=5) + timedelta(seconds=number % 60)
    pod = make_pod_object(
        name=f"forged-{number}", index=number % 3, phase="Failed", state={"terminated": ended}, created_at=made_at
    )
    pod["metadata"]["ownerReferences"][0]["uid"] = "forged" if number % 2 else ""
    pod["metadata"]["resourceVersion"] = str(100 + number)
    return pod


def fill(cache: Cache, number: int) -> None:
    """The run's Job and pod, and after them so many forged ones."""
    cache.jobs.put(make_job_object(version="20"))
    own = make_pod_object(phase="Running", state={"running": {"startedAt": "2026-03-01T11:30:00Z"}})
    own["metadata"]["resourceVersion"] = "21"
    cache.pods.put(own)
    for one in range(number):
        cache.pods.put(forged_object(one))


class CountingKey(Key):
    """A place that counts how often it is compared with another one, which is not the very same object."""

    __slots__ = ()
    compared = 0

    def __eq__(self, other: object) -> bool:
        """As a tuple."""
        CountingKey.compared += 1
        return super().__eq__(other)

    def __ne__(self, other: object) -> bool:
        """As a tuple."""
        CountingKey.compared += 1
        return super().__ne__(other)

    def __hash__(self) -> int:
        """As a tuple."""
        return super().__hash__()


def test_a_list_that_shows_many_pods_gone_compares_each_a_few_times(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is taken in at once, and nothing else is done meanwhile."""
    monkeypatch.setattr(cache_module, "Key", CountingKey)
    cache = Cache()
    fill(cache, MANY)
    before = CountingKey.compared
    cache.pods.prune("9000", set(), NAMESPACE)
    assert CountingKey.compared - before <= 10 * MANY
    assert len(cache.pods) == 0


def seen_in(cache: Cache) -> Observed:
    return look(cache, make_finetune(), events=(), ask=lambda _: Answer())


def test_of_many_pods_those_of_the_runs_jobs_and_the_newest_are_looked_at() -> None:
    """However many somebody else has made since; and a decision reads each a bounded number of times."""
    cache = Cache()
    fill(cache, MANY)
    observed = seen_in(cache)
    assert (len(observed.pods), observed.pods_left_out) == (MOST_PODS, MANY + 1 - MOST_PODS)
    assert observed.pods[0].name == make_pod_object()["metadata"]["name"]
    assert {pod.job_uid for pod in observed.pods} == {"job-1", "forged"}
    pods = counting(observed.pods)
    finetune = make_finetune(status={"attempt": 1, "jobName": job_name()})
    seen = dataclasses.replace(observed, pods=pods)
    assert reads_of(lambda: decide(finetune, seen, CONFIG, NOW)) <= 200 * MOST_PODS


@pytest.mark.parametrize("nodes", [1, 2, 64])
@pytest.mark.parametrize("forge", FORGED.values(), ids=FORGED)
def test_a_decision_reads_each_of_the_most_pods_a_few_times(forge: Callable[[int], PodView], nodes: int) -> None:
    """Whatever they say, and though one lives for which the others may have to wait: it meets a few of each node."""
    pods = counting([*(forge(number) for number in range(MOST_PODS - 1)), make_pod(node="", index=nodes - 1)])
    spec = {"pendingTimeoutSeconds": 600, "resources": {"nodes": nodes}}
    finetune = make_finetune(spec=spec, status={"attempt": 1, "jobName": job_name()})
    seen = Observed(jobs=GOING, pods=pods)
    assert reads_of(lambda: decide(finetune, seen, CONFIG, NOW)) <= 200 * MOST_PODS


def test_what_each_of_many_pods_said_last_is_made_printable_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """It may be the end of a log, of some kilobytes; several parts of each decision ask for it."""
    texts: list[str] = []
    masked = wording.masked

    def counted(line: str) -> str:
        texts.append(line)
        return masked(line)

    monkeypatch.setattr(wording, "masked", counted)
    pods = counting([ended_pod(1, f"the end of log {number}") for number in range(MOST_PODS - 1)])
    finetune = make_finetune(status={"attempt": 1, "jobName": job_name()})
    for most in (3 * MOST_PODS, 10):
        texts.clear()
        decide(finetune, Observed(jobs=GOING, pods=(*pods, make_pod(node=""))), CONFIG, NOW)
        assert len(texts) <= most


def test_of_pods_whose_job_is_not_there_a_few_have_it_asked_for() -> None:
    """By a name that a Job of the run may have had: each is a request, again and again for as long as they live."""
    orphans = [
        dataclasses.replace(
            running_pod(job_uid=""), attempt=number, created_at=NOW - timedelta(seconds=MOST_PODS - number)
        )
        for number in range(MOST_PODS)
    ]
    plan = decide(make_finetune(status={"attempt": 20}), Observed(pods=counting(orphans)), CONFIG, NOW)
    assert plan.job_names == tuple(job_name(attempt) for attempt in (20, 21, 19, 18, 17, 16, 15, 14))
    assert decide(make_finetune(), Observed(pods=counting(orphans)), CONFIG, NOW).job_names == (job_name(),)


def test_as_many_as_are_looked_at_are_left_as_they_are() -> None:
    """No run has more but one of very many nodes, or a forged one."""
    cache = Cache()
    fill(cache, MOST_PODS - 1)
    assert (len(seen_in(cache).pods), seen_in(cache).pods_left_out) == (MOST_PODS, 0)


async def test_a_run_with_more_pods_is_seen_to_run() -> None:
    """Its own pod is among those that are looked at."""
    world = World(status={"attempt": 1, "jobName": job_name(), "conditions": []})
    fill(world.cache, MANY)
    await world.turn()
    assert world.condition("PodsReady")["status"] == "True"


def test_the_explanation_says_that_pods_are_left_out() -> None:
    """As many as there are more."""
    observed = Observed(jobs=GOING, pods=(running_pod(),), pods_left_out=7)
    assert any(note.startswith("7 more pods") for note in explained(make_finetune(), observed)["notes"])
    assert not any("more pods" in note for note in explained(make_finetune(), Observed(jobs=GOING))["notes"])


def test_pods_that_no_job_counts_are_no_ends_of_the_run() -> None:
    """Neither what somebody made with the run's labels, nor what a Job left behind that was deleted without its pods:
    that Job's deletion uses a retry."""
    assert count_pods(Retries(), GOING, (ended_pod(1, job_uid=""),)) == Retries()
    assert count_pods(Retries(), GOING, (ended_pod(1),)).of(Cause.ERROR) == 1
