"""The keyed queue, with a clock that the tests turn."""

import asyncio
import math
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.unit.loop_clock import LoopClock

from lora_operator.controller.work_queue import WorkQueue, backoff_s


def make_queue(
    random: Callable[[], float] = lambda: 1.0,
    is_urgent: Callable[[str], bool] = lambda _: False,
    group: Callable[[str], str] = lambda _: "",
    workers: float = math.inf,
) -> WorkQueue[str]:
    return WorkQueue(base_s=1, max_s=60, random=random, is_urgent=is_urgent, group=group, workers=workers)


async def test_a_key_that_is_added_twice_is_taken_once() -> None:
    """The queue holds keys, not events."""
    queue = make_queue()
    queue.add("a")
    queue.add("b")
    queue.add("a")
    assert len(queue) == 2
    assert [await queue.take(), await queue.take()] == ["a", "b"]


async def test_a_key_that_is_added_while_a_worker_has_it_comes_again_afterwards() -> None:
    """Never two workers on one key, and no change missed."""
    queue = make_queue()
    queue.add("a")
    key = await queue.take()
    queue.add("a")
    queue.add("a")
    assert len(queue) == 0
    queue.done(key)
    assert len(queue) == 1


async def test_a_timer_brings_its_key_when_the_time_has_come_and_not_before() -> None:
    """Requeue after a while."""
    clock = LoopClock()
    queue = make_queue()
    queue.add_after("a", 10)
    await clock.turn(9.9)
    assert len(queue) == 0
    await clock.turn(0.2)
    assert len(queue) == 1


async def test_the_earlier_of_two_timers_wins() -> None:
    """In either order, and the later one does not fire as well."""
    clock = LoopClock()
    queue = make_queue()
    queue.add_after("a", 10)
    queue.add_after("a", 5)
    queue.add_after("a", 20)
    await clock.turn(5)
    assert await queue.take() == "a"
    queue.done("a")
    await clock.turn(30)
    assert len(queue) == 0


async def test_an_immediate_wish_replaces_the_timer() -> None:
    """What has just been looked at is not looked at again because of an old timer."""
    clock = LoopClock()
    queue = make_queue()
    queue.add_after("a", 5)
    queue.add("a")
    queue.done(await queue.take())
    await clock.turn(10)
    assert len(queue) == 0


async def test_a_timer_does_not_delay_a_wish_that_came_during_the_work() -> None:
    """The worker asks for a look in an hour; an event that came meanwhile comes first."""
    queue = make_queue()
    queue.add("a")
    key = await queue.take()
    queue.add("a")
    queue.done(key, requeue_after_s=3600)
    assert len(queue) == 1


async def test_failures_wait_longer_each_time_and_a_success_forgets_them() -> None:
    """1, 2, 4 seconds; then 1 again."""
    queue = make_queue()
    delays = []
    for _ in range(3):
        queue.add("a")
        delays.append(queue.failed(await queue.take()))
    assert delays == [1, 2, 4]
    assert queue.failures("a") == 3
    queue.add("a")
    queue.done(await queue.take())
    assert queue.failures("a") == 0


async def test_a_waiting_worker_gets_a_key_that_is_added_later() -> None:
    """Two workers wait; each key goes to one of them."""
    queue = make_queue()
    first, second = asyncio.create_task(queue.take()), asyncio.create_task(queue.take())
    await asyncio.sleep(0)
    queue.add("a")
    queue.add("b")
    assert {await first, await second} == {"a", "b"}


async def test_a_failure_may_ask_for_a_longer_pause_than_its_backoff() -> None:
    """A server that names the seconds is obeyed; one that names few shortens nothing."""
    clock = LoopClock()
    queue = make_queue()
    queue.add("a")
    assert queue.failed(await queue.take(), at_least_s=7) == 7
    clock.now_s += 7
    queue.add("a")
    assert queue.failed(await queue.take(), at_least_s=0.1) == 2


async def test_news_shorten_a_backoff_but_no_pause_that_a_server_asked_for() -> None:
    """An event during the work, or after it, is looked at when the server is ready for it."""
    clock = LoopClock()
    queue = make_queue()
    queue.add("a")
    key = await queue.take()
    queue.add("a")
    queue.failed(key, at_least_s=7)
    queue.add("a")
    await clock.turn(6.9)
    assert len(queue) == 0
    await clock.turn(0.2)
    assert len(queue) == 1
    queue.failed(await queue.take())
    queue.add("a")
    assert len(queue) == 1


async def test_a_timer_that_ends_within_a_pause_is_due_when_the_pause_is_over() -> None:
    """A pod's news came during the work, and a server then asked for seconds: the key is neither early nor lost."""
    clock = LoopClock()
    queue = make_queue()
    queue.add("a")
    key = await queue.take()
    queue.add_after("a", 0.5)
    queue.failed(key, at_least_s=7)
    await clock.turn(6.9)
    assert len(queue) == 0
    await clock.turn(0.2)
    assert len(queue) == 1


WISHES = st.sampled_from([None, 0.0, 0.5, 8.0])
ENDS = st.tuples(st.sampled_from(["done", "failed"]), st.sampled_from([0.0, 0.5, 7.0]))


@settings(max_examples=max(500, settings().max_examples))
@given(st.lists(st.tuples(WISHES, ENDS, st.sampled_from([0.1, 1.0, 9.0])), max_size=6))
def test_no_wish_is_ever_lost(turns: list[tuple[float | None, tuple[str, float], float]]) -> None:
    """Whatever is asked for while a worker has the key or has not: it comes again, and not before a pause is over."""
    asyncio.run(_take_turns(turns))


async def _take_turns(turns: list[tuple[float | None, tuple[str, float], float]]) -> None:
    clock = LoopClock()
    queue = make_queue()
    queue.add("a")
    wanted, pause_ends_s = True, 0.0
    for wish_s, (end, number), pass_s in [*turns, *[(None, ("done", 0.0), 10.0)] * 9]:
        has_it = len(queue) > 0
        if has_it:
            await queue.take()
            assert clock.now_s >= pause_ends_s
            wanted, pause_ends_s = False, 0.0
        if wish_s is not None:
            queue.add_after("a", wish_s)
            wanted = True
        if has_it and end == "done":
            queue.done("a", requeue_after_s=number or None)
            wanted = wanted or number > 0
        elif has_it:
            queue.failed("a", at_least_s=number)
            wanted, pause_ends_s = True, clock.now_s + number
        await clock.turn(pass_s)
    assert not wanted


@pytest.mark.parametrize(
    ("failures", "chance", "expected"), [(0, 1.0, 1.0), (0, 0.0, 0.5), (3, 1.0, 8.0), (6, 1.0, 60.0), (5000, 0.0, 30.0)]
)
def test_backoff_doubles_up_to_its_limit_with_jitter_of_half(failures: int, chance: float, expected: float) -> None:
    """Between half and all of the exponential delay, whatever the number of failures."""
    assert backoff_s(failures, base_s=1, max_s=60, random=lambda: chance) == expected


def is_new(key: str) -> bool:
    return key.startswith("new")


async def test_urgent_keys_come_first_and_each_kind_in_its_order() -> None:
    """However late it comes."""
    queue = make_queue(is_urgent=is_new)
    for key in ("old-a", "new-a", "old-b", "new-b"):
        queue.add(key)
    assert (queue.has_urgent, len(queue)) == (True, 4)
    assert [await queue.take() for _ in range(4)] == ["new-a", "new-b", "old-a", "old-b"]
    assert not queue.has_urgent


async def test_a_flood_of_urgent_keys_starves_nobody() -> None:
    """Every eighth turn is for those that can wait."""
    queue = make_queue(is_urgent=is_new)
    queue.add("old")
    for number in range(20):
        queue.add(f"new-{number}")
    assert [await queue.take() for _ in range(8)] == [*(f"new-{number}" for number in range(7)), "old"]


async def test_a_key_that_becomes_urgent_while_it_waits_moves_forward() -> None:
    """A Job may be heard of before its run is; once the run is known, it is new."""
    urgent = set[str]()
    queue = make_queue(is_urgent=urgent.__contains__)
    queue.add("other")
    queue.add("late")
    urgent.add("late")
    queue.add("late")
    assert len(queue) == 2
    assert [await queue.take(), await queue.take()] == ["late", "other"]


async def test_a_key_that_is_urgent_no_more_keeps_its_place() -> None:
    """Its Job is there by now, or it has a status; that it waits is known all the same."""
    urgent = {"late"}
    queue = make_queue(is_urgent=urgent.__contains__)
    queue.add("other")
    queue.add("late")
    urgent.clear()
    queue.add("late")
    assert len(queue) == 2
    assert [await queue.take(), await queue.take()] == ["late", "other"]


async def test_nothing_is_urgent_once_the_queue_is_closed() -> None:
    """What gives way to urgent keys would wait for ever."""
    queue = make_queue(is_urgent=lambda _: True)
    queue.add("a")
    assert queue.has_urgent
    queue.close()
    assert not queue.has_urgent


async def test_a_queue_that_is_closed_hands_out_nothing_and_tells_when_the_workers_are_done() -> None:
    """The end in order: no new work, and what was begun is finished."""
    queue = make_queue()
    queue.add("a")
    key = await queue.take()
    queue.add("b")
    queue.close()
    taking, idle = asyncio.create_task(queue.take()), asyncio.create_task(queue.idle())
    queue.add("c")
    for _ in range(5):
        await asyncio.sleep(0)
    assert (taking.done(), idle.done()) == (False, False)
    queue.done(key)
    await idle
    assert not taking.done()
    taking.cancel()


def namespace_of(key: str) -> str:
    return key.partition("/")[0]


async def test_a_group_with_thousands_of_keys_delays_another_by_one_turn_each() -> None:
    """One namespace's flood is worked off beside what others add, each in its own order."""
    queue = make_queue(group=namespace_of)
    for number in range(10_000):
        queue.add(f"flood/{number}")
    for key in ("team/a", "team/b", "other/a"):
        queue.add(key)
    taken = [await queue.take() for _ in range(6)]
    assert taken == ["flood/0", "team/a", "other/a", "flood/1", "team/b", "flood/2"]
    queue.add("team/c")
    assert "team/c" in [await queue.take() for _ in range(2)]


async def test_a_group_that_comes_back_has_not_lost_its_place_to_one_that_never_left() -> None:
    """Nor has it gained one: its next key waits for one key of each other group."""
    queue = make_queue(group=namespace_of)
    for key in ("a/1", "a/2", "a/3", "b/1", "b/2"):
        queue.add(key)
    assert [await queue.take(), await queue.take()] == ["a/1", "b/1"]
    queue.add("c/1")
    assert [await queue.take() for _ in range(4)] == ["a/2", "b/2", "c/1", "a/3"]


@given(st.lists(st.sampled_from(["a", "a", "a", "b", "c"]), max_size=40))
def test_while_a_group_waits_no_other_has_two_turns(groups: list[str]) -> None:
    """Whatever the order in which keys were added, each group's come in order and the groups in turns."""
    asyncio.run(_take_all([f"{group}/{number:02}" for number, group in enumerate(groups)]))


async def _take_all(keys: list[str]) -> None:
    queue = make_queue(group=namespace_of)
    for key in keys:
        queue.add(key)
    taken = [await queue.take() for _ in keys]
    assert len(queue) == 0
    for group in {namespace_of(key) for key in keys}:
        places = [place for place, key in enumerate(taken) if namespace_of(key) == group]
        assert [taken[place] for place in places] == [key for key in keys if namespace_of(key) == group]
        between = [taken[first + 1 : last] for first, last in zip([-1, *places], places, strict=False)]
        assert all(len({*map(namespace_of, others)}) == len(others) for others in between)


async def test_a_group_leaves_workers_to_others_however_long_its_turns_take() -> None:
    """Of 16 workers one group holds 12, and gets another one with each that it lets go."""
    queue = make_queue(is_urgent=lambda _: True, group=namespace_of, workers=16)
    for number in range(40):
        queue.add(f"slow/{number}")
    held = [await queue.take() for _ in range(12)]
    taking = asyncio.create_task(queue.take())
    await asyncio.sleep(0)
    assert (taking.done(), queue.has_urgent) == (False, False)
    queue.add("team/a")
    assert queue.has_urgent
    assert await taking == "team/a"
    taking = asyncio.create_task(queue.take())
    queue.done("team/a")
    await asyncio.sleep(0)
    assert not taking.done()
    queue.done(held[0])
    assert await taking == "slow/12"


async def test_a_group_that_may_hold_no_more_keeps_nobody_from_a_turn() -> None:
    """What others want is done, however little it hurries."""
    queue = make_queue(is_urgent=lambda key: "slow" in key, group=namespace_of, workers=4)
    for key in ("slow/a", "slow/b", "slow/c", "slow/d", "team/a"):
        queue.add(key)
    assert [await queue.take() for _ in range(4)] == ["slow/a", "slow/b", "slow/c", "team/a"]


async def test_keys_that_wait_while_all_workers_are_busy_are_seen_to_wait() -> None:
    """What gives way to urgent keys does so then, above all."""
    queue = make_queue(is_urgent=lambda _: True, workers=1)
    queue.add("a")
    await queue.take()
    queue.add("b")
    assert queue.has_urgent


@given(st.lists(st.tuples(st.sampled_from(["a", "a", "a", "b", "c"]), st.booleans()), max_size=60))
def test_a_bounded_group_is_never_stuck_and_never_holds_more_than_its_share(steps: list[tuple[str, bool]]) -> None:
    """Whatever is added and let go in whatever order."""
    asyncio.run(_take_within_shares(steps, workers=6))


async def _take_within_shares(steps: list[tuple[str, bool]], *, workers: int) -> None:
    queue = make_queue(group=namespace_of, workers=workers)
    held: list[str] = []

    async def work() -> None:
        while True:
            key = await queue.take()
            group = [other for other in held if namespace_of(other) == namespace_of(key)]
            assert len(group) < 3 * (workers - len(held))
            held.append(key)
            done = asyncio.get_running_loop().create_future()
            ends.append((key, done))
            await done
            held.remove(key)
            queue.done(key)

    ends: list[tuple[str, asyncio.Future[None]]] = []
    tasks = [asyncio.create_task(work()) for _ in range(workers)]
    for number, (group, ends_one) in enumerate([*steps, *[("a", True)] * (len(steps) + 1)]):
        if number < len(steps):
            queue.add(f"{group}/{number}")
        if ends_one and ends:
            ends.pop(number % len(ends))[1].set_result(None)
        for _ in range(4):
            await asyncio.sleep(0)
        assert held or not len(queue)
    assert not any(task.done() for task in tasks)
    assert len(queue) == 0
    for task in tasks:
        task.cancel()
