"""Leader election, with a clock that the tests turn and an API server that keeps one Lease."""

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from datetime import UTC, datetime, timedelta
from typing import Any, cast

import pytest

from lora_operator.cluster.api import Api, ApiError, Resource, UnreachableError
from lora_operator.cluster.lease import Election, LeaseLostError

Object = dict[str, Any]


class Clock:
    """A clock that is turned by sleeping."""

    def __init__(self) -> None:
        self.now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s

    async def sleep(self, seconds: float) -> None:
        self.now_s += seconds
        await asyncio.sleep(0)

    async def reach(self, moment_s: float) -> None:
        """Let those who sleep turn the clock."""
        for _ in range(10_000):
            if self.now_s >= moment_s:
                return
            await asyncio.sleep(0)
        raise AssertionError("nobody sleeps any more")

    def now(self) -> datetime:
        return datetime(2026, 1, 1, tzinfo=UTC) + timedelta(seconds=self.now_s)


class LeaseServer:
    """One Lease with a resource version. `down` refuses every request, `hanging` never answers one."""

    def __init__(self) -> None:
        self.lease: Object | None = None
        self.version = 0
        self.down = False
        self.hanging = False
        self.on_the_way: Callable[[], Awaitable[None]] = lambda: asyncio.sleep(0)
        self.requests: list[str] = []

    async def get(self, resource: Resource, namespace: str, name: str) -> Object:
        await self._answer("get")
        if self.lease is None:
            raise ApiError(404, "NotFound", "leases not found")
        return self.lease

    async def create(self, resource: Resource, namespace: str, manifest: Mapping[str, Any]) -> Object:
        await self._answer("create")
        if self.lease is not None:
            raise ApiError(409, "AlreadyExists", "leases already exists")
        return self._store(manifest)

    async def request(self, method: str, path: str, *, body: Mapping[str, Any]) -> Object:
        await self._answer("update")
        if self.lease is None:
            raise ApiError(404, "NotFound", "leases not found")
        if body["metadata"]["resourceVersion"] != self.lease["metadata"]["resourceVersion"]:
            raise ApiError(409, "Conflict", "the object has been modified")
        return self._store(body)

    @property
    def holder(self) -> str:
        return str(self.lease["spec"]["holderIdentity"]) if self.lease else ""

    def seize(self, holder: str) -> None:
        """Somebody else writes, whatever stands there."""
        assert self.lease is not None
        self._store({**self.lease, "spec": {**self.lease["spec"], "holderIdentity": holder}})

    def _store(self, document: Mapping[str, Any]) -> Object:
        self.version += 1
        self.lease = {**document, "metadata": {**document["metadata"], "resourceVersion": str(self.version)}}
        return self.lease

    async def _answer(self, verb: str) -> None:
        self.requests.append(verb)
        await self.on_the_way()
        if self.hanging:
            await asyncio.Event().wait()
        if self.down:
            raise UnreachableError("connection refused")


def candidate(server: LeaseServer, clock: Clock, identity: str, **changes: Any) -> Election:
    settings: dict[str, Any] = {"duration_s": 15, "renew_deadline_s": 10.0, "retry_s": 2.0, "random": lambda: 0.0}
    return Election(
        cast("Api", server),
        namespace="lora-system",
        name="lora",
        identity=identity,
        clock=clock,
        sleep=clock.sleep,
        now=clock.now,
        **(settings | changes),
    )


async def test_the_first_candidate_creates_the_lease_and_leads() -> None:
    """The Lease says who, since when and for how long."""
    server, clock = LeaseServer(), Clock()
    first = candidate(server, clock, "a")
    before = first.leading
    await first.acquire()
    assert (before, first.leading) == (False, True)
    assert server.lease is not None
    spec = server.lease["spec"]
    assert (spec["holderIdentity"], spec["leaseDurationSeconds"], spec["leaseTransitions"]) == ("a", 15, 0)
    assert spec["acquireTime"] == spec["renewTime"] == clock.now().strftime("%Y-%m-%dT%H:%M:%S.%fZ")


async def test_a_lease_that_is_not_renewed_is_taken_over_when_it_has_run_out_and_not_before() -> None:
    """Measured from when this candidate saw it, not from the times that the other wrote."""
    server, clock = LeaseServer(), Clock()
    await candidate(server, clock, "a").acquire()
    assert server.lease is not None
    server.lease["spec"]["renewTime"] = "1999-01-01T00:00:00.000000Z"
    began_s = clock()
    second = candidate(server, clock, "b")
    await second.acquire()
    assert clock() - began_s == pytest.approx(15.0)
    assert (server.holder, server.lease["spec"]["leaseTransitions"]) == ("b", 1)


async def test_whoever_leads_keeps_the_lease_from_others_by_renewing_it() -> None:
    """Each renewal starts the others' wait anew, and costs one request."""
    server, clock = LeaseServer(), Clock()
    first, second = candidate(server, clock, "a"), candidate(server, clock, "b")
    await first.acquire()
    keeping = asyncio.create_task(first.keep())
    waiting = asyncio.create_task(second.acquire())
    server.requests.clear()
    began_s = clock()
    await clock.reach(began_s + 100)
    assert (server.holder, first.leading, second.leading) == ("a", True, False)
    assert not waiting.done()
    assert server.requests.count("create") == 0
    for task in (keeping, waiting):
        task.cancel()


async def test_a_lease_that_is_released_is_taken_at_the_next_look() -> None:
    """An upgrade waits for one retry period at most."""
    server, clock = LeaseServer(), Clock()
    first, second = candidate(server, clock, "a"), candidate(server, clock, "b")
    await first.acquire()
    await first.release()
    assert (server.holder, first.leading) == ("", False)
    began_s = clock()
    await second.acquire()
    assert (server.holder, clock() - began_s) == ("b", 0.0)


async def test_the_lease_of_another_is_never_released() -> None:
    """Whoever lost it leaves it alone, whether it knows of the loss or not."""
    server, clock = LeaseServer(), Clock()
    first = candidate(server, clock, "a")
    await first.release()
    assert server.requests == []
    await first.acquire()
    server.seize("b")
    await first.release()
    assert server.holder == "b"


async def test_a_leader_that_cannot_renew_stops_before_the_lease_runs_out() -> None:
    """An API server that refuses: the deadline counts from the last renewal that was stored."""
    server, clock = LeaseServer(), Clock()
    first = candidate(server, clock, "a")
    await first.acquire()
    began_s = clock()
    server.down = True
    with pytest.raises(LeaseLostError, match=r"lora-system/lora could not be renewed for 10 s"):
        await first.keep()
    assert 10 <= clock() - began_s < 15
    assert not first.leading


async def test_the_lease_is_counted_from_before_the_request_that_renewed_it() -> None:
    """The API server may have stored it then, and others count from there: a slow answer gives no more time."""
    server, clock = LeaseServer(), Clock()
    first = candidate(server, clock, "a")
    server.on_the_way = lambda: clock.sleep(4)
    await first.acquire()
    looked_at_s = clock()  # by now it has been read and written, each in 4 s
    assert first.leading
    clock.now_s = looked_at_s + 1.9
    assert first.leading
    clock.now_s = looked_at_s + 2.1
    assert not first.leading, "its last request began more than 10 s ago"


async def test_a_renewal_that_hangs_is_not_waited_for_longer_than_the_deadline() -> None:
    """The deadline cuts the request off."""
    server, clock = LeaseServer(), Clock()
    first = candidate(server, clock, "a", renew_deadline_s=0.05, retry_s=0.01)
    await first.acquire()
    server.hanging = True
    async with asyncio.timeout(300):
        with pytest.raises(LeaseLostError):
            await first.keep()


async def test_a_leader_that_another_has_replaced_stops_at_its_next_renewal() -> None:
    """The conflict shows who holds it."""
    server, clock = LeaseServer(), Clock()
    first = candidate(server, clock, "a")
    await first.acquire()
    server.seize("b")
    with pytest.raises(LeaseLostError, match="lora-system/lora is held by b now"):
        await first.keep()
    assert server.holder == "b"


async def test_a_label_on_the_lease_and_its_deletion_cost_no_leadership() -> None:
    """A conflict is looked into, and a Lease that is gone is made again."""
    server, clock = LeaseServer(), Clock()
    first = candidate(server, clock, "a")
    await first.acquire()
    keeping = asyncio.create_task(first.keep())
    assert server.lease is not None
    server._store({**server.lease, "metadata": {**server.lease["metadata"], "labels": {"seen": "yes"}}})
    began_s = clock()
    await clock.reach(began_s + 20)
    assert (server.lease["metadata"]["labels"], first.leading) == ({"seen": "yes"}, True)
    server.lease = None
    await clock.reach(began_s + 40)
    assert (server.holder, first.leading) == ("a", True)
    assert not keeping.done()
    keeping.cancel()


async def test_a_pod_that_was_restarted_takes_its_own_lease_at_once() -> None:
    """The name is the pod's, and its former process is dead."""
    server, clock = LeaseServer(), Clock()
    await candidate(server, clock, "a").acquire()
    began_s = clock()
    await candidate(server, clock, "a").acquire()
    assert clock() == began_s


async def test_a_standby_waits_through_an_outage_of_the_api_server(caplog: pytest.LogCaptureFixture) -> None:
    """It neither ends nor leads, and says why once."""
    server, clock = LeaseServer(), Clock()
    server.down = True
    waiting = asyncio.create_task(candidate(server, clock, "a").acquire())
    began_s = clock()
    await clock.reach(began_s + 60)
    assert not waiting.done()
    assert caplog.text.count("is not available: connection refused") == 1
    server.down = False
    await waiting
    assert server.holder == "a"


async def test_of_two_that_find_no_lease_one_creates_it() -> None:
    """The API server takes the first and tells the second that there is one."""
    server, clock = LeaseServer(), Clock()
    both = [candidate(server, clock, name) for name in ("a", "b")]
    tasks = [asyncio.create_task(one.acquire()) for one in both]
    await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    assert [one.leading for one in both].count(True) == 1
    for task in tasks:
        task.cancel()
