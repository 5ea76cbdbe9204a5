"""How long from the creation of a resource until the Job that it asks for exists, at a pace or as fast as it goes."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from benchmarks.scale.connections import Connection, Connections, Object, Watch, dump
from benchmarks.scale.machine import percentile
from benchmarks.scale.rows import Measure

from localcluster.api import Api

CONNECTIONS = 8
# A control plane of some seconds compiles rules and fills caches at its first objects: so many go before.
WARM_UP = 60
# A thousand preflights take five minutes; the rest is for a slower machine.
_TIMEOUT_S = 1200.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Kind:
    """What is created and where its Job is seen: the manifest by name, and the name that a Job belongs to."""

    path: str
    manifest: Callable[[str], Object]
    jobs_path: str
    owner_of: Callable[[Object], str | None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Creation:
    """Seconds from each creation to its Job, from the first and from the last creation to the last Job, and the pace
    of the creations."""

    latencies_s: Sequence[float]
    last_job_s: float
    after_last_s: float
    creations_per_second: float

    def measures(self) -> list[Measure]:
        """The numbers of a row."""
        return [
            *latencies(self.latencies_s),
            Measure("last Job after the first creation", self.last_job_s, "s"),
            Measure("last Job after the last creation", self.after_last_s, "s"),
            Measure("creations", self.creations_per_second, "1/s"),
        ]


def latencies(found_s: Sequence[float]) -> list[Measure]:
    """Of times from a creation to its Job."""
    shares = {"p50": 0.5, "p99": 0.99, "max": 1.0}
    return [Measure(name, percentile(found_s, share), "s") for name, share in shares.items()]


def create(api: Api, kind: Kind, names: Sequence[str], rate: float | None) -> Creation:
    """Create resources, `rate` a second or as fast as the API server takes them, and wait for their Jobs.

    Both moments are of this process' monotonic clock: just before the request is sent, and when a watch tells of the
    Job; what the API server takes for both is in it, as a user would see it.
    """
    connections = Connections(api, CONNECTIONS)
    try:
        with Watch(api, kind.jobs_path, kind.owner_of, names_only=True) as jobs:
            sent = _send(connections, kind, names, rate)
            jobs.wait(len(names), _TIMEOUT_S)
            return _creation(sent, jobs.seen)
    finally:
        connections.close()


def _send(connections: Connections, kind: Kind, names: Sequence[str], rate: float | None) -> dict[str, float]:
    bodies = [dump(kind.manifest(name)) for name in names]
    sent: dict[str, float] = {}
    begin_s = time.monotonic() + 0.5

    def send(connection: Connection, number: int) -> None:
        due_s = begin_s + (number / rate if rate else 0)
        time.sleep(max(0.0, due_s - time.monotonic()))
        sent[names[number]] = time.monotonic()
        connection.send("POST", kind.path, bodies[number])

    connections.run(send, len(names))
    return sent


def _creation(sent: Mapping[str, float], seen: Mapping[str, float]) -> Creation:
    first_s = min(sent.values())
    return Creation(
        latencies_s=[seen[name] - sent[name] for name in sent],
        last_job_s=max(seen[name] for name in sent) - first_s,
        after_last_s=max(seen[name] for name in sent) - max(sent.values()),
        creations_per_second=(len(sent) - 1) / (max(sent.values()) - first_s),
    )
