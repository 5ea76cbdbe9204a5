"""Interrupted runs on a real node with the real trainer: they go on where they were, and nothing is trained twice."""

import time
from typing import Any

from tests.e2e.conftest import Installed
from tests.e2e.support import (
    CLAIM,
    PATIENCE_S,
    SLOW,
    finetune,
    long_rows,
    pods,
    rows,
    status,
    verdict,
    wait_end,
    wait_reason,
)

from localcluster.client import Client


def _wait_step(client: Client, namespace: str, name: str, step: int, timeout_s: float = PATIENCE_S) -> int:
    """Wait until the status tells at least that step; the step that it tells."""
    deadline = time.monotonic() + timeout_s
    while True:
        stated: int = status(client, namespace, name).get("progress", {}).get("step", 0)
        if stated >= step:
            return stated
        assert time.monotonic() < deadline, f"{name} is still at step {stated}"


def _interrupted(installed: Installed, namespace: str, name: str, *flags: str, **changes: Any) -> tuple[int, Any]:
    """Train to step 6, delete the pod with `flags`, and wait for the end: the step told before, and the status."""
    client = installed.client
    client.apply(CLAIM, long_rows(), finetune(name, training=SLOW, **changes), namespace=namespace)
    # Its name beforehand: with every start of kubectl the run comes nearer to its end.
    client.wait(f"lft/{name}", "jsonpath={.status.podName}", namespace=namespace, timeout_s=PATIENCE_S)
    (pod,) = pods(client, namespace)
    before = _wait_step(client, namespace, name, 6)
    client.kubectl("delete", "pod", pod["metadata"]["name"], f"--namespace={namespace}", *flags, timeout_s=PATIENCE_S)
    return before, wait_end(client, namespace, name)


def test_a_run_whose_pod_is_deleted_goes_on_at_the_step_that_it_had_reached(
    installed: Installed, namespace: str
) -> None:
    """SIGTERM saves the last whole step: no step is lost, and the adapter is complete and verified."""
    before, ended = _interrupted(installed, namespace, "moved")
    assert verdict(ended)[:2] == ("True", "Succeeded")
    assert ended["results"]["resumedStep"] >= before
    assert ended["results"]["steps"] == SLOW["maxSteps"]


def test_a_run_whose_pod_is_deleted_by_force_loses_no_more_than_the_distance_of_checkpoints(
    installed: Installed, namespace: str
) -> None:
    """Without a grace period, in which nothing need be saved at the end: at most the steps since the last save go."""
    flags = ("--grace-period=0", "--force")
    before, ended = _interrupted(installed, namespace, "killed", *flags, checkpoint={"intervalSteps": 3})
    assert verdict(ended)[:2] == ("True", "Succeeded")
    assert ended["results"]["resumedStep"] >= before - 3
    assert ended["results"]["steps"] == SLOW["maxSteps"]


def test_a_suspended_run_goes_on_at_its_step(installed: Installed, namespace: str) -> None:
    """suspend: true saves and frees the pod; suspend: false resumes, as a queue's preemption would."""
    client = installed.client
    client.apply(CLAIM, long_rows(), finetune("paused", training=SLOW), namespace=namespace)
    before = _wait_step(client, namespace, "paused", 6)
    patch = ("patch", "lft", "paused", "--type=merge", f"--namespace={namespace}")
    client.kubectl(*patch, '--patch={"spec":{"suspend":true}}')
    wait_reason(client, namespace, "paused", "Suspended", "SuspendedByUser")
    for pod in pods(client, namespace):
        client.wait(f"pod/{pod['metadata']['name']}", "delete", namespace=namespace, timeout_s=PATIENCE_S)
    client.kubectl(*patch, '--patch={"spec":{"suspend":false}}')
    wait_reason(client, namespace, "paused", "Suspended", "NotSuspended")
    ended = wait_end(client, namespace, "paused")
    assert verdict(ended)[:2] == ("True", "Succeeded")
    assert ended["results"]["resumedStep"] >= before


def test_another_run_goes_on_from_a_finished_ones_checkpoint(installed: Installed, namespace: str) -> None:
    """resumeFrom: the second run takes the first one's last checkpoint and trains on to its own end."""
    client = installed.client
    training = {"effectiveBatchSize": 2, "maxSequenceLength": 128}
    client.apply(CLAIM, rows(), finetune("short", training={**training, "maxSteps": 4}), namespace=namespace)
    assert verdict(wait_end(client, namespace, "short"))[:2] == ("True", "Succeeded")
    longer = finetune("longer", training={**training, "maxSteps": 8}, resumeFrom={"name": "short"})
    client.apply(longer, namespace=namespace)
    ended = wait_end(client, namespace, "longer")
    assert verdict(ended)[:2] == ("True", "Succeeded")
    assert ended["results"]["resumedStep"] == 4
    assert ended["results"]["steps"] == 8
