"""Events about runs: bounded, in order, and never a reason to wait."""

import asyncio
import logging
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, cast

import pytest
from tests.unit.builders import make_finetune

from lora_operator.cluster.api import Api, ApiError, Resource
from lora_operator.cluster.post_events import LONGEST_BACKLOG, EventPoster
from lora_operator.model.objects import EventRecord


class Board:
    """An API that keeps the Events that it is sent, or refuses them."""

    def __init__(self, *, refuses: bool = False) -> None:
        self.refuses = refuses
        self.events: list[Mapping[str, Any]] = []

    async def create(self, resource: Resource, namespace: str, manifest: Mapping[str, Any]) -> Mapping[str, Any]:
        self.events.append(manifest)
        if self.refuses:
            raise ApiError(500, "InternalError", "no")
        return manifest


def record(number: int) -> EventRecord:
    """The n-th Event."""
    return EventRecord(type="Normal", reason="Training", message=f"number {number}")


def make_poster(board: Board) -> EventPoster:
    """A poster whose clock stands still."""
    moment = datetime(2026, 3, 1, tzinfo=UTC)
    return EventPoster(cast("Api", board), now=lambda: moment, instance="operator-0")


async def post_all(poster: EventPoster) -> None:
    """Post what waits, and end."""
    running = asyncio.create_task(poster.run())
    await poster.drained()
    running.cancel()
    await asyncio.wait({running})


async def test_events_of_one_moment_are_named_in_the_order_in_which_they_came() -> None:
    """`kubectl describe` shows those of one second in the order of their names."""
    board = Board()
    poster = make_poster(board)
    for number in range(300):
        poster.post(make_finetune(), record(number))
    await post_all(poster)
    by_name = sorted(board.events, key=lambda event: str(event["metadata"]["name"]))
    assert [event["message"] for event in by_name] == [f"number {number}" for number in range(300)]


async def test_a_flood_is_cut_off_and_reported_in_two_lines(caplog: pytest.LogCaptureFixture) -> None:
    """The backlog is bounded, and so is the log; what comes after the flood is posted again."""
    board = Board()
    poster = make_poster(board)
    with caplog.at_level(logging.WARNING):
        for number in range(LONGEST_BACKLOG + 500):
            poster.post(make_finetune(), record(number))
        await post_all(poster)
        poster.post(make_finetune(), record(-1))
        await post_all(poster)
    assert len(board.events) == LONGEST_BACKLOG + 1
    assert [entry.getMessage() for entry in caplog.records] == [
        f"{LONGEST_BACKLOG} Events wait to be posted: what comes now is lost",
        "500 Events were lost, since too many waited",
    ]


async def test_a_refused_event_is_dropped_and_the_next_one_posted() -> None:
    """Each is tried once."""
    board = Board(refuses=True)
    poster = make_poster(board)
    for number in range(3):
        poster.post(make_finetune(), record(number))
    await post_all(poster)
    assert [event["message"] for event in board.events] == ["number 0", "number 1", "number 2"]


async def test_events_give_way_to_runs_that_wait_for_their_first_job() -> None:
    """They tell of what was done, and can wait; but not for ever."""
    board, busy = Board(), [True, True, False]
    moment = datetime(2026, 3, 1, tzinfo=UTC)
    poster = EventPoster(
        cast("Api", board), now=lambda: moment, instance="operator-0", hurried=lambda: busy.pop(0) if busy else False
    )
    poster.post(make_finetune(), record(1))
    await post_all(poster)
    assert (len(board.events), busy) == (1, [])
