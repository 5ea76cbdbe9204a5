"""When and of whom Kubernetes Events are read: a list of them is dear, and a queue may be long."""

import asyncio
import itertools
from collections.abc import Callable, Mapping
from typing import Any

import pytest
from tests.unit.builders import ended_pod, make_job, make_pod, running_pod

from lora_operator.cluster import child_events
from lora_operator.cluster.api import Api, ApiError
from lora_operator.cluster.child_events import ChildEvents
from lora_operator.cluster.store import Key
from lora_operator.running.work_queue import WorkQueue
from lora_operator.views.model import PodView

KEY = Key("team", "tone")


class EventsApi(Api):
    """One Event about each object that is asked for, or about each Job of a namespace; every question is noted."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.jobs = ["job-1"]
        self.down = False
        self.hangs = False
        self.pages = 1

    async def read(self, path: str, query: Mapping[str, str]) -> tuple[dict[str, Any], int]:
        return await self.request("GET", path, query=query), 1

    async def request(
        self,
        method: str,
        path: str,
        *,
        query: Mapping[str, str] | None = None,
        body: Mapping[str, Any] | None = None,
        content_type: str = "application/json",
    ) -> dict[str, Any]:
        if self.down:
            raise ApiError(500, "InternalError", "down")
        if self.hangs:
            await asyncio.Event().wait()
        await asyncio.sleep(0)
        selector = (query or {})["fieldSelector"]
        self.asked.append(selector.removeprefix("involvedObject."))
        uids = self.jobs if selector.startswith("involvedObject.kind=Job,") else [selector.partition("=")[2]]
        said = f"no {len(self.asked)}"
        self.pages -= 1
        metadata = {"continue": "more"} if self.pages > 0 else {}
        return {
            "metadata": metadata,
            "items": [{"involvedObject": {"uid": uid}, "reason": "FailedCreate", "message": said} for uid in uids],
        }


JOBS_LIST = "kind=Job,reason=FailedCreate"


class Clock:
    """A clock that moves when it is told to."""

    now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
def clock() -> Clock:
    """At 0 s."""
    return Clock()


@pytest.fixture
def api() -> EventsApi:
    """Answers."""
    return EventsApi()


@pytest.fixture
def events(api: EventsApi, clock: Clock) -> ChildEvents:
    """Reads every 10 s at the soonest."""
    return ChildEvents(api, interval_s=10, clock=clock)


async def test_nothing_is_read_for_a_resource_that_did_not_ask(
    events: ChildEvents, api: EventsApi, clock: Clock
) -> None:
    """Nor after it has asked and been forgotten."""
    assert await events.latest(KEY) == ()
    events.watch(KEY, [make_job()], [])
    events.forget(KEY)
    clock.now_s = 20.0
    assert await events.latest(KEY) == ()
    assert api.asked == []


@pytest.mark.parametrize(
    ("pods", "asked"),
    [
        ((), [JOBS_LIST]),
        ((ended_pod(137),), [JOBS_LIST]),
        ((make_pod(name="a"),), ["uid=uid-of-a"]),
        ((make_pod(name="a", node=""),), []),
        ((make_pod(name="a", node=""), running_pod(index=1)), []),
        ((running_pod(index=0), running_pod(index=2)), [JOBS_LIST]),
        *(
            (tuple(make_pod(name="a") if i == sick else running_pod(index=i) for i in range(4)), ["uid=uid-of-a"])
            for sick in range(4)
        ),
    ],
    ids=[
        *("no pod", "an ended pod", "a pod on a node", "a pod without a node", "one of two without a node"),
        *("pods that run", "node 0", "node 1", "node 2", "node 3"),
    ],
)
async def test_only_who_cannot_be_explained_otherwise_is_asked_about(
    events: ChildEvents, api: EventsApi, clock: Clock, pods: tuple[PodView, ...], asked: list[str]
) -> None:
    """The Job where none of its pods waits, the pod where a node has it, nobody where the scheduler has said why.

    And nobody at once: most of what has just been made comes up by itself.
    """
    events.watch(KEY, [make_job()], pods)
    assert await events.latest(KEY) == ()
    assert not events.has_read(KEY)
    clock.now_s = 9.0
    found = await events.latest(KEY)
    assert api.asked == asked
    assert len(found) == len(asked)
    assert all(event.about_uid in ("job-1", "uid-of-a") for event in found)


async def test_a_thousand_jobs_without_a_pod_share_one_list(
    events: ChildEvents, api: EventsApi, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A quota holds them all up; each is told what was said of its own Job, and a list serves half an interval."""
    for patience in ("PATIENCE_S", "IN_LINE_S"):  # a busy machine takes seconds for the thousand
        monkeypatch.setattr(child_events, patience, 60.0)
    api.jobs = [f"job-{number}" for number in range(1000)]
    keys = [Key("team", f"run-{number}") for number in range(1000)]
    for number, key in enumerate(keys):
        events.watch(key, [make_job(uid=f"job-{number}")], [])
    clock.now_s = 9.0
    found = await asyncio.gather(*map(events.latest, keys))
    assert api.asked == [JOBS_LIST]
    assert [[event.about_uid for event in stated] for stated in found] == [[f"job-{number}"] for number in range(1000)]
    late = Key("team", "late")
    for moment, lists in ((13.9, 1), (14.0, 2)):
        events.watch(late, [make_job(uid="job-1")], [])
        clock.now_s = moment
        events.read_anew(late)
        await events.latest(late)
        assert len(api.asked) == lists
    clock.now_s = 30.0
    await asyncio.gather(*map(events.latest, [Key("other", "run"), keys[0]]))
    assert len(api.asked) == 3


async def test_a_namespace_full_of_events_costs_a_bounded_list(
    events: ChildEvents, api: EventsApi, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Anybody who may create Events may create a hundred thousand."""
    monkeypatch.setattr(child_events, "MOST_REFUSALS", 6)
    api.jobs, api.pages = ["job-7", "job-8"], 500
    events.watch(KEY, [make_job(uid="job-7")], [])
    clock.now_s = 9.0
    assert [event.message for event in await events.latest(KEY)] == ["no 3"]
    assert len(api.asked) == 3


async def test_what_the_jobs_of_a_namespace_were_answered_goes_with_the_last_run_that_waits_there(
    events: ChildEvents, api: EventsApi, clock: Clock
) -> None:
    """Namespaces come and go for years; as long as one run waits, the list is kept for it."""
    keys = [Key("team", name) for name in "abc"]
    for key in keys:
        events.watch(key, [make_job()], [])
    clock.now_s = 9.0
    await events.latest(keys[0])
    events.forget(keys[0])
    await events.latest(keys[1])
    assert len(api.asked) == 1
    events.forget(keys[1])
    events.forget(keys[2])
    events.watch(keys[0], [make_job()], [])
    events.read_anew(keys[0])
    await events.latest(keys[0])
    assert len(api.asked) == 2


async def test_a_look_that_must_know_reads_at_once(events: ChildEvents, api: EventsApi) -> None:
    """After a restart the stored reason may have been told by Events alone."""
    events.watch(KEY, [make_job()], [make_pod(name="a")])
    events.read_anew(KEY)
    assert [event.about_uid for event in await events.latest(KEY)] == ["uid-of-a"]
    assert events.has_read(KEY)
    assert api.asked == ["uid=uid-of-a"]


def test_a_pod_that_waits_for_a_node_is_looked_at_again_only_when_a_watch_tells_of_it(events: ChildEvents) -> None:
    """A thousand of them cost nothing; a Job without a pod is looked at after a while."""
    assert events.watch(KEY, [make_job()], [make_pod(name="a", node="")]) is None
    assert events.watch(KEY, [make_job()], []) == pytest.approx(9)


async def test_events_are_read_again_after_the_interval_and_the_less_often_the_longer(
    events: ChildEvents, api: EventsApi, clock: Clock
) -> None:
    """Every 10 s at first, at least every 50 s always."""
    events.watch(KEY, [make_job()], [])
    reads = []
    for second in range(600):
        clock.now_s = float(second)
        before = len(api.asked)
        await events.latest(KEY)
        if len(api.asked) > before:
            reads.append(second)
    gaps = [later - earlier for earlier, later in itertools.pairwise(reads)]
    assert gaps[0] == 9
    assert gaps == sorted(gaps)
    assert gaps[-1] == 50


async def test_other_children_do_not_wait_for_the_turn_of_those_before(
    events: ChildEvents, api: EventsApi, clock: Clock
) -> None:
    """The run has waited long for its Job's pod, and is asked about seldom; the pod that came is new."""
    events.watch(KEY, [make_job()], [])
    for moment in (9.0, 400.0):
        clock.now_s = moment
        await events.latest(KEY)
    assert events.watch(KEY, [make_job()], [make_pod(name="a")]) == pytest.approx(9)
    assert not events.has_read(KEY)
    clock.now_s = 409.0
    await events.latest(KEY)
    assert api.asked == [JOBS_LIST, JOBS_LIST, "uid=uid-of-a"]


async def test_what_was_read_stays_while_the_api_does_not_answer(
    events: ChildEvents, api: EventsApi, clock: Clock
) -> None:
    """They explain; a failure to read them stops nothing."""
    events.watch(KEY, [make_job()], [])
    clock.now_s = 9.0
    first = await events.latest(KEY)
    assert first
    api.down = True
    clock.now_s = 20.0
    assert await events.latest(KEY) == first


async def test_an_api_that_never_answers_holds_nobody_up(
    events: ChildEvents, api: EventsApi, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was read before stays, and the turn goes on."""
    monkeypatch.setattr("lora_operator.cluster.child_events.PATIENCE_S", 0.01)
    events.watch(KEY, [make_job()], [])
    clock.now_s = 9.0
    first = await events.latest(KEY)
    assert first
    api.hangs = True
    clock.now_s = 20.0
    assert await asyncio.wait_for(events.latest(KEY), 300) == first


class LargeEvents(Api):
    """Events without end, as large as etcd takes them; counts what is asked for and what is under way at once."""

    def __init__(self, *, reason: str = "FailedMount", length: int = 1_400_000) -> None:
        self.text = "x" * length
        self.reason = reason
        self.under_way: dict[str, int] = {}
        self.most_at_once = self.most_of_namespace = self.total = 0

    async def request(self, method: str, path: str, **others: Any) -> dict[str, Any]:
        """A list that is no chunk."""
        return (await self.read(path, others["query"]))[0]

    async def read(self, path: str, query: Mapping[str, str]) -> tuple[dict[str, Any], int]:
        """So many of them, and more to come."""
        count = int(query["limit"])
        size = count * len(self.text)
        self.total += size
        self.under_way[path] = self.under_way.get(path, 0) + size
        self.most_of_namespace = max(self.most_of_namespace, self.under_way[path])
        self.most_at_once = max(self.most_at_once, sum(self.under_way.values()))
        await asyncio.sleep(0.001)
        self.under_way[path] -= size
        items = [self._event(str(self.total + number)) for number in range(count)]
        return {"metadata": {"resourceVersion": "7", "continue": "more"}, "items": items}, size

    def _event(self, uid: str) -> dict[str, Any]:
        about = {"uid": uid, "kind": "Job"}
        text = self.text
        return {"involvedObject": about, "type": text, "reason": self.reason, "message": text, "metadata": {"uid": uid}}


MIB = 2**20


async def test_events_as_large_as_etcd_takes_them_cost_a_bounded_read(
    monkeypatch: pytest.MonkeyPatch, clock: Clock
) -> None:
    """Whoever may create Events of one pod would end the operator for everybody."""
    for patience in ("PATIENCE_S", "IN_LINE_S"):
        monkeypatch.setattr(child_events, patience, 60.0)
    api = LargeEvents()
    events = ChildEvents(api, interval_s=10, clock=clock)
    keys = [Key(f"team-{number % 8}", f"run-{number}") for number in range(16)]
    for key in keys:
        events.watch(key, [make_job()], [make_pod(name="a"), make_pod(name="b")])
    clock.now_s = 9.0
    found = await asyncio.gather(*map(events.latest, keys))
    assert all(found)
    assert api.most_of_namespace <= 8 * MIB
    assert api.most_at_once <= 32 * MIB
    assert api.total <= 16 * 2 * 8 * MIB


@pytest.mark.parametrize(("length", "most"), [(1000, 50), (50_000, 30)])
async def test_of_the_events_of_an_object_a_bounded_part_is_read(length: int, most: int) -> None:
    """Fifty, or as many as come to a mebibyte."""
    found = await child_events.read_events(LargeEvents(length=length), "team", ["a"])
    assert 5 <= len(found) <= most


async def test_what_is_kept_of_a_namespaces_refusals_is_bounded_in_bytes(clock: Clock) -> None:
    """By what is read, by what an Event may say, and by one Event for each Job."""
    api = LargeEvents(reason="FailedCreate", length=8192)
    events = ChildEvents(api, interval_s=10, clock=clock)
    events.watch(KEY, [make_job()], [])
    clock.now_s = 9.0
    await events.latest(KEY)
    kept = [event for found in events._refusals["team"].by_job.values() for event in found]
    assert sum(len(event.message) + len(event.type) + len(event.about_uid) for event in kept) <= 4 * MIB
    assert api.total <= 9 * MIB


async def test_of_what_a_job_was_answered_the_latest_is_kept(clock: Clock) -> None:
    """The rest explains nothing any more."""

    class Twice(EventsApi):
        async def request(self, *args: Any, **others: Any) -> dict[str, Any]:
            answer = await super().request(*args, **others)
            (item,) = answer["items"]
            times = (f"2026-03-01T12:0{minute}:00Z" for minute in (1, 3, 2))
            return {**answer, "items": [{**item, "message": time, "lastTimestamp": time} for time in times]}

    events = ChildEvents(Twice(), interval_s=10, clock=clock)
    events.watch(KEY, [make_job(uid="job-1")], [])
    clock.now_s = 9.0
    assert [event.message for event in await events.latest(KEY)] == ["2026-03-01T12:03:00Z"]


class SlowEvents(EventsApi):
    """Answers each list once it may; of a namespace nothing else is ever asked for at the same time."""

    def __init__(self) -> None:
        super().__init__()
        self.may_answer = asyncio.Semaphore(0)
        self.under_way = 0

    async def request(self, *args: Any, **others: Any) -> dict[str, Any]:
        self.under_way += 1
        assert self.under_way == 1
        try:
            await self.may_answer.acquire()
            return await super().request(*args, **others)
        finally:
            self.under_way -= 1


class Line:
    """Runs of one namespace that wait for a read of a slow API server, and who was woken."""

    def __init__(self, clock: Clock, count: int, *, with_pods: bool = True) -> None:
        self.api = SlowEvents()
        self.woken: list[Key] = []
        self.events = ChildEvents(self.api, interval_s=10, clock=clock, wake=self.woken.append)
        self.keys = [Key("team", f"run-{number}") for number in range(count)]
        for key in self.keys:
            self.events.watch(key, [make_job(uid="job-1")], [make_pod(name=key.name)] if with_pods else [])
        clock.now_s = 9.0


@pytest.mark.parametrize("with_pods", [True, False], ids=["pods", "Jobs"])
async def test_a_namespaces_line_holds_one_worker_at_most(
    clock: Clock, monkeypatch: pytest.MonkeyPatch, with_pods: bool
) -> None:
    """Its API is slow, or its Events are many; the turns of everybody else go on."""
    monkeypatch.setattr(child_events, "PATIENCE_S", 600.0)
    monkeypatch.setattr(child_events, "IN_LINE_S", 0.01)
    line = Line(clock, 40, with_pods=with_pods)
    turns = [asyncio.create_task(line.events.latest(key)) for key in line.keys]
    done = [await turn for turn in turns[1:]]
    assert done == [()] * 39
    assert not turns[0].done(), "its read has begun"
    assert not any(line.events.has_read(key) for key in line.keys)
    assert [key for key in line.keys if line.events.is_in_line(key)] == line.keys
    line.api.may_answer.release()
    assert await turns[0]


async def test_turns_of_other_namespaces_are_served_beside_a_long_line(
    clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Sixteen workers, three hundred runs that wait for a read that does not end, and a hundred turns of others."""
    monkeypatch.setattr(child_events, "PATIENCE_S", 600.0)
    monkeypatch.setattr(child_events, "IN_LINE_S", 0.001)
    line = Line(clock, 300)
    others = [Key("other", f"run-{number}") for number in range(100)]
    queue: WorkQueue[Key] = WorkQueue(base_s=1, max_s=60, random=lambda: 1.0, group=lambda key: key.namespace)
    served = list[Key]()

    async def work() -> None:
        while True:
            key = await queue.take()
            await line.events.latest(key)
            served.append(key)
            queue.done(key)

    for key in (*line.keys, *others):
        queue.add(key)
    workers = [asyncio.create_task(work()) for _ in range(16)]
    await _until(lambda: len(served) >= 399)
    for worker in workers:
        worker.cancel()
    assert {key for key in served if key.namespace == "other"} == set(others)
    assert line.api.asked == []


async def test_each_run_of_a_line_is_read_in_its_turn_and_woken(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody asks for a place again, and nobody who comes later goes first."""
    monkeypatch.setattr(child_events, "IN_LINE_S", 0.001)
    line = Line(clock, 30)
    turns = [asyncio.create_task(line.events.latest(key)) for key in line.keys]
    await asyncio.gather(*turns[1:])
    for key in line.keys:
        line.api.may_answer.release()
        assert await line.events.latest(key) == () or key == line.keys[0]
    await _until(lambda: not any(map(line.events.is_in_line, line.keys)))
    await asyncio.sleep(0)
    assert line.api.asked == [f"uid=uid-of-{key.name}" for key in line.keys]
    assert line.woken == line.keys[1:]
    assert all(map(line.events.has_read, line.keys))
    assert [len(await line.events.latest(key)) for key in line.keys] == [1] * 30
    assert len(line.api.asked) == 30


async def test_who_waits_no_more_leaves_the_line(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    """Or waits for something else; neither is read about or woken."""
    monkeypatch.setattr(child_events, "IN_LINE_S", 0.001)
    line = Line(clock, 4)
    turns = [asyncio.create_task(line.events.latest(key)) for key in line.keys]
    await asyncio.gather(*turns[1:])
    line.events.forget(line.keys[1])
    line.events.watch(line.keys[2], [make_job()], [make_pod(name="another")])
    for _ in line.keys:
        line.api.may_answer.release()
    await _until(lambda: not any(map(line.events.is_in_line, line.keys)))
    await asyncio.sleep(0)
    assert line.api.asked == ["uid=uid-of-run-0", "uid=uid-of-run-3"]
    assert line.woken == [line.keys[3]]
    assert not line.events.has_read(line.keys[2])


async def _until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(120):
        while not condition():  # noqa: ASYNC110 - of several things one may change
            await asyncio.sleep(0.001)
