"""How a run is followed while the API server answers, falls silent, or was never there."""

import json
import time
from collections.abc import Iterator, Mapping
from typing import Any

import pytest
from tests.unit.client.resources import condition, finished, resource, training

from lora_client.cluster.connection import ApiError, Cluster, UnreachableError
from lora_client.cluster.follow import follow
from lora_client.errors import ClientError
from lora_client.runs import ClusterRun
from lora_client.views.refusals import Refusal

Object = dict[str, Any]
GONE = UnreachableError("The API server does not answer")
BUSY = ApiError(Refusal.of(503, {"message": "busy"}, b"", "team-a"))


class Answers(Cluster):
    """Gives these answers to GET, the last one for ever; a watch is quiet, breaks off, or has these events."""

    def __init__(self, *answers: Object | Exception, events: tuple[Object | Exception, ...] = ()) -> None:
        self.namespace = "team-a"
        self.least_pause_s = 0.0
        self.silences: list[float | None] = []
        self._answers = list(answers)
        self._events = events

    def get(self, plural: str, name: str) -> Object:
        time.sleep(0.01)
        answer = self._answers.pop(0) if len(self._answers) > 1 else self._answers[0]
        if isinstance(answer, Exception):
            raise answer
        return answer

    def lines(self, path: str, query: Mapping[str, str], *, silence_s: float | None = None) -> Iterator[bytes]:
        self.silences.append(silence_s)
        for event in self._events:
            if isinstance(event, Exception):
                raise event
            yield json.dumps(event).encode()


def test_a_server_that_never_answered_is_said_at_once() -> None:
    """A wrong context would be tried for minutes."""
    with pytest.raises(UnreachableError):
        next(follow(Answers(GONE), "tone", pytest.fail))


def test_a_server_that_answered_is_waited_for() -> None:
    """Once it is said; each try gives the one who waits a moment."""
    said: list[str] = []
    following = follow(Answers(resource(), GONE, GONE, resource(status=finished())), "tone", said.append)
    seen = [next(following) for _ in range(4)]
    assert [run is not None for run in seen] == [True, False, False, True]
    assert said == [f"{GONE}; trying again"]


def test_a_server_that_is_busy_is_there() -> None:
    """Also if its first answer says so."""
    said: list[str] = []
    following = follow(Answers(BUSY, resource()), "tone", said.append)
    assert next(following) is None
    assert next(following) == resource()
    assert len(said) == 1


def test_waiting_ends_in_time_where_nobody_answers_any_more() -> None:
    """Which a request after the other would not notice."""
    run = ClusterRun(Answers(resource(status=training()), GONE), resource(status=training()))
    begun = time.monotonic()
    with pytest.raises(ClientError, match=r"tone has not ended within 0\.2 s: it is Training"):
        run.wait(0.2)
    assert time.monotonic() - begun < 3


def test_waiting_says_why_a_run_waits_whenever_that_changes(capsys: pytest.CaptureFixture[str]) -> None:
    """A claim that does not exist would be waited for in silence, for ever."""

    def waits(claim: str) -> Object:
        message = f"There is no claim {claim}"
        kinds = ("PodsReady", "Complete")
        return resource(status={"conditions": [condition(kind, "False", "VolumeNotReady", message) for kind in kinds]})

    with pytest.raises(ClientError, match=r"has not ended within 0\.5 s: it is VolumeNotReady: There is no claim b$"):
        ClusterRun(Answers(waits("a"), waits("a"), waits("b")), resource()).wait(0.5)
    said = [f"tone: VolumeNotReady: There is no claim {claim}\n" for claim in ("a", "b")]
    assert capsys.readouterr().err == "".join(said)


def test_a_watch_that_falls_silent_is_begun_again_without_a_word() -> None:
    """As after a laptop slept: a bookmark comes every minute, and the next request shows whether a server is there."""
    cluster = Answers(resource(status=training()), resource(status=finished()), events=(GONE,))
    following = follow(cluster, "tone", pytest.fail)
    seen = [run for run in (next(following), next(following), next(following)) if run is not None]
    assert [run["status"] for run in seen][:2] == [training(), finished()]
    (silence_s,) = {*cluster.silences}
    assert silence_s is not None
    assert 60 < silence_s <= 120
