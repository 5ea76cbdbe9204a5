"""A run's place in the queue, by the label that it has or by the queue that the operator gave it."""

from typing import Any

import pytest
from tests.unit.client.resources import condition, resource

from lora_client.cluster.connection import Cluster
from lora_client.cluster.queue_place import QueuePlace

Object = dict[str, Any]


class Visibility(Cluster):
    """Says of each queue that one is ahead of the run's Job."""

    def __init__(self) -> None:
        self.namespace = "team-a"

    def request(self, method: str, path: str, **_: Any) -> Object:
        assert path.endswith("/namespaces/team-a/localqueues/gold/pendingworkloads")
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
    reserved = condition("QuotaReserved", "False", "Pending")
    status = {"jobName": "tone-abcde-1", "conditions": [reserved], "resolved": {"pod": {"queue": queue}}}
    run = resource(status=status)
    run["metadata"]["labels"] = labels
    assert QueuePlace(Visibility()).of(run) == want
