"""When and for whom Kubernetes Events are read: a list of them is dear, and a queue may be long."""

import asyncio
from collections.abc import Mapping
from typing import Any

import pytest
from tests.unit.builders import ended_pod, make_job, make_pod, running_pod
from tests.unit.loop_clock import LoopClock, settle

from lora_operator.cluster import child_events
from lora_operator.cluster.api import LARGEST_CHUNK, Api, ApiError, _ChunkTooLargeError
from lora_operator.cluster.child_events import MOST_REASONS, ChildEvents, read_events
from lora_operator.cluster.store import Key
from lora_operator.model.objects import PodView

KEY = Key("team", "tone")
MIB = 2**20
Object = dict[str, Any]


def event(about: str, message: str = "no", *, reason: str = "FailedCreate", at: int = 0) -> Object:
    time = f"2026-03-01T12:00:{at:02}Z"
    return {"involvedObject": {"uid": about}, "reason": reason, "message": message, "lastTimestamp": time}


class EventsApi(Api):
    """Lists Events, and notes of which namespace; `pages` is how often it says that there are more."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.events = [event("job-1"), event("uid-of-a")]
        self.down = False
        self.pages = 0
        self.may_answer = asyncio.Event()
        self.may_answer.set()

    async def read(self, path: str, query: Mapping[str, str]) -> tuple[Object, int]:
        self.asked.append(path.split("/")[4])
        assert query["fieldSelector"] == "type=Warning"
        await self.may_answer.wait()
        if self.down:
            raise ApiError(500, "InternalError", "down")
        self.pages -= 1
        return {"metadata": {"continue": "more"} if self.pages > 0 else {}, "items": self.events}, 1


class World:
    """Reads every 10 s at the soonest, and notes who is woken."""

    def __init__(self, api: Api) -> None:
        self.clock = LoopClock()
        self.woken: list[Key] = []
        self.events = ChildEvents(api, interval_s=10, wake=self.woken.append)

    def told(self, key: Key = KEY) -> list[str]:
        """What is known."""
        return [event.message for event in self.events.latest(key)]


@pytest.fixture
def api() -> EventsApi:
    """Answers."""
    return EventsApi()


@pytest.fixture
async def world(api: EventsApi) -> World:
    """At 0 s."""
    return World(api)


async def test_nothing_is_read_for_a_resource_that_does_not_wait(world: World, api: EventsApi) -> None:
    """Nor after it has waited and been forgotten."""
    assert world.events.latest(KEY) == ()
    world.events.watch(KEY, [make_job()], [])
    world.events.forget(KEY)
    await world.clock.turn(60)
    assert (api.asked, world.woken) == ([], [])


@pytest.mark.parametrize(
    ("pods", "about"),
    [
        ((), "job-1"),
        ((ended_pod(137),), "job-1"),
        ((make_pod(name="a"),), "uid-of-a"),
        ((make_pod(name="a", node=""),), ""),
        ((make_pod(name="a", node=""), running_pod(index=1)), ""),
        ((running_pod(index=0), running_pod(index=2)), "job-1"),
        *(
            (tuple(make_pod(name="a") if i == sick else running_pod(index=i) for i in range(4)), "uid-of-a")
            for sick in range(4)
        ),
    ],
    ids=[
        *("no pod", "an ended pod", "a pod on a node", "a pod without a node", "one of two without a node"),
        *("pods that run", "node 0", "node 1", "node 2", "node 3"),
    ],
)
async def test_only_who_cannot_be_explained_otherwise_is_read_about(
    world: World, api: EventsApi, pods: tuple[PodView, ...], about: str
) -> None:
    """The Job where none of its pods waits, the pod where a node has it, nobody where the scheduler has said why.

    And nobody at once: most of what has just been made comes up by itself.
    """
    assert world.events.watch(KEY, [make_job()], pods) == bool(about)
    await world.clock.turn(9.9)
    assert (api.asked, world.events.has_read(KEY)) == ([], False)
    await world.clock.turn(0.2)
    assert len(api.asked) == bool(about)
    assert world.events.has_read(KEY) == bool(about)
    assert [found.about_uid for found in world.events.latest(KEY)] == ([about] if about else [])
    assert world.woken == ([KEY] if about else [])


async def test_all_that_wait_in_a_namespace_share_one_list_and_who_has_news_is_woken(
    world: World, api: EventsApi
) -> None:
    """A quota holds up a thousand Jobs: each hears what was said of its own, and then only where that changes."""
    keys = [Key("team", f"run-{number}") for number in range(1000)]
    for number, key in enumerate(keys):
        world.events.watch(key, [make_job(uid=f"job-{number}")], [])
    api.events = [event(f"job-{number}", f"no {number}") for number in range(1000)]
    await world.clock.turn(10)
    assert api.asked == ["team"]
    assert [world.told(key) for key in keys] == [[f"no {number}"] for number in range(1000)]
    assert sorted(world.woken) == sorted(keys)
    world.woken.clear()
    api.events[7] = event("job-7", "still no")
    await world.clock.turn(10)
    assert (api.asked, world.woken, world.told(keys[7])) == (["team"] * 2, [keys[7]], ["still no"])


async def test_there_is_a_list_every_ten_seconds_at_most(world: World, api: EventsApi) -> None:
    """However many begin to wait, and whenever; each is read about within the time of one more."""
    lists = []
    for second in range(100):
        world.events.watch(Key("team", f"run-{second}"), [make_job(uid=f"job-{second}")], [])
        before = len(api.asked)
        await world.clock.turn(1)
        lists += [second + 1] * (len(api.asked) - before)
        read = [number for number in range(second + 1) if world.events.has_read(Key("team", f"run-{number}"))]
        assert len(read) > second - 20
    assert lists == list(range(10, 101, 10))


async def test_namespaces_are_read_each_for_itself(world: World, api: EventsApi) -> None:
    """One where nobody waits is not read at all, and one that hangs holds up no other."""
    api.may_answer.clear()
    world.events.watch(KEY, [make_job()], [])
    await world.clock.turn(10)
    api.may_answer = asyncio.Event()
    api.may_answer.set()
    world.events.watch(Key("other", "run"), [make_job()], [])
    await world.clock.turn(9)
    await world.clock.turn(2)
    assert api.asked[:2] == ["team", "other"]
    assert world.told(Key("other", "run")) == ["no"]


async def test_other_children_are_read_about_anew(world: World, api: EventsApi) -> None:
    """What was said of the Job explains nothing of the pod that has come; the same ones are no news."""
    world.events.watch(KEY, [make_job()], [])
    await world.clock.turn(10)
    assert world.events.watch(KEY, [make_job()], [])
    assert world.events.has_read(KEY)
    api.may_answer.clear()
    await world.clock.turn(10)
    world.events.watch(KEY, [make_job()], [make_pod(name="a")])
    api.may_answer.set()
    await settle()
    assert (world.told(), world.events.has_read(KEY)) == ([], False)
    await world.clock.turn(10)
    assert [found.about_uid for found in world.events.latest(KEY)] == ["uid-of-a"]


async def test_what_is_known_goes_with_the_last_one_that_waits(world: World, api: EventsApi) -> None:
    """Namespaces come and go for years; as long as one waits there it is read about."""
    keys = [Key("team", name) for name in "ab"]
    for key in keys:
        world.events.watch(key, [make_job()], [])
    await world.clock.turn(10)
    world.events.forget(keys[0])
    assert (world.told(keys[0]), world.told(keys[1])) == ([], ["no"])
    await world.clock.turn(10)
    world.events.forget(keys[1])
    await world.clock.turn(60)
    assert len(api.asked) == 2
    assert not world.events._namespaces
    assert asyncio.all_tasks() == {asyncio.current_task()}


async def test_what_was_read_stays_while_the_api_does_not_answer(world: World, api: EventsApi) -> None:
    """They explain; a failure to read them stops nothing, and is tried again."""
    world.events.watch(KEY, [make_job()], [])
    await world.clock.turn(10)
    api.down = True
    await world.clock.turn(10)
    assert world.told() == ["no"]
    api.down, api.events = False, [event("job-1", "yes")]
    await world.clock.turn(10)
    assert world.told() == ["yes"]


async def test_whoever_waits_for_the_first_list_is_woken_though_there_is_none(world: World, api: EventsApi) -> None:
    """Without the right to read Events, a run says what it knows otherwise."""
    api.down = True
    world.events.watch(KEY, [make_job()], [])
    for _ in range(3):
        await world.clock.turn(10)
    assert (world.events.has_read(KEY), world.woken) == (True, [KEY])


async def test_a_list_that_is_never_answered_is_given_up(world: World, api: EventsApi) -> None:
    """And asked for again."""
    api.may_answer.clear()
    world.events.watch(KEY, [make_job()], [])
    await world.clock.turn(10)
    await world.clock.turn(child_events.PATIENCE_S)
    assert world.woken == [KEY]
    api.may_answer.set()
    await world.clock.turn(10)
    assert world.told() == ["no"]


async def test_who_stops_reads_no_more(world: World, api: EventsApi) -> None:
    """Another process has the Lease by now."""
    world.events.watch(KEY, [make_job()], [])
    await world.events.close()
    await world.clock.turn(60)
    assert api.asked == []


async def test_a_namespace_full_of_events_costs_a_bounded_list(api: EventsApi, monkeypatch: pytest.MonkeyPatch) -> None:
    """Anybody who may create Events may create a hundred thousand."""
    monkeypatch.setattr(child_events, "MOST_EVENTS", 6)
    api.pages = 500
    found = await read_events(api, "team", ["job-1"])
    assert [event.message for event in found["job-1"]] == ["no"]
    assert len(api.asked) == 3


async def test_the_latest_event_of_each_reason_is_kept(api: EventsApi) -> None:
    """What was said before explains nothing any more. Of nobody else's object is anything kept."""
    api.events = [
        *(event("a", f"{at}", reason=reason, at=at) for at in (1, 3, 2) for reason in ("FailedMount", "Failed")),
        event("other"),
    ]
    found = await read_events(api, "team", ["a", "b"])
    assert [(event.reason, event.message) for event in found["a"]] == [("FailedMount", "3"), ("Failed", "3")]
    assert (set(found), found["b"]) == ({"a", "b"}, ())


async def test_of_made_up_reasons_some_are_kept(api: EventsApi) -> None:
    """Each Event of a flood may have one of its own."""
    api.events = [event("a", reason=f"Reason{number}") for number in range(4000)]
    assert len((await read_events(api, "team", ["a"]))["a"]) == MOST_REASONS


class LargeEvents(Api):
    """Events without end, as large as etcd takes them; counts what is asked for and what is under way at once."""

    def __init__(self, length: int) -> None:
        self.text = "x" * length
        self.under_way = self.most_at_once = self.total = 0

    async def read(self, path: str, query: Mapping[str, str]) -> tuple[Object, int]:
        """So many of them, and more to come."""
        count = int(query["limit"])
        size = count * len(self.text)
        if size > LARGEST_CHUNK and count > 1:
            raise _ChunkTooLargeError
        self.total += size
        self.under_way += size
        self.most_at_once = max(self.most_at_once, self.under_way)
        await asyncio.sleep(0)
        self.under_way -= size
        items = [
            {**event("job-1", self.text, reason=f"{number}{self.text}"), "type": self.text} for number in range(count)
        ]
        return {"metadata": {"continue": "more"}, "items": items}, size


@pytest.mark.parametrize("length", [8192, 1_400_000])
async def test_events_as_large_as_etcd_takes_them_cost_a_bounded_read(length: int) -> None:
    """Whoever may create Events would end the operator for everybody: neither what is read nor what is kept is much."""
    api = LargeEvents(length)
    world = World(api)
    keys = [Key(f"team-{number}", "run") for number in range(16)]
    for key in keys:
        world.events.watch(key, [make_job()], [])
    await world.clock.turn(10)
    for _ in range(10_000):
        await asyncio.sleep(0)
    assert set(world.woken) == set(keys)
    kept = [found for key in keys for found in world.events.latest(key)]
    assert sum(len(found.message) + len(found.type) + len(found.reason) for found in kept) <= 16 * MIB / 8
    assert api.most_at_once <= 4 * 8 * MIB
    assert api.total <= 16 * 2 * 8 * MIB
    await world.events.close()
