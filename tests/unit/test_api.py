"""What the API server's refusals become, with a client that answers from a script."""

import json
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Any, cast
from urllib.parse import parse_qs, urlsplit

import aiohttp
import pytest
from kubernetes.aio.client import Configuration

from lora_operator.cluster.api import LARGEST_CHUNK, LONGEST_WAIT_S, MOST_PAUSES, PODS, Api, ApiError, UnreachableError

if TYPE_CHECKING:
    from kubernetes.aio.client.api_client import ApiClient


class Answer:
    """One answer of a server."""

    def __init__(self, status: int, body: bytes, headers: dict[str, str]) -> None:
        self.status = status
        self.headers = headers
        self._body = body
        self.response = self
        self.content = self
        self.read_bytes = 0
        self.closed = False

    async def read(self) -> bytes:
        return self._body

    async def iter_any(self) -> AsyncIterator[bytes]:
        """As it comes from the network."""
        for begin in range(0, len(self._body), 65536):
            data = self._body[begin : begin + 65536]
            self.read_bytes += len(data)
            yield data

    def close(self) -> None:
        self.closed = True


class ScriptedClient:
    """Gives these answers in turn, and the last one for ever."""

    def __init__(self, *answers: Answer) -> None:
        self.configuration = Configuration(host="https://server.example")
        self.asked = 0
        self.urls: list[str] = []
        self.limits_s: dict[str, float | None] = {}
        self._answers = answers

    async def call_api(
        self, method: str, url: str, *_: Any, _request_timeout: aiohttp.ClientTimeout, **__: Any
    ) -> Answer:
        self.asked += 1
        self.limits_s[method] = _request_timeout.total
        self.urls.append(url)
        return self._answers[min(self.asked, len(self._answers)) - 1]


BUSY = Answer(429, b'{"reason": "TooManyRequests"}', {"Retry-After": "2"})


async def refusal(status: int, body: bytes = b"{}", **headers: str) -> ApiError:
    """The error that an answer becomes."""
    client = ScriptedClient(Answer(status, body, {name.replace("_", "-"): value for name, value in headers.items()}))
    with pytest.raises(ApiError) as caught:
        await Api(cast("ApiClient", client)).get(PODS, "team-a", "x")
    return caught.value


@pytest.mark.parametrize(
    ("header", "wait_s"),
    [({"Retry_After": "7"}, 7), ({}, 0), ({"Retry_After": "soon"}, 0), ({"Retry_After": "99999"}, LONGEST_WAIT_S)],
)
async def test_a_server_that_asks_for_time_gets_it_within_reason(header: dict[str, str], wait_s: float) -> None:
    """Priority and fairness answers 429 with the seconds after which to come again."""
    error = await refusal(429, b'{"reason": "TooManyRequests", "message": "slow down"}', **header)
    assert (error.code, error.reason, error.message) == (429, "TooManyRequests", "slow down")
    assert error.retry_after_s == wait_s
    assert error.is_passing


@pytest.mark.parametrize(("busy", "asked"), [(MOST_PAUSES, MOST_PAUSES + 1), (MOST_PAUSES + 1, MOST_PAUSES + 1)])
async def test_a_busy_server_is_asked_again_after_the_time_that_it_names(busy: int, asked: int) -> None:
    """So often and no more: then the caller is told."""
    slept: list[float] = []

    async def sleep(seconds: float) -> None:
        slept.append(seconds)

    client = ScriptedClient(*[BUSY] * busy, Answer(200, b'{"kind": "Pod"}', {}))
    api = Api(cast("ApiClient", client), sleep=sleep)
    if busy <= MOST_PAUSES:
        assert await api.get(PODS, "team-a", "x") == {"kind": "Pod"}
    else:
        with pytest.raises(ApiError) as caught:
            await api.get(PODS, "team-a", "x")
        assert (caught.value.code, caught.value.retry_after_s) == (429, 2)
    assert client.asked == asked
    assert slept == [2] * MOST_PAUSES


async def test_an_answer_that_is_no_document_is_reported_as_it_is() -> None:
    """A proxy in between speaks HTML."""
    error = await refusal(502, b"<html>bad gateway</html>")
    assert (error.reason, error.message) == ("Unknown", "<html>bad gateway</html>")


@pytest.mark.parametrize("body", [b"<html>back soon</html>", b'["ok"]', b"null", b'"ok"'])
async def test_a_success_that_is_no_object_is_as_good_as_no_answer(body: bytes) -> None:
    """A proxy's page must not end the process that reads it; an empty answer is a success that says nothing."""
    api = Api(cast("ApiClient", ScriptedClient(Answer(200, body, {}))))
    with pytest.raises(UnreachableError, match="is not a JSON object, so it is not the API server's"):
        await api.create(PODS, "team-a", {})
    with pytest.raises(UnreachableError):
        await api.read(PODS.path("team-a"), {"limit": "20"})
    assert await Api(cast("ApiClient", ScriptedClient(Answer(200, b"", {})))).get(PODS, "team-a", "x") == {}


async def test_a_write_may_take_longer_than_the_api_server_gives_its_webhooks() -> None:
    """It gives a request up after 34 s, and its answer says which webhook hangs: nobody who has hung up learns that."""
    client = ScriptedClient(Answer(200, b"{}", {}))
    api = Api(cast("ApiClient", client))
    await api.get(PODS, "team-a", "x")
    await api.create(PODS, "team-a", {})
    await api.merge_patch(PODS, "team-a", "x", {})
    await api.replace_status(PODS, "team-a", "x", {})
    await api.delete(PODS, "team-a", "x", "uid")
    assert client.limits_s == {"GET": 30, "POST": 40, "PATCH": 40, "PUT": 40, "DELETE": 40}


async def test_small_objects_are_listed_by_more_at_a_time_and_large_ones_by_few() -> None:
    """A chunk of those that no user wrote notes on takes a request less often; none may fill the memory."""

    def chunk(size: int, count: int, token: str) -> Answer:
        items = [{"metadata": {"name": "x" * size}}] * count
        body = {"metadata": {"resourceVersion": "7", "continue": token}, "items": items}
        return Answer(200, json.dumps(body).encode(), {})

    nothing = Answer(200, b"", {})  # from a gateway
    answers = (chunk(10_000, 20, "a"), chunk(40_000, 80, "b"), chunk(200_000, 26, "c"), nothing)
    client = ScriptedClient(*answers)
    chunks = [found async for found in Api(cast("ApiClient", client)).list_chunks(PODS, None, {})]
    assert [len(found.documents) for found in chunks] == [20, 80, 26, 0]
    limits = [parse_qs(urlsplit(url).query)["limit"] for url in client.urls]
    assert limits == [["20"], ["80"], ["26"], ["20"]]


async def test_a_webhook_that_plays_the_busy_server_holds_no_worker() -> None:
    """Its code and its Retry-After are about one object; a worker that waits for it serves nobody."""
    body = b'{"message": "admission webhook \\"costs.example\\" denied the request: later"}'
    client = ScriptedClient(Answer(429, body, {"Retry-After": "2"}))
    with pytest.raises(ApiError) as caught:
        await Api(cast("ApiClient", client)).create(PODS, "team-a", {})
    assert caught.value.is_of_webhook
    assert client.asked == 1


@pytest.mark.parametrize("uid", ["u", "another"])
async def test_a_deletion_that_meets_a_change_of_the_object_is_no_success(uid: str) -> None:
    """Nor does the code tell that from a precondition that failed: whose the name is by now does."""
    modified = Answer(409, b'{"reason": "Conflict", "message": "the object has been modified"}', {})
    there = Answer(200, json.dumps({"metadata": {"uid": uid}}).encode(), {})
    delete = Api(cast("ApiClient", ScriptedClient(modified, there))).delete(PODS, "team-a", "x", "u")
    if uid == "another":
        await delete
        return
    with pytest.raises(ApiError):
        await delete


@pytest.mark.parametrize("code", [404, 409])
async def test_a_deletion_that_a_webhook_denies_is_no_success(code: int) -> None:
    """What is gone, or another's by now, is; a Job that lives and holds GPUs is not."""
    own = Answer(code, b'{"message": "jobs not found"}', {})
    gone = Answer(404, b"{}", {})
    await Api(cast("ApiClient", ScriptedClient(own, gone))).delete(PODS, "team-a", "x", "u")
    denied = Answer(code, b'{"message": "admission webhook \\"keep.example\\" denied the request"}', {})
    with pytest.raises(ApiError):
        await Api(cast("ApiClient", ScriptedClient(denied))).delete(PODS, "team-a", "x", "u")


def of_size(size: int, token: str = "") -> Answer:
    """A chunk of so many bytes."""
    body = {"metadata": {"resourceVersion": "7", "continue": token}, "items": [{"note": "x" * size}]}
    return Answer(200, json.dumps(body).encode(), {})


async def test_a_chunk_that_is_larger_than_foreseen_is_dropped_and_asked_for_in_smaller_ones() -> None:
    """Small objects come first, and then eighty as large as etcd takes them: a hundred mebibytes."""
    huge = of_size(10 * LARGEST_CHUNK)
    answers = (of_size(100, "a"), huge, huge, of_size(3_000_000, "b"), of_size(3_000_000))
    client = ScriptedClient(*answers)
    chunks = [found async for found in Api(cast("ApiClient", client)).list_chunks(PODS, None, {})]
    queries = [parse_qs(urlsplit(url).query) for url in client.urls]
    assert [query["limit"] for query in queries] == [["20"], ["80"], ["20"], ["5"], ["1"]]
    assert [query.get("continue") for query in queries] == [None, ["a"], ["a"], ["a"], ["b"]]
    assert [len(found.documents) for found in chunks] == [1, 1, 1]
    assert huge.closed
    assert huge.read_bytes <= 2 * (LARGEST_CHUNK + 65536)


async def test_one_object_that_is_larger_than_any_can_be_ends_the_list() -> None:
    """Whatever stands between us and the API server made it."""
    client = ScriptedClient(of_size(30_000_000))
    with pytest.raises(UnreachableError, match="more than"):
        [found async for found in Api(cast("ApiClient", client)).list_chunks(PODS, None, {}, most=1)]
