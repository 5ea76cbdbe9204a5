"""The pods of a run, and which of them is meant."""

from collections.abc import Mapping, Sequence
from typing import Any

from lora_client.cluster.connection import Cluster
from lora_operator.model.names import UID_LABEL
from lora_operator.model.objects import PodView
from lora_operator.model.observe import parse_pod


def pods_of(cluster: Cluster, resource: Mapping[str, Any]) -> list[PodView]:
    """All that still exist, newest attempt first and of each the leader first. Raises `ClientError`."""
    selector = {"labelSelector": f"{UID_LABEL}={resource['metadata']['uid']}"}
    pods = [parse_pod(pod) for pod in cluster.items("pods", selector)]
    return sorted(pods, key=lambda pod: (-pod.attempt, -pod.created_at.timestamp(), pod.index))


def choose(pods: Sequence[PodView], *, attempt: int | None, stage: str, index: int) -> PodView | None:
    """The newest pod of an attempt, a stage and a node; None where there is none.

    Without an attempt that is the last one that came to this stage.
    """
    fitting = [pod for pod in pods if pod.stage == stage and pod.index == index]
    return next((pod for pod in fitting if attempt in (None, pod.attempt)), None)
