"""A helper pod is gone afterwards, whenever the command ends and whatever the network does."""

from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any

import pytest
from tests.unit.client.resources import finished, resource

from lora_client.cluster import helper as module
from lora_client.cluster.connection import ApiError, Cluster, UnreachableError
from lora_client.cluster.helper import helper
from lora_client.errors import ClientError
from lora_client.views.helper_pod import Need
from lora_client.views.refusals import Refusal

Object = dict[str, Any]
Fault = Callable[[str], None]


class Server(Cluster):
    """Pods by name; `fault` runs before the answer: after a pod is made, and before it is deleted."""

    def __init__(self, fault: Fault) -> None:
        self.namespace = "team-a"
        self.pods: dict[str, Object] = {}
        self.fault = fault

    def items(
        self, plural: str, query: Mapping[str, str] | None = None, *, everywhere: bool = False, version: str = ""
    ) -> list[Object]:
        return []

    def request(
        self,
        method: str,
        path: str,
        *,
        query: Mapping[str, str] | None = None,
        body: object = None,
        content_type: str = "application/json",
    ) -> Object:
        name = path.rpartition("/")[2]
        if "persistentvolumeclaims" in path:
            return {"metadata": {"name": name}}
        if method == "POST":
            assert isinstance(body, dict)
            name = body["metadata"].get("name") or body["metadata"]["generateName"] + "abcde"
            metadata = {**body["metadata"], "name": name, "uid": "u"}
            self.pods[name] = {**body, "metadata": metadata, "status": {"phase": "Running"}}
        self.fault(method)
        if name not in self.pods:
            raise ApiError(Refusal(code=404, reason="NotFound", message="x", name=name, kind="pods"))
        return self.pods.pop(name) if method == "DELETE" else self.pods[name]


@pytest.fixture(autouse=True)
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """A clock that only waiting moves."""
    now = [0.0]

    class Clock:
        monotonic = staticmethod(lambda: now[0])

        @staticmethod
        def sleep(seconds: float) -> None:
            now[0] += seconds

    monkeypatch.setattr(module, "time", Clock)


def raise_once(wanted: str, error: BaseException, times: int = 1) -> Fault:
    """So often, at requests of this method."""
    left = [times]

    def fault(method: str) -> None:
        if method == wanted and left[0]:
            left[0] -= 1
            raise error

    return fault


@pytest.mark.parametrize(
    "fault",
    [
        raise_once("POST", KeyboardInterrupt()),
        raise_once("POST", SystemExit(143)),
        raise_once("POST", UnreachableError("no answer")),
        raise_once("GET", KeyboardInterrupt()),
        raise_once("DELETE", UnreachableError("no answer"), times=3),
        raise_once("none", KeyboardInterrupt()),
    ],
)
def test_no_pod_is_left(fault: Fault) -> None:
    """Whenever the command is interrupted, and while the network comes back soon."""
    server = Server(fault)
    with (
        suppress(KeyboardInterrupt, SystemExit, ClientError),
        helper(server, resource(status=finished()), Need(verb="pull")),
    ):
        assert server.pods
    assert not server.pods


def test_a_pod_that_cannot_be_deleted_is_named_with_the_command(capsys: pytest.CaptureFixture[str]) -> None:
    """After some tries; what the command did is not lost for that."""
    server = Server(raise_once("DELETE", UnreachableError("no answer"), times=1000))
    with helper(server, resource(status=finished()), Need(verb="pull")) as name:
        pass
    assert capsys.readouterr().err.splitlines() == [
        f"Pod {name} could not be deleted (no answer): kubectl delete pod {name} -n team-a"
    ]


def test_a_pod_that_was_refused_is_not_deleted() -> None:
    """Another of its name would be."""
    asked: list[str] = []
    refusal = ApiError(Refusal(code=409, reason="AlreadyExists", message="x"))

    def fault(method: str) -> None:
        asked.append(method)
        if method == "POST":
            raise refusal

    with pytest.raises(ApiError), helper(Server(fault), resource(status=finished()), Need(verb="pull")):
        pass
    assert asked == ["POST"]
