"""What a Job counts, and what its pods keep of that: the same on the real Job controller and on the model's."""

import uuid
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from tests.component.patience import eventually
from tests.component.played_job import Book, PlayedJob
from tests.component.stage import make_stage
from tests.model.controllers import NODE, Controllers
from tests.model.operators import BEGINNING
from tests.model.server import Server
from tests.model.world import NAMESPACE, ModelClient

from localcluster.client import Client
from lora_operator.model.names import PREFLIGHT, TRAIN
from lora_trainer.spec.exit_codes import FINAL, ExitCode

JUST_NOW = timedelta()
PEER = int(ExitCode.PEER_FAILED)
ALONE, TWO = ((0, 0),), ((0, 0), (0, 0))


@dataclass(frozen=True, slots=True, kw_only=True)
class Scenario:
    """What happens to a Job of so many nodes, and what it says meanwhile."""

    play: Callable[[PlayedJob], None]
    nodes: int = 1
    stage: str = TRAIN
    suspended: bool = False
    spec: Mapping[str, Any] = field(default_factory=dict)


SCENARIOS: dict[str, Scenario] = {}


def scenario(**options: Any) -> Callable[[Callable[[PlayedJob], None]], Callable[[PlayedJob], None]]:
    """Put a play into the table, under its name."""

    def add(play: Callable[[PlayedJob], None]) -> Callable[[PlayedJob], None]:
        SCENARIOS[play.__name__] = Scenario(play=play, **options)
        return play

    return add


# -- one pod


def _by_exit_code(code: int) -> Scenario:
    """The trainer ends with it; its message says nothing."""

    def play(job: PlayedJob) -> None:
        job.end(job.run(), code)
        if code in FINAL:
            verdict = {"FailureTarget": "PodFailurePolicy", "Failed": "PodFailurePolicy"}
            job.comes_to(Book(failed=1, counts=ALONE, conditions=verdict))
        else:
            job.comes_to(Book(used=job.counts(code), failed=job.counts(code), counts=ALONE, living=(0,)))

    return Scenario(play=play)


SCENARIOS |= {f"exit_code_{code}": _by_exit_code(code) for code in sorted({*map(int, ExitCode), 2, 139} - {0})}


@scenario()
def success(job: PlayedJob) -> None:
    job.end(job.run(), 0)
    reasons = {"SuccessCriteriaMet": "CompletionsReached", "Complete": "CompletionsReached"}
    job.comes_to(Book(done="0", counts=ALONE, conditions=reasons))


@scenario(stage=PREFLIGHT)
def preflight(job: PlayedJob) -> None:
    """Not Indexed."""
    job.end(job.run(), 75)
    job.comes_to(Book(used=1, failed=1, counts=ALONE, living=(0,)))
    job.end(job.run(), 0)
    reasons = {"SuccessCriteriaMet": "CompletionsReached", "Complete": "CompletionsReached"}
    job.comes_to(Book(used=1, failed=1, counts=ALONE, conditions=reasons))


@scenario(spec={"maxRetries": 1})
def last_retry(job: PlayedJob) -> None:
    job.end(job.run(), 1)
    job.comes_to(Book(used=1, failed=1, counts=ALONE, living=(0,)))
    job.end(job.run(), 1)
    verdict = {"FailureTarget": "BackoffLimitExceeded", "Failed": "BackoffLimitExceeded"}
    job.comes_to(Book(used=2, failed=2, counts=ALONE, conditions=verdict))


@scenario()
def backoff(job: PlayedJob) -> None:
    """10 s after the first failure, 20 s after the second."""
    for failed, pause_s in ((1, 10), (2, 20)):
        pod = job.run()
        job.end(pod, 1, ago=JUST_NOW)
        job.comes_to(Book(used=failed, failed=failed, counts=ALONE, living=(0,)))
        job.came_after(pod, pause_s)


@scenario()
def drained(job: PlayedJob) -> None:
    pod = job.run()
    job.evict(pod)
    job.comes_to(Book(counts=ALONE))
    job.finish(pod)
    job.comes_to(Book(counts=ALONE, living=(0,)))


@scenario()
def short_of_disk(job: PlayedJob) -> None:
    """The kubelet fails the pod and leaves the object."""
    pod = job.run()
    job.disrupt(pod, "TerminationByKubelet")
    job.end(pod, 137, reason="Evicted")
    job.comes_to(Book(used=1, counts=ALONE, living=(0,)))


@scenario()
def lost_node(job: PlayedJob) -> None:
    pod = job.run()
    job.disrupt(pod, "DeletionByTaintManager")
    job.ask_to_stop(pod)
    job.comes_to(Book(counts=ALONE))
    job.finish(pod, None)
    job.comes_to(Book(counts=ALONE, living=(0,)))


@scenario()
def deleted_by_hand(job: PlayedJob) -> None:
    pod = job.run()
    job.ask_to_stop(pod)
    job.comes_to(Book(counts=ALONE))
    job.finish(pod, 143)
    job.comes_to(Book(used=job.counts(143), failed=job.counts(143), counts=ALONE, living=(0,)))


@scenario()
def deleted_by_hand_and_killed(job: PlayedJob) -> None:
    pod = job.run()
    job.ask_to_stop(pod)
    job.finish(pod, 137)
    job.comes_to(Book(used=1, failed=1, counts=ALONE, living=(0,)))


@scenario()
def deleted_before_it_began(job: PlayedJob) -> None:
    """Nobody knows how it would have ended: it has failed."""
    pod = job.run()
    job.ask_to_stop(pod)
    job.finish(pod, None)
    job.comes_to(Book(used=1, failed=1, counts=ALONE, living=(0,)))


@scenario()
def vanished(job: PlayedJob) -> None:
    job.vanish(job.run())
    job.comes_to(Book(counts=ALONE, living=(0,)))


@scenario()
def held_and_let_go(job: PlayedJob) -> None:
    """The failure before it stays in the book; the pod that is stopped is not counted, however it ends."""
    job.end(job.run(), 1)
    job.comes_to(Book(used=1, failed=1, counts=ALONE, living=(0,)))
    job.run()
    job.suspend(wish=True)
    job.comes_to(Book(used=1, failed=1, counts=ALONE, conditions={"Suspended": "JobSuspended"}))
    job.finish(job.stopping(), 1)
    job.suspend(wish=False)
    job.comes_to(Book(used=1, failed=1, counts=ALONE, living=(0,)))


@scenario(suspended=True)
def queued(job: PlayedJob) -> None:
    """Kueue admits it, stops it, and admits it again."""
    job.comes_to(Book(conditions={"Suspended": "JobSuspended"}))
    job.suspend(wish=False)
    pod = job.run()
    job.stop_as_kueue()
    job.finish(job.stopping(), 143)
    job.comes_to(Book(conditions={"Suspended": "JobSuspended"}))
    job.suspend(wish=False)
    job.comes_to(Book(counts=ALONE, living=(0,)))
    assert job.pod()["metadata"]["uid"] != pod["metadata"]["uid"]


@scenario(spec={"activeDeadlineSeconds": 20})
def late(job: PlayedJob) -> None:
    """The pod that lives then counts as failed."""
    pod = job.run()
    job.comes_to(Book(failed=1, counts=ALONE, conditions={"FailureTarget": "DeadlineExceeded"}))
    job.finish(pod, 143)
    job.comes_to(Book(failed=1, conditions={"FailureTarget": "DeadlineExceeded", "Failed": "DeadlineExceeded"}))


@scenario(spec={"activeDeadlineSeconds": 20})
def held_until_it_is_late(job: PlayedJob) -> None:
    """It goes by the time of its first start, and fails before it begins again."""
    pod = job.run()
    job.suspend(wish=True)
    job.finish(job.stopping(), 143)
    until = job.now() + timedelta(seconds=21)
    job.wait(lambda: job.now() > until, "it is late")
    job.suspend(wish=False)
    verdict = {"FailureTarget": "DeadlineExceeded", "Failed": "DeadlineExceeded"}
    job.comes_to(Book(conditions={"Suspended": "JobSuspended", **verdict}))
    assert pod["metadata"]["uid"] not in {left["metadata"]["uid"] for left in job.pods()}


@scenario()
def deleted_with_its_pod(job: PlayedJob) -> None:
    """It makes no other, and counts no pod that lived when it was deleted."""
    job.end(job.run(), 1)
    pod = job.run()
    job.delete()
    job.end(job.stopping(), 1)
    job.comes_to(Book(used=1, failed=1, counts=ALONE))
    job.remove(pod)
    job.comes_to(Book())


# -- pods that train together


@scenario(nodes=2)
def one_fails_and_the_other_follows(job: PlayedJob) -> None:
    """Each failed pod is counted once another has its index, which knows of it."""
    first, second = job.run(0), job.run(1)
    job.end(second, 1, ago=JUST_NOW)
    job.end(first, PEER, ago=JUST_NOW)
    job.comes_to(Book(used=1, counts=TWO))
    job.comes_to(Book(used=1, failed=1, counts=((0, 1), (1, 0)), living=(0, 1)))


@scenario(nodes=2)
def the_same_fails_again(job: PlayedJob) -> None:
    for number in (1, 2):
        first, second = job.run(0), job.run(1)
        job.end(second, 1)
        job.end(first, PEER)
        job.comes_to(Book(used=number, failed=number, counts=((0, number), (number, 0)), living=(0, 1)))


@scenario(nodes=2)
def now_one_fails_now_the_other(job: PlayedJob) -> None:
    first, second = job.run(0), job.run(1)
    job.end(second, 1)
    job.end(first, PEER)
    job.comes_to(Book(used=1, failed=1, counts=((0, 1), (1, 0)), living=(0, 1)))
    first, second = job.run(0), job.run(1)
    job.end(second, PEER)
    job.end(first, 1)
    job.comes_to(Book(used=1, failed=2, counts=((1, 1), (1, 1)), living=(0, 1)))


@scenario(nodes=2)
def all_fail_at_once(job: PlayedJob) -> None:
    """As without a network: none knows a culprit."""
    for number in (1, 2):
        for pod in [job.run(index) for index in (0, 1)]:
            job.end(pod, 75)
        job.comes_to(Book(used=number, failed=2 * number, counts=((number, 0), (number, 0)), living=(0, 1)))


@scenario(nodes=2, spec={"maxRetries": 1})
def all_fail_too_often(job: PlayedJob) -> None:
    """The backoff limit is one for each node."""
    for pod in [job.run(index) for index in (0, 1)]:
        job.end(pod, 75)
    job.comes_to(Book(used=1, failed=2, counts=((1, 0), (1, 0)), living=(0, 1)))
    first, second = job.run(0), job.run(1)
    job.end(first, 75)
    verdict = {"FailureTarget": "BackoffLimitExceeded"}
    job.comes_to(Book(used=2, failed=4, counts=((1, 0), (1, 0)), conditions=verdict))
    job.finish(second, PEER)
    verdict |= {"Failed": "BackoffLimitExceeded"}
    job.comes_to(Book(used=2, failed=4, counts=((1, 0), (0, 0)), conditions=verdict))


@scenario(nodes=2)
def backoff_of_each_index(job: PlayedJob) -> None:
    """By how often the index failed, ignored failures included."""
    first, second = job.run(0), job.run(1)
    job.end(second, PEER)
    job.end(first, PEER)
    job.comes_to(Book(counts=((0, 1), (0, 1)), living=(0, 1)))
    first, second = job.run(0), job.run(1)
    job.end(second, 1)
    job.end(first, PEER, ago=JUST_NOW)
    job.comes_to(Book(used=1, failed=1, counts=((0, 2), (1, 1)), living=(0, 1)))
    job.came_after(first, 20)


@scenario(nodes=2)
def a_final_code(job: PlayedJob) -> None:
    """The peer that lives counts as failed, too."""
    first, second = job.run(0), job.run(1)
    job.end(second, 65)
    job.comes_to(Book(failed=2, counts=TWO, conditions={"FailureTarget": "PodFailurePolicy"}))
    job.finish(first, PEER)
    verdict = {"FailureTarget": "PodFailurePolicy", "Failed": "PodFailurePolicy"}
    job.comes_to(Book(failed=2, counts=ALONE, conditions=verdict))


@scenario(nodes=2)
def the_first_succeeds(job: PlayedJob) -> None:
    """The other one is stopped, and does not count."""
    first, second = job.run(0), job.run(1)
    job.end(first, 0)
    job.comes_to(Book(done="0", counts=TWO, conditions={"SuccessCriteriaMet": "SuccessPolicy"}))
    job.finish(second, 143)
    reasons = {"SuccessCriteriaMet": "SuccessPolicy", "Complete": "SuccessPolicy"}
    job.comes_to(Book(done="0", counts=ALONE, conditions=reasons))


@scenario(nodes=2)
def the_second_is_done_first(job: PlayedJob) -> None:
    first, second = job.run(0), job.run(1)
    job.end(second, 0)
    job.comes_to(Book(done="1", counts=TWO, living=(0,)))
    job.end(first, 1, ago=JUST_NOW)
    job.comes_to(Book(used=1, failed=1, done="1", counts=((1, 0), (0, 0)), living=(0,)))
    # It waits for one that comes no more, again and again.
    job.end(job.run(0), PEER)
    job.comes_to(Book(used=2, failed=1, done="1", counts=((1, 1), (0, 0)), living=(0,)))


@scenario(nodes=2)
def one_is_drained(job: PlayedJob) -> None:
    first, second = job.run(0), job.run(1)
    job.evict(second)
    job.finish(second)
    job.end(first, PEER)
    job.comes_to(Book(counts=((0, 1), (0, 1)), living=(0, 1)))


@scenario(nodes=2)
def one_is_deleted_by_hand(job: PlayedJob) -> None:
    first, second = job.run(0), job.run(1)
    job.ask_to_stop(second)
    job.finish(second, 137)
    job.end(first, PEER)
    job.comes_to(Book(used=1, failed=1, counts=((0, 1), (1, 0)), living=(0, 1)))


@scenario(nodes=2)
def one_is_lost_without_a_word(job: PlayedJob) -> None:
    """The other knows no culprit. What vanished is in no book."""
    first, second = job.run(0), job.run(1)
    job.vanish(second)
    job.end(first, 75)
    job.comes_to(Book(used=1, failed=1, counts=((1, 0), (0, 0)), living=(0, 1)))


@scenario(nodes=2)
def failed_pods_are_deleted(job: PlayedJob) -> None:
    """Their finalizer keeps them until their number is handed on."""
    first, second = job.run(0), job.run(1)
    job.end(second, 1, ago=JUST_NOW)
    job.end(first, PEER, ago=JUST_NOW)
    for pod in (first, second):
        job.remove(pod)
    job.comes_to(Book(used=1, failed=1, counts=((0, 1), (1, 0)), living=(0, 1)))


@scenario(nodes=2)
def held_while_it_trains(job: PlayedJob) -> None:
    """The pods that are stopped take their counts with them; what was counted stays."""
    for number in (1, 2):
        first, second = job.run(0), job.run(1)
        job.end(second, 1)
        job.end(first, PEER)
        job.comes_to(Book(used=number, failed=number, counts=((0, number), (number, 0)), living=(0, 1)))
    for index in (0, 1):
        job.run(index)
    job.suspend(wish=True)
    for pod in [job.stopping(index) for index in (0, 1)]:
        job.finish(pod, 143)
    job.wait(lambda: job.book().conditions == {"Suspended": "JobSuspended"}, "it is held")
    job.suspend(wish=False)
    job.comes_to(Book(used=2, failed=2, counts=TWO, living=(0, 1)))


@scenario(nodes=2)
def held_in_its_backoff(job: PlayedJob) -> None:
    """Pods that had failed keep their counts."""
    first, second = job.run(0), job.run(1)
    job.end(second, 1, ago=JUST_NOW)
    job.end(first, PEER, ago=JUST_NOW)
    job.suspend(wish=True)
    job.comes_to(Book(used=1, counts=TWO, conditions={"Suspended": "JobSuspended"}))
    job.suspend(wish=False)
    job.comes_to(Book(used=1, failed=1, counts=((0, 1), (1, 0)), living=(0, 1)))


@scenario(nodes=2, spec={"activeDeadlineSeconds": 20})
def late_together(job: PlayedJob) -> None:
    pods = [job.run(index) for index in (0, 1)]
    job.comes_to(Book(failed=2, counts=TWO, conditions={"FailureTarget": "DeadlineExceeded"}))
    for pod in pods:
        job.finish(pod, 143)
    job.comes_to(Book(failed=2, conditions={"FailureTarget": "DeadlineExceeded", "Failed": "DeadlineExceeded"}))


# -- where it is played


def on_the_model(name: str) -> None:
    """In memory: whoever waits has the controllers look, and then lets a second pass."""
    seconds = 0

    def now() -> datetime:
        return BEGINNING + timedelta(seconds=seconds)

    def wait(look: Callable[[], bool], what: str) -> None:
        nonlocal seconds
        for _ in range(60):
            controllers.catch_up()
            if look():
                return
            seconds += 1
        raise AssertionError(what)

    server = Server(now)
    controllers = Controllers(server, now)
    place: dict[str, Any] = {"client": ModelClient(server), "namespace": NAMESPACE, "node": NODE, "late_s": 1}
    _play(name, PlayedJob(**place, now=now, wait=wait, **_of(name)))


def _of(name: str) -> dict[str, Any]:
    return {"name": name.replace("_", "-")[:40], "nodes": SCENARIOS[name].nodes}


def _play(name: str, job: PlayedJob) -> None:
    played = SCENARIOS[name]
    job.make(played.stage, played.spec, played.suspended)
    played.play(job)


@dataclass(frozen=True, slots=True)
class Real:
    """All scenarios at once, since most of their time is waiting: what became of each."""

    outcomes: Mapping[str, "Future[None]"]

    def __call__(self, name: str) -> None:
        """Raises what the scenario did."""
        self.outcomes[name].result()


def _patiently(look: Callable[[], bool], what: str) -> None:
    eventually(look, what)


@pytest.fixture(scope="module")
def real(
    control_plane: Client, tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest
) -> Iterator[Real]:
    """The real Job controller, which has played those scenarios that are asked for."""
    namespace = f"test-{uuid.uuid4().hex[:10]}"
    control_plane.kubectl("create", "namespace", namespace)
    selected = {item.name for item in request.session.items}
    wanted = [name for name in SCENARIOS if f"test_the_job_controllers_book[{name}-real]" in selected]
    try:
        with make_stage(control_plane, namespace, tmp_path_factory.mktemp("jobs")) as stage:

            def play(name: str) -> None:
                place: dict[str, Any] = {"client": stage.api, "namespace": namespace, "node": stage.node, "late_s": 300}
                _play(name, PlayedJob(**place, now=lambda: datetime.now(UTC), wait=_patiently, **_of(name)))

            with ThreadPoolExecutor(8) as pool:
                yield Real({name: pool.submit(play, name) for name in wanted})
    finally:
        control_plane.kubectl("delete", "namespace", namespace, "--wait=false")


@pytest.mark.parametrize("where", ["model", "real"])
@pytest.mark.parametrize("name", SCENARIOS)
def test_the_job_controllers_book(where: str, name: str, request: pytest.FixtureRequest) -> None:
    """Each scenario asserts its steps by itself."""
    if where == "model":
        on_the_model(name)
    else:
        request.getfixturevalue("real")(name)
