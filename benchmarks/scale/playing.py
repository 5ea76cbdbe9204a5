"""What parts of the benchmark share: pods whose kubelet is played, and waiting until the operator is at rest."""

import queue
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from benchmarks.scale.connections import Connection, Connections, Object, Watch
from benchmarks.scale.creation import CONNECTIONS
from benchmarks.scale.fleet import PASSED, STRATEGIC, ended, unplayed_preflight
from benchmarks.scale.processes import Operator, wait_until

from localcluster.api import Api

# Kubernetes' own 20 requests a second would take minutes to give 1,000 Jobs their pods; creation is measured with it.
CONTROLLER_RATE = 300


def play(connections: Connections, namespace: str, statuses: dict[str, Object]) -> None:
    """Write the status of each pod, as a kubelet would."""
    path = f"/api/v1/namespaces/{namespace}/pods"
    patches = [(f"{path}/{name}/status", {"status": status}) for name, status in statuses.items()]
    connections.send_all("PATCH", patches, STRATEGIC)


def server_metrics(api: Api) -> str:
    """The API server's own metrics."""
    connection = Connection(api)
    try:
        return connection.send("GET", "/metrics").decode()
    finally:
        connection.close()


def condition_of(document: Object, kind: str) -> Object:
    """A condition of a LoRAFineTune or a Job; empty where it has none."""
    conditions = document.get("status", {}).get("conditions", [])
    return next((c for c in conditions if c["type"] == kind), {})


def running_run(document: Object) -> str | None:
    """The name of a run all of whose pods run."""
    return str(document["metadata"]["name"]) if condition_of(document, "PodsReady").get("status") == "True" else None


def failed_run(document: Object) -> str | None:
    """The name of a run that has failed."""
    return str(document["metadata"]["name"]) if condition_of(document, "Failed").get("status") == "True" else None


def failed_job(document: Object) -> str | None:
    """The name of the run whose Job has failed."""
    failed = condition_of(document, "Failed").get("status") == "True"
    return str(document["metadata"]["labels"]["lora-operator.io/name"]) if failed else None


def settle(operator: Operator, turns: int) -> None:
    """Wait until it has looked at so many resources, and has then written nothing for a while."""
    wait_until(lambda: operator.turns() >= turns, "every resource was looked at")
    last, quiet = -1.0, 0

    def settled() -> bool:
        nonlocal last, quiet
        now = operator.writes()
        quiet = quiet + 1 if now == last else 0
        last = now
        return quiet >= 5

    wait_until(settled, "the operator has nothing to do", interval_s=1)


@contextmanager
def connections_to(api: Api) -> Iterator[Connections]:
    """Some connections, given back afterwards."""
    connections = Connections(api, CONNECTIONS)
    try:
        yield connections
    finally:
        connections.close()


class Preflights:
    """Within it, each preflight of a namespace has passed as soon as its pod is there."""

    def __init__(self, api: Api, namespace: str) -> None:
        self._api, self._namespace = api, namespace
        self._pods: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._play, daemon=True)
        self._watch = Watch(api, f"/api/v1/namespaces/{namespace}/pods", self._found, names_only=True)

    def __enter__(self) -> "Preflights":
        self._watch.__enter__()
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._watch.__exit__()
        self._pods.put(None)
        self._thread.join()

    def _found(self, pod: Object) -> str | None:
        run = unplayed_preflight(pod)
        if run is not None and run not in self._watch.seen:
            self._pods.put(str(pod["metadata"]["name"]))
        return run

    def _play(self) -> None:
        with connections_to(self._api) as connections:
            while (pod := self._pods.get()) is not None:
                play(connections, self._namespace, {pod: ended(PASSED)})
