"""Whose clock counts: the API server's, as its answers tell it."""

from datetime import UTC, datetime, timedelta

import pytest

from lora_operator.cluster.server_clock import ServerClock

NOW = datetime(2026, 5, 1, 12, 0, 0, tzinfo=UTC)


@pytest.mark.parametrize("skew", [timedelta(hours=2), timedelta(hours=-2), timedelta(seconds=6)])
def test_a_wrong_clock_is_put_right(skew: timedelta) -> None:
    """Ahead or behind: what counts is the server's time, which goes on with our own."""
    moment = [NOW + skew]
    clock = ServerClock(lambda: moment[0])
    assert clock.now() == NOW + skew
    clock.saw("Fri, 01 May 2026 12:00:00 GMT")
    assert clock.now() == NOW
    moment[0] += timedelta(seconds=90)
    assert clock.now() == NOW + timedelta(seconds=90)


@pytest.mark.parametrize("date", ["Fri, 01 May 2026 11:59:57 GMT", None, "", "yesterday"])
def test_a_small_difference_or_none_that_is_reported_changes_nothing(date: str | None) -> None:
    """The header has whole seconds, and an answer takes a while."""
    clock = ServerClock(lambda: NOW)
    clock.saw(date)
    assert clock.now() == NOW


def test_a_clock_that_was_set_right_is_believed_again() -> None:
    """The next answer tells."""
    moment = [NOW + timedelta(hours=2)]
    clock = ServerClock(lambda: moment[0])
    clock.saw("Fri, 01 May 2026 12:00:00 GMT")
    moment[0] = NOW + timedelta(seconds=10)
    clock.saw("Fri, 01 May 2026 12:00:10 GMT")
    assert clock.now() == NOW + timedelta(seconds=10)
