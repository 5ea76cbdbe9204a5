"""When and of whom Kubernetes Events are read: a list of them is dear, and a queue may be long."""

import asyncio
import itertools
from collections.abc import Mapping
from typing import Any, cast

import pytest
from tests.unit.builders import ended_pod, make_job, make_pod

from lora_operator.cluster.api import Api, ApiError
from lora_operator.cluster.cache import Key
from lora_operator.cluster.child_events import ChildEvents
from lora_operator.views.model import PodView

KEY = Key("team", "tone")


class EventsApi:
    """One Event about whoever is asked for; every question is noted."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.down = False
        self.hangs = False

    async def request(self, method: str, path: str, *, query: Mapping[str, str]) -> dict[str, Any]:
        if self.down:
            raise ApiError(500, "InternalError", "down")
        if self.hangs:
            await asyncio.Event().wait()
        uid = query["fieldSelector"].removeprefix("involvedObject.uid=")
        self.asked.append(uid)
        return {
            "items": [{"involvedObject": {"uid": uid}, "reason": "FailedMount", "message": f"no {len(self.asked)}"}]
        }


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
    return ChildEvents(cast("Api", api), interval_s=10, clock=clock)


async def test_nothing_is_read_for_a_resource_that_did_not_ask(events: ChildEvents, api: EventsApi) -> None:
    """Nor after it has asked and been forgotten."""
    assert await events.latest(KEY) == ()
    events.watch(KEY, [make_job()], [])
    events.forget(KEY)
    assert await events.latest(KEY) == ()
    assert api.asked == []


@pytest.mark.parametrize(
    ("pods", "asked"),
    [
        ((), ["job-1"]),
        ((ended_pod(137),), ["job-1"]),
        ((make_pod(name="a"),), ["uid-of-a"]),
        ((make_pod(name="a", node=""),), []),
    ],
    ids=["no pod", "an ended pod", "a pod on a node", "a pod without a node"],
)
async def test_only_who_cannot_be_explained_otherwise_is_asked_about(
    events: ChildEvents, api: EventsApi, pods: tuple[PodView, ...], asked: list[str]
) -> None:
    """The Job where it has no pod, the pod where a node has it, nobody where the scheduler has said why."""
    events.watch(KEY, [make_job()], pods)
    found = await events.latest(KEY)
    assert [event.about_uid for event in found] == api.asked == asked


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


async def test_other_children_are_read_at_once(events: ChildEvents, api: EventsApi) -> None:
    """The new pod's trouble does not wait for the old one's turn."""
    events.watch(KEY, [make_job()], [])
    await events.latest(KEY)
    events.watch(KEY, [make_job()], [make_pod(name="a")])
    await events.latest(KEY)
    assert api.asked == ["job-1", "uid-of-a"]


async def test_what_was_read_stays_while_the_api_does_not_answer(
    events: ChildEvents, api: EventsApi, clock: Clock
) -> None:
    """They explain; a failure to read them stops nothing."""
    events.watch(KEY, [make_job()], [])
    first = await events.latest(KEY)
    api.down = True
    clock.now_s = 20.0
    assert await events.latest(KEY) == first


async def test_an_api_that_never_answers_holds_nobody_up(
    events: ChildEvents, api: EventsApi, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was read before stays, and the turn goes on."""
    monkeypatch.setattr("lora_operator.cluster.child_events.PATIENCE_S", 0.01)
    events.watch(KEY, [make_job()], [])
    first = await events.latest(KEY)
    api.hangs = True
    clock.now_s = 20.0
    assert await asyncio.wait_for(events.latest(KEY), 10) == first
