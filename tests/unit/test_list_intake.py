"""kopf's lists on their way into the cache."""

from typing import Any

import aiohttp
import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from lora_operator.cluster.api import FINETUNES, JOBS
from lora_operator.cluster.cache import Cache, Key
from lora_operator.cluster.list_intake import ListIntake

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
def intake(cache: Cache, woken: list[Key]) -> ListIntake:
    """For the whole cluster."""
    return ListIntake([(FINETUNES, cache.finetunes), (JOBS, cache.jobs)], namespaces=(), wake=woken.append)


def names(cache: Cache) -> list[str]:
    return sorted(finetune.name for finetune in cache.finetunes)


def test_a_list_goes_into_the_cache_and_kopf_sees_only_from_where_to_watch(
    intake: ListIntake, cache: Cache, woken: list[Key]
) -> None:
    """Chunk by chunk, with the same version and the same token."""
    first = intake.take(ALL, {"limit": "1"}, chunk(finetune("a"), more="next"))
    assert first["items"] == []
    assert first["metadata"] == {"resourceVersion": "10", "continue": "next"}
    assert intake.take(ALL, {"limit": "1", "continue": "next"}, chunk(finetune("b")))["items"] == []
    assert names(cache) == ["a", "b"]
    assert sorted(woken) == [Key("team", "a"), Key("team", "b")]


def test_what_a_new_list_does_not_hold_is_forgotten_at_its_end(
    intake: ListIntake, cache: Cache, woken: list[Key]
) -> None:
    """It was deleted while no watch could tell; its Job is none of this list's business."""
    intake.take(ALL, {}, chunk(finetune("a"), finetune("b")))
    woken.clear()
    intake.take(ALL, {}, chunk(finetune("a"), version="20", more="next"))
    assert names(cache) == ["a", "b"]
    intake.take(ALL, {"continue": "next"}, chunk(version="20"))
    assert names(cache) == ["a"]
    assert woken == [Key("team", "b")]


def test_a_list_that_was_cut_comes_to_nothing(intake: ListIntake, cache: Cache) -> None:
    """It removes nothing, and what it held is no reason for the next one to keep that."""
    intake.take(ALL, {}, chunk(finetune("a"), finetune("b")))
    intake.take(ALL, {}, chunk(finetune("c"), version="20", more="next"))
    assert names(cache) == ["a", "b", "c"]
    intake.take(ALL, {}, chunk(finetune("a"), finetune("b"), version="21"))
    assert names(cache) == ["a", "b"]


def test_what_was_deleted_between_two_chunks_does_not_come_back(intake: ListIntake, cache: Cache) -> None:
    """The watch of before, or our own write, told of it."""
    intake.take(ALL, {}, chunk(finetune("a"), finetune("b"), more="next"))
    cache.finetunes.remove(finetune("c"))
    intake.take(ALL, {"continue": "next"}, chunk(finetune("c")))
    assert names(cache) == ["a", "b"]


def test_a_list_of_one_namespace_leaves_the_others_alone(cache: Cache, woken: list[Key]) -> None:
    """Each is listed by itself."""
    intake = ListIntake([(FINETUNES, cache.finetunes)], namespaces=["team", "other"], wake=woken.append)
    intake.take(FINETUNES.path("other"), {}, chunk(finetune("b", namespace="other")))
    intake.take(TEAM, {}, chunk(finetune("a")))
    assert names(cache) == ["a", "b"]
    assert not intake.follows(ALL)


async def test_only_lists_are_taken_out_of_the_answers(intake: ListIntake, cache: Cache) -> None:
    """A watch, a single object and an error are kopf's own."""

    async def serve(request: web.Request) -> web.Response:
        status = 500 if "broken" in request.query else 200
        return web.json_response(chunk(finetune(request.query.get("name", "a"))), status=status)

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

            assert len(await items(f"{ALL}?watch=true&name=w")) == 1
            assert len(await items(f"{ALL}/one?name=o")) == 1
            assert len(await items(f"{ALL}?broken=true&name=e")) == 1
            assert names(cache) == []
            assert await items(f"{ALL}?limit=500") == []
            assert names(cache) == ["a"]
