"""Whose clock counts: the API server's, as its answers tell it."""

from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import pytest

from lora_operator.cluster.server_clock import ServerClock

NOW = datetime(2026, 5, 1, 12, 0, 0, tzinfo=UTC)
RIGHT, HOURS = timedelta(), timedelta(hours=2)


class World:
    """The true time, our own clock, which is wrong by `skew`, and what is made of the answers."""

    def __init__(self, skew: timedelta = RIGHT) -> None:
        self.now_s = 0.0
        self.skew = skew
        self.clock = ServerClock(lambda: self.time + self.skew, lambda: 1000 + self.now_s)

    @property
    def time(self) -> datetime:
        """As it is."""
        return NOW + timedelta(seconds=self.now_s)

    def answer(self, ahead: timedelta = RIGHT) -> timedelta:
        """A server answers whose clock is ahead by so much; by how much ours is now."""
        self.now_s += 2
        self.clock.saw(format_datetime(self.time + ahead, usegmt=True))
        return self.clock.now() - self.time


@pytest.mark.parametrize("skew", [HOURS, -HOURS, timedelta(seconds=6)])
def test_a_wrong_clock_is_put_right(skew: timedelta) -> None:
    """Ahead or behind: what counts is the server's time, which goes on with our own."""
    world = World(skew)
    assert world.clock.now() == NOW + skew
    assert world.answer() == RIGHT
    world.now_s += 90
    assert world.clock.now() == world.time


@pytest.mark.parametrize("date", ["Fri, 01 May 2026 11:59:57 GMT", None, "", "yesterday"])
def test_a_small_difference_or_none_that_is_reported_changes_nothing(date: str | None) -> None:
    """The header has whole seconds, and an answer takes a while."""
    world = World()
    world.clock.saw(date)
    assert world.clock.now() == NOW


@pytest.mark.parametrize("skew", [HOURS, -HOURS])
def test_a_clock_that_is_set_changes_nothing(skew: timedelta) -> None:
    """Neither before the next answer nor after it."""
    world = World(skew)
    world.answer()
    world.skew = RIGHT
    world.now_s += 10
    assert world.clock.now() == world.time
    assert world.answer() == RIGHT


@pytest.mark.parametrize("ahead", [HOURS, -HOURS])
@pytest.mark.parametrize("skew", [RIGHT, timedelta(minutes=7)])
def test_a_server_whose_clock_is_set_is_followed_at_once(skew: timedelta, ahead: timedelta) -> None:
    """There and back, and it goes on with our own in between; by seconds nothing moves."""
    world = World(skew)
    world.answer()
    assert world.answer(ahead) == ahead
    assert world.answer(ahead + timedelta(seconds=3)) == ahead
    world.now_s += 90
    assert world.clock.now() == world.time + ahead
    assert world.answer() == RIGHT
