"""A reflector against an API server that answers as the test has put down, over a real connection on 127.0.0.1."""

import asyncio
import contextlib
import itertools
import logging
import math
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from typing import Any, cast

import orjson
import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer
from kubernetes.aio.client.api_client import ApiClient
from kubernetes.aio.client.configuration import Configuration
from tests.unit.builders import NAME, NAMESPACE, UID, make_job_object

from lora_operator.cluster.api import JOBS, Api, ApiError, Chunk, UnreachableError
from lora_operator.cluster.cache import Cache, Key
from lora_operator.cluster.reflector import MOST_REFUSALS, Reflector, Source

PATH = JOBS.path(None)
KEY = Key(NAMESPACE, NAME)
# Of a watch that is to be found silent; all others may be silent for as long as a busy machine makes them.
SILENCE_S, PATIENCE_S = 1.0, 600.0
# After so long without a sign of life the watchdog ends the process.
STALE_S = 150.0
Object = dict[str, Any]


def job(name: str, version: str) -> Object:
    document = make_job_object(uid=f"uid-{name}")
    document["metadata"] |= {"name": name, "resourceVersion": version}
    return document


def line(kind: str, document: Object) -> bytes:
    return orjson.dumps({"type": kind, "object": document}) + b"\n"


def error(code: int) -> bytes:
    return line("ERROR", {"kind": "Status", "code": code, "reason": "Expired", "message": "too old"})


BOOKMARK = line("BOOKMARK", {"kind": "Job", "metadata": {"resourceVersion": "30"}})


@dataclass(frozen=True, slots=True)
class Stream:
    """What a watch brings before the server ends it; or it stays silent, or breaks."""

    data: bytes = b""
    silent: bool = False
    broken: bool = False


@dataclass(frozen=True, slots=True)
class Busy:
    """A refusal by a server that asks to be left alone for so long."""

    retry_after_s: int
    code: int = 429


@dataclass(slots=True)
class Server:
    """Lists and watches, one after the other; the last of each is repeated, and a number is a refusal."""

    lists: list[list[Object] | int | Busy]
    watches: list[Stream | int | Busy]
    more: str = ""
    version: int = 10
    asked: list[str] = field(default_factory=list)

    async def answer(self, request: web.Request) -> web.StreamResponse:
        """One request."""
        assert request.query["labelSelector"] == "ours=true"
        if "watch" in request.query:
            assert request.query["allowWatchBookmarks"] == "true"
            self.asked.append(f"watch from {request.query['resourceVersion']}")
            return await self._stream(request, _next(self.watches))
        self.asked.append("list")
        found = _next(self.lists)
        if isinstance(found, int | Busy):
            return _refusal(found)
        self.version += 10
        metadata = {"resourceVersion": str(self.version), "continue": self.more}
        return web.json_response({"metadata": metadata, "items": found})

    async def _stream(self, request: web.Request, stream: Stream | int | Busy) -> web.StreamResponse:
        if isinstance(stream, int | Busy):
            return _refusal(stream)
        response = web.StreamResponse()
        await response.prepare(request)
        half = len(stream.data) // 2
        await response.write(stream.data[:half])
        await asyncio.sleep(0.01)
        await response.write(stream.data[half:])
        if stream.silent:
            await asyncio.sleep(PATIENCE_S)
        if stream.broken:
            assert request.transport is not None
            request.transport.abort()
        return response


def _next(answers: list[Any]) -> Any:
    return answers.pop(0) if len(answers) > 1 else answers[0]


def _refusal(refusal: int | Busy) -> web.Response:
    code = refusal if isinstance(refusal, int) else refusal.code
    headers = {"Retry-After": str(refusal.retry_after_s)} if isinstance(refusal, Busy) else {}
    body = {"kind": "Status", "reason": "Trouble", "message": "injected"}
    return web.json_response(body, status=code, headers=headers)


@dataclass(slots=True)
class World:
    """A reflector at work: its store, the keys that it woke, its signs of life, and its pauses, which take no time.

    The first pause takes `quiet_s` more.
    """

    server: Server
    cache: Cache = field(default_factory=Cache)
    woken: list[Key] = field(default_factory=list)
    reflector: Reflector | None = None
    now_s: float = 100.0
    tick_s: float = 0.0
    silence_s: float = PATIENCE_S
    ends_at_s: float = math.inf
    chance: float = 0.5
    quiet_s: float = 0.0
    pauses: list[float] = field(default_factory=list)

    @property
    def names(self) -> list[str]:
        """Of the Jobs that the store holds."""
        return sorted(view.name for view in self.cache.jobs)

    async def run(self, until: Callable[["World"], bool]) -> None:
        """Let it work until it is so."""
        async with self.following() as reflector:
            working = asyncio.create_task(reflector.run())
            try:
                async with asyncio.timeout(120):
                    while not until(self) and not working.done():  # noqa: ASYNC110 - of several things one may change
                        await asyncio.sleep(0.005)
            finally:
                working.cancel()
                await asyncio.wait([working])
            if not working.cancelled():
                working.result()

    @contextlib.asynccontextmanager
    async def following(self) -> AsyncIterator[Reflector]:
        """A reflector that does nothing yet."""
        application = web.Application()
        application.router.add_get(PATH, self.server.answer)
        async with TestServer(application, shutdown_timeout=0) as server:
            configuration = Configuration(host=str(server.make_url("")).rstrip("/"))
            async with ApiClient(configuration) as client:
                source = Source(resource=JOBS, store=self.cache.jobs, wake=self.woken.append, selector="ours=true")
                self.reflector = Reflector(
                    Api(client),
                    source,
                    None,
                    silence_s=self.silence_s,
                    stale_s=STALE_S,
                    random=lambda: self.chance,
                    clock=self._clock,
                    sleep=self._pause,
                )
                yield self.reflector

    def _clock(self) -> float:
        self.now_s += self.tick_s
        return self.now_s

    async def _pause(self, seconds: float) -> None:
        self.pauses.append(seconds)
        self.now_s += seconds + (self.quiet_s if len(self.pauses) == 1 else 0)
        await asyncio.sleep(0 if self.now_s < self.ends_at_s else PATIENCE_S)


async def test_it_lists_and_takes_in_what_the_watch_brings_from_there() -> None:
    """Each owner with news is woken, and each line is a sign of life."""
    events = line("ADDED", job("b", "21")) + line("MODIFIED", job("a", "22")) + line("DELETED", job("b", "23"))
    world = World(Server([[job("a", "5")]], [Stream(events, silent=True)]), tick_s=1)
    await world.run(lambda world: len(world.woken) == 4)
    assert world.server.asked == ["list", "watch from 20"]
    assert world.names == ["a"]
    assert world.woken == [KEY] * 4
    assert world.now_s == 105, "its clock is read at its beginning, for a list, and three events"
    assert [view.name for view in world.cache.jobs.tombstones(KEY, UID)] == ["b"]


@pytest.mark.parametrize(
    ("stream", "since"),
    [
        (Stream(line("ADDED", job("b", "21"))), "21"),
        (Stream(BOOKMARK), "30"),
        (Stream(line("ADDED", job("b", "21")), broken=True), "21"),
        (Stream(line("ADDED", job("b", "21")) + b'{"type":"ADDED","obj'), "21"),
        (Stream(line("ADDED", job("b", "21")), silent=True), "21"),
        (Stream(), "20"),
    ],
    ids=["ended", "bookmark", "broken", "cut in an event", "silent", "nothing"],
)
async def test_a_watch_that_ends_goes_on_from_the_last_version(stream: Stream, since: str) -> None:
    """Nothing is listed again, and a stream that brought nothing is begun after a pause."""
    silence_s = SILENCE_S if stream.silent else PATIENCE_S
    world = World(Server([[]], [stream, Stream(silent=True)]), silence_s=silence_s)
    await world.run(lambda world: len(world.server.asked) >= 3)
    assert world.server.asked[:3] == ["list", "watch from 20", f"watch from {since}"]
    assert world.pauses == ([0.5] if since == "20" else [])
    assert world.cache.jobs.version == since


@pytest.mark.parametrize(
    "watch",
    [
        Stream(error(410)),
        Stream(b"7\n"),
        Stream(b"no JSON\n"),
        Stream(line("ADDED", {"metadata": {}})),
        410,
        403,
    ],
)
async def test_a_watch_that_cannot_go_on_is_listed_anew_after_a_pause(watch: Stream | int) -> None:
    """What was deleted meanwhile is gone then."""
    world = World(Server([[job("a", "5"), job("b", "6")], [job("b", "6")]], [watch, Stream(silent=True)]))
    await world.run(lambda world: len(world.server.asked) == 4)
    assert world.server.asked == ["list", "watch from 20", "list", "watch from 30"]
    assert world.names == ["b"]
    assert world.pauses == [0.5]


@pytest.mark.parametrize("code", [429, 500, 503])
async def test_a_watch_that_a_server_in_trouble_refuses_is_asked_for_again_from_where_it_was(code: int) -> None:
    """A list of everything is the last thing that it needs."""
    world = World(Server([[job("a", "5")]], [code, code, Stream(silent=True)]))
    await world.run(lambda world: len(world.server.asked) == 4)
    assert world.server.asked == ["list", *["watch from 20"] * 3]
    assert world.pauses == [0.5, 1.0]


async def test_a_watch_that_is_refused_again_and_again_is_listed_anew() -> None:
    """There is something else than an overload; nor does the operator live on what it knew long ago."""
    world = World(Server([[]], [500]))
    await world.run(lambda world: world.server.asked.count("list") >= 3)
    first, second = (world.server.asked.index("list", begin) for begin in (1, 18))
    assert world.server.asked[1:first] == ["watch from 20"] * 16
    assert world.server.asked[first + 1 : second] == ["watch from 30"] * 14
    assert sum(world.pauses[: first - 1]) < STALE_S / 2 - 45 / 2


@pytest.mark.parametrize("quiet_s", [0, 50, 70])
@pytest.mark.parametrize("answer", [429, 500, Busy(retry_after_s=1)], ids=str)
async def test_a_quiet_watch_that_is_refused_is_watched_on_for_as_long(quiet_s: int, answer: int | Busy) -> None:
    """An old bookmark is no reason for a list of everything: nobody has refused anything until then."""
    streams = [Stream(broken=True), answer, answer, answer, Stream(silent=True)]
    world = World(Server([[]], streams), quiet_s=quiet_s)
    await world.run(lambda world: len(world.server.asked) == 6)
    assert world.server.asked == ["list", *["watch from 20"] * 5]


async def test_a_watch_that_was_granted_meanwhile_is_refused_anew() -> None:
    """The time for which the watch alone is asked for begins with the first refusal after it."""
    stream = Stream(BOOKMARK)
    world = World(Server([[]], [*[500] * 14, stream, *[500] * 14, Stream(silent=True)]))
    await world.run(lambda world: len(world.server.asked) == 31)
    assert world.server.asked == ["list", *["watch from 20"] * 15, *["watch from 30"] * 15]


@pytest.mark.parametrize(("answer", "wanted"), [(429, [4.0, 8.0, 16.0, 30.0]), (503, [3.5] * 4), (500, [3.5] * 4)])
@pytest.mark.parametrize("what", ["list", "watch"])
async def test_pauses_grow_up_to_half_a_minute_for_a_server_that_is_busy_alone(
    what: str, answer: int, wanted: list[float]
) -> None:
    """One that fails may be back at any moment, and the operator is blind until it asks."""
    world = World(Server([answer if what == "list" else []], [answer]))
    await world.run(lambda world: len(world.pauses) >= 7)
    assert world.pauses[:7] == [0.5, 1.0, 2.0, *wanted]


@pytest.mark.parametrize("chance", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("answer", [429, 500, 503, Busy(retry_after_s=30, code=503), Busy(retry_after_s=300)], ids=str)
@pytest.mark.parametrize("what", ["list", "watch"])
async def test_an_outage_of_two_minutes_that_is_answered_with_refusals_does_not_end_the_process(
    what: str, answer: int | Busy, chance: float
) -> None:
    """Whatever the server asks for, it is asked again well before the watchdog's limit: a new process lists all."""
    lists: list[list[Object] | int | Busy] = [answer] if what == "list" else [[], answer]
    world = World(Server(lists, [answer]), now_s=0, ends_at_s=STALE_S, chance=chance)
    await world.run(lambda world: world.now_s >= STALE_S)
    ends = list(itertools.accumulate(world.pauses))
    assert [end for end in ends if 120 <= end < STALE_S - 5], ends
    assert answer not in (500, 503) or max(world.pauses) <= 5.25, "it is blind for no longer after the outage"


async def test_pauses_without_an_answer_stay_short() -> None:
    """Such a request costs nobody anything, and the operator is blind for no more than some seconds after an outage."""
    world = World(Server([[]], [Stream(broken=True)]))
    await world.run(lambda world: len(world.pauses) >= 5)
    assert world.pauses[:5] == [0.5, 1.0, 2.0, 2.0, 2.0]


@pytest.mark.parametrize("what", ["list", "watch"])
async def test_a_server_that_asks_for_time_gets_it(what: str) -> None:
    """By Retry-After: a fleet's lists, every two seconds, would keep an overloaded server overloaded."""
    busy = Busy(retry_after_s=25)
    world = World(Server([busy if what == "list" else []], [busy]))
    await world.run(lambda world: len(world.pauses) >= 4)
    assert world.pauses[:4] == [25.0] * 4


@pytest.mark.parametrize(("answer", "most"), [(Busy(retry_after_s=30), 3), (429, 8), (500, 22)])
@pytest.mark.parametrize("what", ["list", "watch"])
async def test_an_overloaded_server_is_asked_for_little_in_a_minute(what: str, answer: int | Busy, most: int) -> None:
    """Of each kind, the list of the beginning included."""
    world = World(Server([answer if what == "list" else []], [answer]), now_s=0, ends_at_s=60)
    await world.run(lambda world: world.now_s >= 60)
    assert len(world.server.asked) <= most
    lists = world.server.asked.count("list")
    assert lists <= 2 if what == "watch" else lists == len(world.server.asked)


async def test_a_watch_that_was_granted_ends_the_long_pauses() -> None:
    """Whether it brings something or not: the overload is over."""
    world = World(Server([[]], [*[429] * 4, Stream(), 429, Stream(silent=True)]))
    await world.run(lambda world: len(world.server.asked) == 8)
    assert world.pauses == [0.5, 1.0, 2.0, 4.0, 0.5, 0.5]


@pytest.mark.parametrize("code", [429, 500, 504])
async def test_a_watch_that_ends_with_the_servers_trouble_is_watched_on_ever_less_often(code: int) -> None:
    """The version is still good, and to have granted the watch ends no overload."""
    streams = [Stream(error(code))] * 4
    world = World(Server([[]], [*streams, Stream(silent=True)]))
    await world.run(lambda world: len(world.server.asked) == 6)
    assert world.server.asked == ["list", *["watch from 20"] * 5]
    assert world.pauses == [0.5, 1.0, 2.0, 4.0 if code == 429 else 3.5]


@pytest.mark.parametrize("code", [500, 503])
async def test_a_watch_that_ends_in_trouble_again_and_again_is_listed_anew_now_and_then(code: int) -> None:
    """The version may be what the server cannot go on from; and lists of everything are what hurts it most."""
    world = World(Server([[]], [Stream(error(code))]), now_s=0, ends_at_s=3600)
    await world.run(lambda world: world.now_s >= 3600)
    assert 60 <= world.server.asked.count("list") <= 90


@dataclass(slots=True)
class DeafApi:
    """Lists work. A watch is granted, and as long as it is `deaf` brings nothing until it is given up."""

    now_s: float = 0.0
    deaf: bool = True
    changes: bool = True
    lists: int = 0
    watches: int = 0
    longest_s: float = 0.0

    async def list_chunks(self, *_: Any, **__: Any) -> AsyncIterator[Chunk]:
        self.lists += 1
        version = str(int(self.now_s) if self.changes else 20)
        yield Chunk(documents=[job("a", version)], version=version, size=1)

    async def watch(self, *_: Any, silence_s: float) -> AsyncIterator[bytes]:
        self.watches += 1
        yield b""
        self.now_s += min(silence_s, 60)
        if not self.deaf:
            yield BOOKMARK
            return
        self.now_s += silence_s - min(silence_s, 60)
        raise UnreachableError("silent")


@pytest.mark.parametrize("silence_s", [20, 50, 70, 74, 100])
@pytest.mark.parametrize("changes", [True, False])
async def test_a_watch_that_is_granted_and_brings_nothing_is_made_up_for_by_lists(
    silence_s: float, *, changes: bool
) -> None:
    """A proxy keeps the bytes: the process need not end, and what counts watches' events knows that there are none.

    Where nothing changes either, no bookmark is due, and one list shows it."""
    api = DeafApi(changes=changes)

    async def sleep(seconds: float) -> None:
        api.longest_s = max(api.longest_s, reflector.silent_for_s)
        api.now_s += seconds
        if api.now_s > 3600:
            await asyncio.sleep(PATIENCE_S)

    source = Source(resource=JOBS, store=Cache().jobs, wake=lambda _: None)
    reflector = Reflector(
        cast("Api", api),
        source,
        None,
        silence_s=silence_s,
        stale_s=STALE_S,
        random=lambda: 1.0,
        clock=lambda: api.now_s,
        sleep=sleep,
    )
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(0.3):
            await reflector.run()
    assert api.longest_s < STALE_S - 5
    if changes:
        assert 3600 / STALE_S < api.lists <= 3600 / 70 + 1
        assert reflector.quiet_for_s is None
    else:
        assert api.lists == 2
        assert reflector.quiet_for_s == reflector.silent_for_s


async def test_a_quiet_watch_that_brings_bookmarks_is_never_listed_anew() -> None:
    """One a minute is what an API server sends."""
    world = World(Server([[]], [Stream(BOOKMARK)]), now_s=0)
    await world.run(lambda world: len(world.server.asked) > 50)
    assert world.server.asked.count("list") == 1
    assert world.reflector is not None
    assert world.reflector.quiet_for_s == world.reflector.silent_for_s


async def test_what_a_stream_brought_before_it_ended_with_too_many_requests_is_not_asked_for_again() -> None:
    """The watch goes on from the last version; what was seen for long may be gone from the server's memory."""
    stream = Stream(line("ADDED", job("b", "21")) + error(429))
    world = World(Server([[]], [429, 429, stream, Stream(silent=True)]))
    await world.run(lambda world: len(world.server.asked) == 5)
    assert world.server.asked == ["list", *["watch from 20"] * 3, "watch from 21"]
    assert world.pauses == [0.5, 1.0, 0.5]
    assert world.names == ["b"]


async def test_an_event_resets_the_pauses() -> None:
    """One stream after the other brings something, and then breaks."""
    fine = [Stream(line("ADDED", job("b", str(21 + number)))) for number in range(3)]
    world = World(Server([500, 500, []], [*fine, 500, Stream(silent=True)]))
    await world.run(lambda world: len(world.pauses) == 3)
    assert world.pauses == [0.5, 1.0, 0.5]


@pytest.mark.parametrize("code", [403, 404])
@pytest.mark.parametrize("what", ["list", "watch"])
async def test_a_refusal_that_persists_is_raised(code: int, what: str) -> None:
    """A right or a kind that is gone: the process ends, and its next start says what is missing."""
    world = World(Server([code if what == "list" else []], [code]))
    with pytest.raises(ApiError, match=str(code)):
        await world.run(lambda _: False)
    assert len(world.pauses) == MOST_REFUSALS


async def test_what_the_store_knows_better_is_no_news() -> None:
    """An event of before our own write, or of before a list of the resync."""
    events = line("MODIFIED", job("a", "21")) + line("DELETED", job("a", "22")) + BOOKMARK
    world = World(Server([[job("a", "5")]], [Stream(events, silent=True)]))
    world.cache.jobs.put(job("a", "25"))
    await world.run(lambda world: world.cache.jobs.version == "30")
    assert world.names == ["a"]
    assert world.woken == []


async def test_what_was_deleted_while_a_list_was_under_way_does_not_come_back() -> None:
    """Our own write found it gone, or the watch of another kind of list."""
    world = World(Server([[job("a", "5")]], [Stream(silent=True)]))
    world.cache.jobs.put(job("a", "5"))
    world.cache.jobs.remove(job("a", "25"))
    await world.run(lambda world: len(world.server.asked) == 2)
    assert world.names == []


async def test_a_line_that_no_object_can_be_is_not_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """The stream is given up, and memory does not grow with what it brings."""
    monkeypatch.setattr("lora_operator.cluster.api.LONGEST_LINE", 10_000)
    huge = job("b", "21")
    huge["metadata"]["annotations"] = {"note": "x" * 20_000}
    world = World(Server([[]], [Stream(line("ADDED", huge)), Stream(silent=True)]))
    await world.run(lambda world: len(world.server.asked) == 3)
    assert world.server.asked == ["list", "watch from 20", "watch from 20"]
    assert world.names == []


async def test_the_log_says_what_the_api_server_said(caplog: pytest.LogCaptureFixture) -> None:
    """Of a watch that it ended with an error."""
    caplog.set_level(logging.INFO, "lora_operator")
    world = World(Server([[]], [Stream(error(410)), Stream(silent=True)]))
    await world.run(lambda world: len(world.server.asked) == 4)
    assert f"{PATH} is listed again: 410 Expired: too old" in caplog.text


async def test_what_a_list_brought_that_failed_half_way_wakes_all_the_same() -> None:
    """To the list that follows it is no news."""

    world = World(Server([[job("a", "5")], 500], [], more="next"))
    await world.run(lambda world: len(world.pauses) >= 2)
    assert world.woken == [KEY]
    assert world.reflector is not None
    assert not world.reflector.listed.is_set()


async def test_silence_is_counted_from_the_last_sign_of_life() -> None:
    """Before the first one from the beginning: a watch that never speaks is found, too."""
    world = World(Server([[]], []))
    async with world.following() as reflector:
        world.now_s += 7
        assert (reflector.quiet_for_s, reflector.silent_for_s) == (None, 7)
        await reflector.list()
        world.now_s += 3
        assert (reflector.quiet_for_s, reflector.silent_for_s) == (None, 3)
        assert reflector.listed.is_set()


async def test_lists_that_stay_in_the_past_are_timed_until_one_is_not(caplog: pytest.LogCaptureFixture) -> None:
    """A replica that is behind catches up within a minute; where etcd was restored, none ever does."""
    world = World(Server([[]], []))
    async with world.following() as reflector:
        assert await _behind(reflector) is None
        world.cache.jobs.saw("65")
        for wanted_s in (0, 60, 119):
            world.now_s = 100 + wanted_s
            assert await _behind(reflector) == wanted_s
        assert caplog.text.count("is as of version 30, and 65 was seen before") == 1
        assert caplog.text.count("was seen before") == 1
        world.now_s += 1000
        assert reflector.behind_for_s == 119, "without another list nobody knows"
        world.server.version = 90
        assert await _behind(reflector) is None


async def _behind(reflector: Reflector) -> float | None:
    await reflector.list()
    return reflector.behind_for_s
