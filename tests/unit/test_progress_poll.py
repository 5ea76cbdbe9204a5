"""When pods are asked; what they may answer is tested against real sockets elsewhere."""

import asyncio
import dataclasses
import functools
import math

import pytest
from tests.unit.builders import running_pod

from lora_operator.cluster.progress_poll import (
    MOST_AT_ONCE,
    MOST_OF_NAMESPACE,
    ProgressPoller,
    _address,
    fetch_progress,
)
from lora_operator.cluster.store import Key
from lora_operator.model.objects import Answer, PodView
from lora_trainer.spec.progress import Phase, Progress

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
    return ProgressPoller(
        interval_s=lambda _: 10,
        timeout_s=1,
        most_per_s=math.inf,
        wake=woken.append,
        clock=clock,
        fetch=functools.partial(fetch_progress, port=unused_tcp_port),
    )


def pod(uid: str = "p1", ip: str = "") -> PodView:
    return dataclasses.replace(running_pod(name=uid), ip=ip)


async def settle(poller: ProgressPoller) -> None:
    """Wait for the questions that are under way."""
    others = asyncio.all_tasks() - {asyncio.current_task()}
    await asyncio.gather(*others, return_exceptions=True)


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
    assert poller.latest([pod()]) == Answer(asked=False), "it may yet answer"
    await settle(poller)
    assert woken == []
    assert poller.latest([pod()]) == Answer(asked=True)
    assert poller.latest([pod("p2")]) == Answer(asked=False), "nobody asked this one"


async def test_pods_that_are_gone_are_forgotten_and_asked_no_more(poller: ProgressPoller) -> None:
    """Nothing is kept for them, and a question under way is dropped."""
    poller.ask(KEY, pod("p1"))
    poller.ask(KEY, pod("p2"))
    poller.keep_only({pod("p2").uid})
    assert poller.ask(KEY, pod("p1")) == 10
    await poller.close()


class SlowPods(ProgressPoller):
    """Pods of an address that begins with `slow` answer when they are let, and all others at once."""

    def __init__(self, most_per_s: float = math.inf) -> None:
        super().__init__(
            interval_s=lambda number: max(10, number),
            timeout_s=60,
            most_per_s=most_per_s,
            wake=lambda _: None,
            clock=Clock(),
            fetch=self._answer,
        )
        self.asked: list[str] = []
        self.let = asyncio.Event()

    async def _answer(self, ip: str) -> Progress:
        self.asked.append(ip)
        if ip.startswith("slow"):
            await self.let.wait()
        return Progress(phase=Phase.TRAINING, step=1, updated_at=1.0)


async def pass_turns() -> None:
    """Let every task that can go on do so."""
    for _ in range(20):
        await asyncio.sleep(0)


async def test_hundreds_of_slow_pods_of_one_namespace_keep_no_other_waiting() -> None:
    """The slots that are left to others are free at any time."""
    poller = SlowPods()
    for number in range(480):
        poller.ask(Key("hostile", f"run-{number}"), pod(f"h{number}", "slow"))
    await pass_turns()
    assert poller.asked == ["slow"] * MOST_OF_NAMESPACE
    team = pod("p1", "quick")
    poller.ask(KEY, team)
    await pass_turns()
    assert poller.latest([team]).progress is not None
    poller.let.set()
    await settle(poller)
    assert len(poller.asked) == 481


async def test_namespaces_of_slow_pods_take_turns_for_the_slots() -> None:
    """Where several fill all slots, the next that is free goes to the namespace that has waited, not to a flood."""
    poller = SlowPods()
    for number in range(400):
        poller.ask(Key(f"hostile-{number % 4}", f"run-{number}"), pod(f"h{number}", "slow"))
    await pass_turns()
    poller.ask(KEY, pod("p1", "quick"))
    await pass_turns()
    assert poller.asked == ["slow"] * MOST_AT_ONCE
    poller.let.set()
    await settle(poller)
    assert poller.asked.index("quick") < MOST_AT_ONCE + 5
    assert len(poller.asked) == 401


async def test_a_question_that_is_dropped_while_it_waits_leaves_the_slots_as_they_were() -> None:
    """Whether it waits for a slot, has just been given one, or holds it."""
    poller = SlowPods()
    pods = [pod(f"h{number}", "slow") for number in range(40)]
    for view in pods[:20]:
        poller.ask(Key("team", view.name), view)
    await pass_turns()
    poller.let.set()
    poller.keep_only({pods[number].uid for number in (1, 12, 13)})
    await settle(poller)
    poller.let.clear()
    asked = len(poller.asked)
    for view in pods[20:]:
        poller.ask(Key("team", view.name), view)
    await pass_turns()
    assert len(poller.asked) - asked == MOST_OF_NAMESPACE
    await poller.close()


async def test_runs_that_began_together_are_asked_one_after_another() -> None:
    """As evenly as the rate allows, so that their answers are no flood of statuses either."""
    poller = SlowPods(most_per_s=100)
    pods = [pod(f"p{number}", "quick") for number in range(20)]
    clock = asyncio.get_running_loop().time
    began_s = clock()
    for view in pods:
        poller.ask(Key(f"team-{view.name}", view.name), view)
    await pass_turns()
    # On a busy machine some time goes by meanwhile, and so do turns.
    assert len(poller.asked) <= 2 + 100 * (clock() - began_s)
    await settle(poller)
    assert len(poller.asked) == 20
    assert clock() - began_s >= 0.19
    await asyncio.sleep(0.02)
    poller.ask(KEY, pod("late", "quick"))
    await pass_turns()
    assert len(poller.asked) == 21, "after a pause nobody waits"


async def test_the_interval_follows_the_number_of_pods_that_are_asked() -> None:
    """Those whose runs have ended count no more."""
    poller = SlowPods()
    pods = [pod(f"h{number}", "quick") for number in range(50)]
    assert [poller.ask(Key("team", view.name), view) for view in pods][:2] == [10, 10]
    await settle(poller)
    assert (len(poller), poller.ask(KEY, pods[0])) == (50, 50)
    poller.forget(view.uid for view in pods[1:])
    assert (len(poller), poller.ask(KEY, pods[0])) == (1, 10)


@pytest.mark.parametrize("ip", ["169.254.169.254", "fe80::a9fe:a9fe", "::ffff:169.254.169.254", "::ffff:a9fe:a9fe"])
def test_a_cloud_s_metadata_service_is_no_pod(ip: str) -> None:
    """However its address is written: Linux takes an IPv4 address within one of IPv6."""
    with pytest.raises(ValueError, match="is not the address of a pod"):
        _address(ip)
    assert (str(_address("10.0.0.7")), str(_address("fd00::7"))) == ("10.0.0.7", "fd00::7")
