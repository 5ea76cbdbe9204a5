"""When pods are asked; what they may answer is tested against real sockets elsewhere."""

import asyncio

import pytest
from tests.unit.builders import running_pod

from lora_operator.cluster.cache import Key
from lora_operator.cluster.progress_poll import ProgressPoller
from lora_operator.views.model import PodView, Told

KEY = Key("team", "tone")


class Clock:
    """A clock that moves when it is told to."""

    now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
def clock() -> Clock:
    """At 100 s."""
    return Clock()


@pytest.fixture
def woken() -> list[Key]:
    """Keys that the poller woke."""
    return []


@pytest.fixture
def poller(clock: Clock, woken: list[Key], unused_tcp_port: int) -> ProgressPoller:
    """Asks a port where nobody listens."""
    return ProgressPoller(interval_s=10, timeout_s=1, wake=woken.append, clock=clock, port=unused_tcp_port)


def pod(uid: str = "p1") -> PodView:
    return running_pod(name=uid)


async def settle(poller: ProgressPoller) -> None:
    """Wait for the questions that are under way."""
    others = asyncio.all_tasks() - {asyncio.current_task()}
    await asyncio.gather(*others)


async def test_a_pod_is_asked_once_in_an_interval(poller: ProgressPoller, clock: Clock) -> None:
    """Asked again too soon, the poller says how long it still takes."""
    assert poller.ask(KEY, pod()) == 10
    await settle(poller)
    clock.now_s += 4
    assert poller.ask(KEY, pod()) == 6
    assert len(asyncio.all_tasks()) == 1
    clock.now_s += 5.5
    assert poller.ask(KEY, pod()) == 10
    assert len(asyncio.all_tasks()) == 2
    await settle(poller)


async def test_a_pod_that_never_answered_wakes_nobody(poller: ProgressPoller, woken: list[Key]) -> None:
    """No news is no reason for a look."""
    poller.ask(KEY, pod())
    assert poller.latest([pod()]) == Told(asked=False), "it may yet answer"
    await settle(poller)
    assert woken == []
    assert poller.latest([pod()]) == Told(asked=True)
    assert poller.latest([pod("p2")]) == Told(asked=False), "nobody asked this one"


async def test_pods_that_are_gone_are_forgotten_and_asked_no_more(poller: ProgressPoller) -> None:
    """Nothing is kept for them, and a question under way is dropped."""
    poller.ask(KEY, pod("p1"))
    poller.ask(KEY, pod("p2"))
    poller.keep_only({pod("p2").uid})
    assert poller.ask(KEY, pod("p1")) == 10
    await poller.close()
