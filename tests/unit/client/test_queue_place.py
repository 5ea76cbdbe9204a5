"""A run's place in the queue, by the label that it has or by the queue that the operator gave it."""

from typing import Any

import pytest
from tests.unit.client.resources import condition, resource

from lora_client.cluster import queue_place
from lora_client.cluster.connection import ApiError, Cluster, UnreachableError
from lora_client.cluster.queue_place import QueuePlace
from lora_client.errors import ClientError
from lora_client.views.refusals import Refusal

Object = dict[str, Any]


class Visibility(Cluster):
    """Says of each queue that one is ahead of the run's Job, after these failures."""

    def __init__(self, *failures: ClientError) -> None:
        self.namespace = "team-a"
        self.failures = list(failures)
        self.versions: list[str] = []

    def request(self, method: str, path: str, **_: Any) -> Object:
        assert path.endswith("/namespaces/team-a/localqueues/gold/pendingworkloads")
        self.versions.append(path.split("/")[3])
        if self.failures:
            raise self.failures.pop(0)
        owner = {"kind": "Job", "name": "tone-abcde-1"}
        return {"items": [{"metadata": {"ownerReferences": [owner]}, "positionInLocalQueue": 1}]}


@pytest.mark.parametrize(
    ("labels", "queue", "want"),
    [
        ({"kueue.x-k8s.io/queue-name": "gold"}, "", "1 ahead in queue gold"),
        ({}, "gold", "1 ahead in queue gold"),
        ({"kueue.x-k8s.io/queue-name": "gold"}, "silver", "1 ahead in queue gold"),
        ({}, "", ""),
    ],
)
def test_the_place_in_the_queue_that_the_run_is_in(labels: Object, queue: str, want: str) -> None:
    """Its own label wins, as it does with the operator."""
    run = waiting(queue)
    run["metadata"]["labels"] = labels
    assert QueuePlace(Visibility()).of(run) == want


def waiting(queue: str) -> Object:
    """A run whose Job waits in a queue that the operator gave it."""
    reserved = condition("QuotaReserved", "False", "Pending")
    status = {"jobName": "tone-abcde-1", "conditions": [reserved], "resolved": {"pod": {"queue": queue}}}
    return resource(status=status)


def refused(code: int, kind: str = "") -> ApiError:
    """The server's answer of that code, about an object of that kind."""
    return ApiError(Refusal(code=code, reason="", message="", kind=kind))


@pytest.mark.parametrize(
    ("failures", "want"),
    [
        ([], ["v1beta2"] * 4),
        ([refused(503), refused(500), refused(429)], ["v1beta2"] * 4),
        ([UnreachableError("away")], ["v1beta2"] * 4),
        ([refused(404)], ["v1beta2", "v1beta1", "v1beta1", "v1beta1"]),
        ([refused(404), refused(503)], ["v1beta2", "v1beta1", "v1beta1", "v1beta1"]),
        ([refused(404, "localqueue")], ["v1beta2"] * 4),
        ([refused(403), refused(403)], ["v1beta2", "v1beta1"]),
        ([refused(404), refused(404)], ["v1beta2", "v1beta1"]),
    ],
    ids=["served", "busy", "unreachable", "older", "older and busy", "no such queue yet", "forbidden", "no Kueue"],
)
def test_only_a_version_that_is_not_there_for_the_user_is_not_asked_again(
    failures: list[ClientError], want: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A server that is down for a moment, or a queue that is made later, costs the place for that moment alone."""
    monkeypatch.setattr(queue_place, "INTERVAL_S", 0.0)
    server = Visibility(*failures)
    place = QueuePlace(server)
    shown = [place.of(waiting("gold")) for _ in range(4)]
    assert server.versions == want
    answered = len(want) - len(failures)
    assert shown == [""] * len(failures) + ["1 ahead in queue gold"] * answered + [""] * (4 - len(want))


def test_the_place_is_asked_for_now_and_then(monkeypatch: pytest.MonkeyPatch) -> None:
    """Between two questions the last answer stands."""
    now = [100.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    server = Visibility()
    place = QueuePlace(server)
    for now[0] in (100.0, 109.0, 110.0):
        assert place.of(waiting("gold")) == "1 ahead in queue gold"
    assert len(server.versions) == 2
