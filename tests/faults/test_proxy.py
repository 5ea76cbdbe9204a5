"""The fault proxy does what its rules say, and nothing else."""

import contextlib
import http.client
import json
import time
from collections.abc import Iterator
from typing import Any

import pytest
from tests.component.patience import eventually
from tests.component.stage import Stage
from tests.faults.injections import (
    Answer,
    Cut,
    Delay,
    Freeze,
    HalfDocument,
    Hold,
    Instead,
    LostAnswer,
    Reset,
    Rule,
    StreamFault,
    WatchError,
)
from tests.faults.proxy import FaultProxy

CONFIG_MAP = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "one"}}


@pytest.fixture
def proxy(stage: Stage) -> FaultProxy:
    """A proxy without rules."""
    return stage.proxy()


class Caller:
    """A client of the proxy with the administrator's rights."""

    def __init__(self, stage: Stage, proxy: FaultProxy) -> None:
        self.stage = stage
        self._address = proxy.url.removeprefix("http://")
        self._closing = contextlib.ExitStack()

    def send(self, method: str, path: str, body: Any = None) -> http.client.HTTPConnection:
        """Send one request on a connection of its own."""
        connection = http.client.HTTPConnection(self._address, timeout=30)
        self._closing.callback(connection.close)
        headers = {"Authorization": f"Bearer {self.stage.api.token}", "Content-Type": "application/json"}
        connection.request(method, path, json.dumps(body) if body else None, headers)
        return connection

    def ask(self, method: str, path: str, body: Any = None) -> http.client.HTTPResponse:
        """Send one request and wait for the head of its answer."""
        return self._closing.enter_context(self.send(method, path, body).getresponse())

    def close(self) -> None:
        """End all connections."""
        self._closing.close()

    def create(self) -> int:
        """Create the ConfigMap; the status of the answer."""
        return self.ask("POST", self.stage.path("configmaps"), CONFIG_MAP).status

    def watch(self) -> http.client.HTTPResponse:
        """Watch ConfigMaps; an API server that has just been started anew may end the first watches."""
        return self.ask("GET", self.stage.path("configmaps") + "?watch=true&timeoutSeconds=20")


@pytest.fixture
def caller(stage: Stage, proxy: FaultProxy) -> Iterator[Caller]:
    """A client of the proxy."""
    caller = Caller(stage, proxy)
    yield caller
    caller.close()


def _events(watch: http.client.HTTPResponse) -> Iterator[str]:
    """Names of the objects of a watch's events."""
    while line := watch.readline():
        yield json.loads(line)["object"]["metadata"].get("name", "")


def test_without_rules_it_forwards_and_records(stage: Stage, proxy: FaultProxy, caller: Caller) -> None:
    """What was asked for happens, and each call is known by its verb, its kind, its right and its answer."""
    assert caller.create() == 201
    assert caller.create() == 409
    answer = caller.ask("GET", stage.path("configmaps") + "?limit=1")
    assert json.loads(answer.read())["kind"] == "ConfigMapList"
    assert [(call.what, call.name, call.code) for call in proxy.made("* configmaps")] == [
        ("create configmaps", "one", 201),
        ("create configmaps", "one", 409),
        ("list configmaps", "", 200),
    ]
    caller.ask("PUT", stage.path("lorafinetunes", "tone", "status"), {"metadata": {"name": "tone"}})
    (call,) = proxy.made("update *", about="tone")
    assert (call.right, call.mutates) == ("update lorafinetunes.lora-operator.io/status", True)


def test_an_answer_is_the_servers_own_kind_of_refusal(proxy: FaultProxy, caller: Caller) -> None:
    """A Status with code, reason and Retry-After; the server hears nothing of the request."""
    fault = Answer(code=429, reason="TooManyRequests", message="later", retry_after_s=3)
    rule = proxy.add(Rule(fault=fault, what="create configmaps", skip=1, every=2, times=1))
    assert caller.create() == 201
    refused = caller.ask("POST", caller.stage.path("configmaps"), CONFIG_MAP)
    status = json.loads(refused.read())
    assert (refused.status, refused.getheader("Retry-After")) == (429, "3")
    assert (status["kind"], status["reason"], status["message"]) == ("Status", "TooManyRequests", "later")
    assert [caller.create() for _ in range(3)] == [409, 409, 409]
    assert rule.hits == 1


def test_a_lost_answer_is_lost_after_the_deed_and_a_reset_before_it(
    stage: Stage, proxy: FaultProxy, caller: Caller
) -> None:
    """Both look the same to the client."""
    proxy.add(Rule(fault=Reset(), what="create configmaps", times=1))
    proxy.add(Rule(fault=LostAnswer(), what="create configmaps", times=1))
    for expected in (0, 1):
        with pytest.raises(ConnectionError):
            caller.create()
        assert sum(o["metadata"]["name"] == "one" for o in stage.objects("configmaps")) == expected


@pytest.mark.parametrize("answered", [False, True])
def test_a_held_call_ends_with_its_client(stage: Stage, proxy: FaultProxy, caller: Caller, *, answered: bool) -> None:
    """Held before, it is never forwarded; held afterwards, the deed is done and nobody hears of it."""
    rule = proxy.add(Rule(fault=Hold(answered=answered), what="create configmaps"))
    connection = caller.send("POST", stage.path("configmaps"), CONFIG_MAP)
    eventually(lambda: proxy.held, "the call is held")
    connection.close()
    eventually(lambda: not proxy.held, "the call is given up")
    rule.lift()
    assert caller.create() == (409 if answered else 201)


def test_a_delay_is_waited_for_and_an_other_document_is_given_instead(proxy: FaultProxy, caller: Caller) -> None:
    """The delayed request is answered well; the other document is the test's own."""
    rule = proxy.add(Rule(fault=Delay(seconds=0.3), what="create configmaps"))
    began_s = time.monotonic()
    assert caller.create() == 201
    assert time.monotonic() - began_s >= 0.3
    rule.lift()
    proxy.add(Rule(fault=Instead(document=lambda call: {"kind": call.resource}), what="list configmaps"))
    answer = caller.ask("GET", caller.stage.path("configmaps"))
    assert json.loads(answer.read()) == {"kind": "configmaps"}


def test_lost_events_are_lost_and_the_others_come(stage: Stage, proxy: FaultProxy, caller: Caller) -> None:
    """A watch goes on without the events that the test keeps back."""
    proxy.lose(lambda _, event: event["object"]["metadata"].get("name") == "two")
    events = _events(caller.watch())
    for name in ("one", "two", "three"):
        stage.api.post(stage.path("configmaps"), {"metadata": {"name": name}})
    seen: list[str] = []
    while not {"one", "three"} <= set(seen):
        seen_event = next(events, None)
        if seen_event is None:
            events = _events(caller.watch())
        else:
            seen.append(seen_event)
    assert "two" not in seen


@pytest.mark.parametrize(
    ("fault", "rest"),
    [
        (Cut(), b""),
        (HalfDocument(), b'{"type":"MODIFIED","object":{"apiVersion":"v1","metad'),
        (WatchError(code=410, reason="Expired"), b'{"type": "ERROR", "object": {"kind": "Status", "apiVersion": "v1"'),
        (Reset(), None),
    ],
)
def test_watches_that_go_on_are_broken(
    proxy: FaultProxy, caller: Caller, fault: StreamFault, rest: bytes | None
) -> None:
    """An end in good order, half a document, an ERROR event, a broken connection; None is the latter."""

    def begin_and_break() -> http.client.HTTPResponse | None:
        watch = caller.watch()
        assert proxy.inject(fault, "watch jobs") == 0
        return watch if proxy.inject(fault, "watch configmaps") == 1 else None

    watch = eventually(begin_and_break, "a watch that goes on meets the fault")
    if rest is None:
        with pytest.raises((ConnectionError, http.client.IncompleteRead)):
            _rest(watch)
    else:
        last = _rest(watch).splitlines()[-1:]
        assert (last or [b""])[0].startswith(rest)
    eventually(lambda: not proxy.watching(), "no watch goes on")


def test_a_frozen_watch_stays_and_brings_nothing(stage: Stage, proxy: FaultProxy, caller: Caller) -> None:
    """Of two watches the frozen one is silent while the other one speaks."""
    rule = proxy.add(Rule(fault=Freeze(), what="watch configmaps"))
    connection = caller.send("GET", stage.path("configmaps") + "?watch=true&timeoutSeconds=20")
    frozen = connection.getresponse()
    rule.lift()
    lively = _events(caller.watch())
    stage.api.post(stage.path("configmaps"), CONFIG_MAP)
    while (seen := next(lively, None)) != "one":
        if seen is None:
            lively = _events(caller.watch())
    connection.sock.settimeout(0.5)
    with frozen, pytest.raises(TimeoutError):
        frozen.read(1)
    assert proxy.watching() == 2


def _rest(watch: http.client.HTTPResponse) -> bytes:
    return watch.read()
