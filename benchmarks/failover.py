"""How long nobody leads when the leader dies, and when it is told to stop.

    .venv/bin/python benchmarks/failover.py [--rounds 5] [--resources 100]

Starts a control plane of its own (etcd, API server, controller manager, scheduler; no node), creates `--resources`
suspended LoRAFineTunes, and starts two operators with the default settings of their Lease. In each round it ends
the leader, by SIGKILL or by SIGTERM, creates a LoRAFineTune at once, and takes the time until that has a Job:
what a user waits for. The last lines are rows for docs/benchmarks.md.
"""

import argparse
import contextlib
import http.client
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import yaml

REPOSITORY = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(REPOSITORY / "hack"), str(REPOSITORY)]

from localcluster import lifecycle, settings
from localcluster.api import Api
from localcluster.client import HACK_CLUSTER, Client, CommandError, local

NAME = "bench-failover"
NAMESPACE = "default"
FINETUNES = f"/apis/lora-operator.io/v1alpha1/namespaces/{NAMESPACE}/lorafinetunes"
JOBS = f"/apis/batch/v1/namespaces/{NAMESPACE}/jobs"
PATIENCE_S = 120.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """One operator process and the port of its metrics."""

    process: subprocess.Popen[bytes]
    port: int

    @property
    def leads(self) -> bool:
        """Whether it says so."""
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/metrics", timeout=5) as answer:
                return b"\nlora_operator_leader 1.0" in answer.read()
        except (OSError, http.client.HTTPException):
            return False

    @property
    def ready(self) -> bool:
        """Whether it is warm."""
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/readyz", timeout=5):
                return True
        except (OSError, http.client.HTTPException):
            return False


def main() -> int:
    """Measure, print, and take everything down."""
    parser = argparse.ArgumentParser(description="Time without a leader.")
    parser.add_argument("--rounds", type=int, default=5, help="rounds for each signal")
    parser.add_argument("--resources", type=int, default=100, help="LoRAFineTunes that exist beside")
    options = parser.parse_args()
    times: dict[str, list[float]] = {}
    with control_plane() as cluster, tempfile.TemporaryDirectory() as folder:
        record = lifecycle.load_record(settings.places(NAME))
        assert record is not None
        api = lifecycle.api(settings.places(NAME), record.api_port)
        for number in range(options.resources):
            api.post(FINETUNES, finetune(f"beside-{number}", suspend=True))
        with operators(cluster, Path(folder)) as pair:
            for what in (signal.SIGKILL, signal.SIGTERM):
                for number in range(options.rounds):
                    times.setdefault(what.name, []).append(measure(api, pair, what, number))
    for name, taken in times.items():
        report(name, taken, options.resources)
    return 0


class Pair:
    """Two candidates; one that has ended is replaced by a new one."""

    def __init__(self, cluster: Client, folder: Path) -> None:
        self._cluster = cluster
        self._folder = folder
        self.candidates: list[Candidate] = []

    def fill(self) -> Candidate:
        """Start what is missing, and wait until one leads and both are warm; return the leader."""
        self.candidates = [one for one in self.candidates if one.process.poll() is None]
        while len(self.candidates) < 2:
            self.candidates.append(self._start())
        wait(lambda: all(one.ready for one in self.candidates), "both are ready")
        wait(lambda: any(one.leads for one in self.candidates), "one leads")
        return next(one for one in self.candidates if one.leads)

    def _start(self) -> Candidate:
        port = free_port()
        config = self._folder / f"{port}.yaml"
        changes = {"leaseNamespace": NAMESPACE, "httpPort": port, "namespaces": [NAMESPACE]}
        config.write_text(yaml.safe_dump({"trainerImage": "registry.example/lora-trainer:bench", **changes}))
        environment = {**self._cluster.environment, "PYTHONPATH": f"{REPOSITORY}/operator:{REPOSITORY}/trainer_image"}
        with (self._folder / f"{port}.log").open("wb") as log:
            command = [sys.executable, "-m", "lora_operator", "--config", str(config)]
            process = subprocess.Popen(
                command, env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT
            )
        return Candidate(process=process, port=port)


def measure(api: Api, pair: Pair, what: signal.Signals, number: int) -> float:
    """Seconds from the signal to the leader until a run that is created then has its Job."""
    leader = pair.fill()
    # Anywhere between two renewals.
    time.sleep(2 + 2 * number / 5)
    name = f"{what.name.lower()}-{number}"
    leader.process.send_signal(what)
    began_s = time.monotonic()
    api.post(FINETUNES, finetune(name))
    mine = f"{JOBS}?labelSelector=lora-operator.io/name%3D{name}"
    wait(lambda: bool(api.get(mine)["items"]), "the run has a Job", interval_s=0.05)
    taken_s = time.monotonic() - began_s
    leader.process.wait(timeout=60)
    print(f"{what.name}: {taken_s:.1f} s", flush=True)
    return taken_s


def report(name: str, times: Sequence[float], resources: int) -> None:
    """A row for the table."""
    ordered = sorted(times)
    median = ordered[len(ordered) // 2]
    stated = {"SIGKILL": "the leader is killed", "SIGTERM": "the leader is asked to stop"}[name]
    print(
        f"| {stated}, until a new run has its Job, {resources} runs beside | median {median:.1f} s, "
        f"longest {ordered[-1]:.1f} s of {len(ordered)} | `benchmarks/failover.py` |"
    )


def finetune(name: str, **spec: object) -> dict[str, object]:
    """A small manifest."""
    base = {
        "model": {"uri": "hf://acme/model"},
        "dataset": {"uri": "pvc://data/chats.jsonl"},
        "output": {"uri": f"pvc://adapters/{name}"},
        "preflight": "Skip",
    }
    head = {"apiVersion": "lora-operator.io/v1alpha1", "kind": "LoRAFineTune", "metadata": {"name": name}}
    return {**head, "spec": {**base, **spec}}


def wait(look: Callable[[], bool], what: str, *, interval_s: float = 0.2) -> None:
    """Wait until it is so; SystemExit after a while."""
    end_s = time.monotonic() + PATIENCE_S
    while not look():
        if time.monotonic() > end_s:
            raise SystemExit(f"not within {PATIENCE_S:.0f} s: {what}")
        time.sleep(interval_s)


def free_port() -> int:
    """A port that nobody uses."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def operators(cluster: Client, folder: Path) -> Iterator[Pair]:
    """Two candidates, ended afterwards."""
    pair = Pair(cluster, folder)
    try:
        yield pair
    finally:
        for candidate in pair.candidates:
            candidate.process.kill()
            candidate.process.wait()


@contextmanager
def control_plane() -> Iterator[Client]:
    """A control plane with the definition."""
    hack_cluster("up", "--profile=control-plane", f"--name={NAME}")
    try:
        cluster = local(NAME)
        cluster.kubectl("apply", "--server-side", f"--filename={REPOSITORY}/crds/lorafinetunes.yaml")
        wait(lambda: served(cluster), "the definition is served")
        yield cluster
    finally:
        hack_cluster("down", f"--name={NAME}")


def served(cluster: Client) -> bool:
    """Whether the API server knows the kind."""
    with contextlib.suppress(CommandError):
        cluster.kubectl("get", "lorafinetunes")
        return True
    return False


def hack_cluster(*arguments: str) -> None:
    """Run the local cluster's command."""
    subprocess.run([str(HACK_CLUSTER), *arguments], check=True, stdout=subprocess.DEVNULL)


if __name__ == "__main__":
    sys.exit(main())
