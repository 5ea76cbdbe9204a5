"""kopf's lists on their way into the cache."""

import asyncio
from typing import Any

import aiohttp
import orjson
import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from lora_operator.cluster.api import FINETUNES, JOBS
from lora_operator.cluster.cache import Cache, Key
from lora_operator.cluster.intake import Intake, Source

ALL = FINETUNES.path(None)
TEAM = FINETUNES.path("team")


def finetune(name: str, *, namespace: str = "team", version: str = "5") -> dict[str, Any]:
    return {"metadata": {"namespace": namespace, "name": name, "uid": f"uid-{name}", "resourceVersion": version}}


def chunk(*items: dict[str, Any], version: str = "10", more: str = "") -> dict[str, Any]:
    return {"kind": "LoRAFineTuneList", "metadata": {"resourceVersion": version, "continue": more}, "items": [*items]}


@pytest.fixture
def cache() -> Cache:
    """Knows nothing yet."""
    return Cache()


@pytest.fixture
def woken() -> list[Key]:
    """Keys that were woken."""
    return []


@pytest.fixture
def intake(cache: Cache, woken: list[Key]) -> Intake:
    """For the whole cluster."""
    return make_intake(cache, woken)


def make_intake(cache: Cache, woken: list[Key], *, namespaces: tuple[str, ...] = ()) -> Intake:
    """LoRAFineTunes alone, so that their list is the first and the last."""
    finetunes = Source(resource=FINETUNES, store=cache.finetunes, wake=woken.append)
    return Intake([finetunes], namespaces=namespaces, wake=woken.append)


def names(cache: Cache) -> list[str]:
    return sorted(finetune.name for finetune in cache.finetunes)


def test_a_list_goes_into_the_cache_and_kopf_sees_only_from_where_to_watch(
    intake: Intake, cache: Cache, woken: list[Key]
) -> None:
    """Chunk by chunk, with the same version and the same token."""
    first = intake.take_list(ALL, {"limit": "1"}, chunk(finetune("a"), more="next"))
    assert first["items"] == []
    assert first["metadata"] == {"resourceVersion": "10", "continue": "next"}
    assert intake.take_list(ALL, {"limit": "1", "continue": "next"}, chunk(finetune("b")))["items"] == []
    assert names(cache) == ["a", "b"]
    assert sorted(woken) == [Key("team", "a"), Key("team", "b")]


def test_what_a_new_list_does_not_hold_is_forgotten_at_its_end(intake: Intake, cache: Cache, woken: list[Key]) -> None:
    """It was deleted while no watch could tell; its Job is none of this list's business."""
    intake.take_list(ALL, {}, chunk(finetune("a"), finetune("b")))
    woken.clear()
    intake.take_list(ALL, {}, chunk(finetune("a"), version="20", more="next"))
    assert names(cache) == ["a", "b"]
    intake.take_list(ALL, {"continue": "next"}, chunk(version="20"))
    assert names(cache) == ["a"]
    assert woken == [Key("team", "b")]


def test_a_list_that_was_cut_removes_nothing(intake: Intake, cache: Cache) -> None:
    """And what it held is no reason for the next one to keep that."""
    intake.take_list(ALL, {}, chunk(finetune("a"), finetune("b")))
    intake.take_list(ALL, {}, chunk(finetune("c"), version="20", more="next"))
    assert names(cache) == ["a", "b", "c"]
    intake.take_list(ALL, {}, chunk(finetune("a"), finetune("b"), version="21"))
    assert names(cache) == ["a", "b"]


def test_what_a_list_brought_that_was_cut_wakes_all_the_same(intake: Intake, woken: list[Key]) -> None:
    """To the list that follows it is no news, and a new run that nobody is told of would never be looked at."""
    intake.take_list(ALL, {}, chunk(finetune("a"), more="next"))
    intake.take_list(ALL, {}, chunk(finetune("a"), version="11", more="next"))
    intake.take_list(ALL, {"continue": "next"}, chunk(finetune("b"), version="11"))
    assert sorted(woken) == [Key("team", "a"), Key("team", "b")]
    woken.clear()
    intake.take_list(ALL, {}, chunk(finetune("c"), version="20", more="next"))
    intake.take_list(ALL, {}, chunk(finetune("c"), version="21", more="next"))
    assert woken == [Key("team", "c")]


def test_what_was_deleted_between_two_chunks_does_not_come_back(intake: Intake, cache: Cache) -> None:
    """The watch of before, or our own write, told of it."""
    intake.take_list(ALL, {}, chunk(finetune("a"), finetune("b"), more="next"))
    cache.finetunes.remove(finetune("c", version="12"))
    intake.take_list(ALL, {"continue": "next"}, chunk(finetune("c")))
    assert names(cache) == ["a", "b"]


def test_a_list_of_one_namespace_leaves_the_others_alone(cache: Cache, woken: list[Key]) -> None:
    """Each is listed by itself."""
    intake = make_intake(cache, woken, namespaces=("team", "other"))
    intake.take_list(FINETUNES.path("other"), {}, chunk(finetune("b", namespace="other")))
    intake.take_list(TEAM, {}, chunk(finetune("a")))
    assert names(cache) == ["a", "b"]
    assert not intake.follows(ALL)


def test_nobody_is_woken_before_each_list_has_come(cache: Cache) -> None:
    """A run whose Job is not listed yet would look as if it had none."""
    woken: list[Key] = []
    took: list[bool] = []
    sources = [
        Source(resource=FINETUNES, store=cache.finetunes, wake=woken.append),
        Source(resource=JOBS, store=cache.jobs, wake=woken.append),
    ]
    intake = Intake(sources, namespaces=(), wake=woken.append, took=lambda: took.append(complete()))

    def complete() -> bool:
        return intake.complete

    intake.take_list(ALL, {}, chunk(finetune("a"), more="next"))
    intake.take_list(ALL, {"continue": "next"}, chunk(finetune("b")))
    assert (woken, took) == ([], [False, False])
    intake.take_list(JOBS.path(None), {}, chunk())
    assert sorted(woken) == [Key("team", "a"), Key("team", "b")]
    assert took == [False, False, True]


def event(kind: str, document: dict[str, Any]) -> bytes:
    return orjson.dumps({"type": kind, "object": document})


BOOKMARK = b'{"type":"BOOKMARK","object":{"metadata":{"resourceVersion":"%s"}}}\n'


def test_events_go_into_the_cache_and_kopf_sees_the_last_version(
    intake: Intake, cache: Cache, woken: list[Key]
) -> None:
    """One bookmark stands for all that came at once."""
    lines = [
        event("ADDED", finetune("a")),
        event("MODIFIED", finetune("a", version="6")),
        event("ADDED", finetune("b")),
    ]
    lines.append(event("DELETED", finetune("b", version="7")))
    assert list(intake.take_events(ALL, lines)) == [BOOKMARK % b"7"]
    assert names(cache) == ["a"]
    assert woken == [Key("team", name) for name in "aabb"]
    assert list(intake.take_events(ALL, [event("ADDED", finetune("a"))])) == [BOOKMARK % b"5"]
    assert len(woken) == 4, "an event that is told again wakes nobody"


@pytest.mark.parametrize("line", [event("ERROR", {"code": 410}), event("BOOKMARK", {}), b'{"type": "ADD', b"7", b"[]"])
def test_what_is_no_event_of_an_object_is_kopfs(intake: Intake, cache: Cache, line: bytes) -> None:
    """In its place among the events."""
    lines = [event("ADDED", finetune("a")), line, event("ADDED", finetune("b", version="6"))]
    assert list(intake.take_events(ALL, lines)) == [BOOKMARK % b"5", line + b"\n", BOOKMARK % b"6"]
    assert names(cache) == ["a", "b"]


async def test_lists_and_events_are_taken_out_of_the_answers(intake: Intake, cache: Cache) -> None:
    """A single object, another kind and an error are kopf's own; so is a line that the server did not end."""
    half = b'{"type":"ADDED","obj'

    async def serve(request: web.Request) -> web.StreamResponse:
        if "watch" not in request.query:
            status = 500 if "broken" in request.query else 200
            return web.json_response(chunk(finetune(request.query.get("name", "a"))), status=status)
        response = web.StreamResponse()
        await response.prepare(request)
        line = event("ADDED", finetune("w" * 100, version="6")) + b"\n"
        for part in (line[:20], line[20:50], line[50:] + line, half):
            await response.write(part)
            await asyncio.sleep(0.01)
        return response

    application = web.Application()
    application.router.add_get("/{path:.*}", serve)
    async with TestServer(application) as server:
        response_class = intake.response_class(aiohttp.ClientResponse)
        async with aiohttp.ClientSession(response_class=response_class) as session:

            async def items(path: str) -> list[Any]:
                async with session.get(server.make_url(path)) as response:
                    document = await response.json()
                    assert isinstance(document, dict)
                    return list(document["items"])

            assert len(await items(f"{ALL}/one?name=o")) == 1
            assert len(await items(f"{JOBS.path(None)}?name=o")) == 1
            assert len(await items(f"{ALL}?broken=true&name=e")) == 1
            assert names(cache) == []
            assert await items(f"{ALL}?limit=500") == []
            assert names(cache) == ["a"]
            async with session.get(server.make_url(f"{ALL}?watch=true")) as response:
                told = b"".join([part async for part in response.content.iter_chunked(1024)])
            assert told.replace(BOOKMARK % b"6", b"") == half
            assert names(cache) == ["a", "w" * 100]
            async with session.get(server.make_url(f"{JOBS.path(None)}?watch=true")) as response:
                assert (await response.content.read()).count(b"ADDED") == 3
