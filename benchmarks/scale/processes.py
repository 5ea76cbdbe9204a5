"""The control plane and the operator that are measured, each a process of its own, and taken down afterwards."""

import json
import os
import random
import re
import signal
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.scale.machine import Usage, usage

from localcluster import control_plane, lifecycle, node, ports, settings
from localcluster.api import Api
from localcluster.client import HACK_CLUSTER, Client, CommandError, local
from localcluster.console import Console
from localcluster.processes import locked

REPOSITORY = Path(__file__).resolve().parents[2]
NAME = "bench-scale"
IMAGE = "registry.example/lora-trainer:bench"
SOURCES = "BENCH_OPERATOR"
"""Environment variable with the folder of another release, whose operator is measured instead of this one's."""

# Taken at the start and not renewed later, so that all writes are about runs.
LEASE = {
    "leaseNamespace": "default",
    "leaseDurationSeconds": 200_000,
    "renewDeadlineSeconds": 150_000,
    "retryPeriodSeconds": 100_000,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class ControlPlane:
    """An API server with the definition, and how to reach it."""

    api: Api
    kubeconfig: Path


@contextmanager
def a_control_plane(*, name: str = NAME, controller_requests_per_second: int | None = None) -> Iterator[ControlPlane]:
    """A control plane without a node, so that no pod ever runs; taken down afterwards."""
    console, places = Console(), settings.places(name)
    with locked(places.lock, waiting=console.say):
        node.down(places)
        control_plane.up(places, console, controller_requests_per_second=controller_requests_per_second)
    try:
        client = define(name)
        record = lifecycle.load_record(places)
        assert record is not None
        yield ControlPlane(api=lifecycle.api(places, record.api_port), kubeconfig=client.kubeconfig)
    finally:
        with locked(places.lock, waiting=console.say):
            node.down(places)
            places.lock.unlink()


@contextmanager
def a_full_cluster(name: str, *addons: str) -> Iterator[Client]:
    """A cluster with a node, and with these of hack/cluster's addons; taken down afterwards. It needs root."""
    (api_port, registry_port) = ports.choose(2, random.Random())  # noqa: S311 - a port number is no secret
    try:
        _hack_cluster("up", f"--name={name}", f"--api-port={api_port}", f"--registry-port={registry_port}")
        if addons:
            _hack_cluster("addon", f"--name={name}", *addons)
        yield local(name)
    finally:
        _hack_cluster("down", f"--name={name}")


def _hack_cluster(*arguments: str) -> None:
    subprocess.run([str(HACK_CLUSTER), *arguments], check=True, stdout=subprocess.DEVNULL, cwd=REPOSITORY)


@dataclass(frozen=True, slots=True, kw_only=True)
class Operator:
    """A running operator. `ready_s` is how long it took from the start of its process until it was ready."""

    process: subprocess.Popen[bytes]
    port: int
    ready_s: float
    log: Path

    def usage(self) -> Usage:
        """What it has cost so far."""
        return usage(self.process.pid)

    def scrape(self, encoding: str = "identity") -> bytes:
        """What `/metrics` answers, in that encoding."""
        headers = {"Accept-Encoding": encoding}
        request = urllib.request.Request(f"http://127.0.0.1:{self.port}/metrics", headers=headers)
        with urllib.request.urlopen(request, timeout=60) as response:  # noqa: S310 - of this machine
            body: bytes = response.read()
        return body

    def metrics(self) -> dict[str, float]:
        """All series by name and labels."""
        lines = self.scrape().decode().splitlines()
        return {line.rpartition(" ")[0]: float(line.rpartition(" ")[2]) for line in lines if not line.startswith("#")}

    def looks(self) -> float:
        """Passes over runs so far."""
        return sum(value for series, value in self.metrics().items() if "operator_reconcile_total" in series)

    def requests(self) -> dict[str, float]:
        """Requests to the API server so far, by verb."""
        sums: dict[str, float] = {}
        for series, value in self.metrics().items():
            match = re.match(r'lora_operator_api_requests_total\{.*verb="(\w+)"', series)
            if match:
                sums[match[1]] = sums.get(match[1], 0.0) + value
        return sums

    def writes(self) -> float:
        """Requests that change something, so far."""
        return sum(value for verb, value in self.requests().items() if verb in ("create", "update", "patch", "delete"))

    def turns(self) -> float:
        """Reconciles so far."""
        metrics = self.metrics()
        return sum(value for series, value in metrics.items() if series.startswith("lora_operator_reconcile_total"))


@contextmanager
def an_operator(kubeconfig: Path, **changes: Any) -> Iterator[Operator]:
    """An operator with its production settings but for those of its Lease, once it is ready; stopped afterwards."""
    (port,) = ports.choose(1, random.Random())  # noqa: S311 - a port number is no secret
    began_s = time.monotonic()
    with operator_in(kubeconfig, httpPort=port, **changes) as (process, log):

        def ready() -> bool:
            _require_alive(process, log)
            return _is_ready(port)

        wait_until(ready, "the operator is ready", interval_s=0.05)
        yield Operator(process=process, port=port, ready_s=time.monotonic() - began_s, log=log)


@contextmanager
def operator_in(
    kubeconfig: Path, *, prefix: Sequence[str] = (), **changes: Any
) -> Iterator[tuple[subprocess.Popen[bytes], Path]]:
    """An operator's process, once it says that it works, and its log; `prefix` puts it where its API server is."""
    with tempfile.TemporaryDirectory() as folder:
        config, log = Path(folder, "config.yaml"), Path(folder, "operator.log")
        config.write_text(json.dumps({"trainerImage": IMAGE, **LEASE, **changes}))
        sources = os.environ.get(SOURCES, REPOSITORY)
        environment = {
            **os.environ,
            "KUBECONFIG": str(kubeconfig),
            "PYTHONPATH": f"{sources}/operator:{sources}/trainer_image",
        }
        with log.open("wb") as file:
            process = subprocess.Popen(
                [*prefix, sys.executable, "-m", "lora_operator", "--config", str(config)],
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                env=environment,
            )
        try:

            def works() -> bool:
                _require_alive(process, log)
                return "ready to work" in log.read_text()

            wait_until(works, "the operator works", interval_s=0.05)
            yield process, log
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(timeout=60)


def define(name: str) -> Client:
    """Have an API server know LoRAFineTunes."""
    client = local(name)
    client.kubectl("apply", "--server-side", f"--filename={REPOSITORY / 'crds/lorafinetunes.yaml'}")
    wait_until(lambda: _serves(name), "the API server serves LoRAFineTunes")
    return client


def _require_alive(process: subprocess.Popen[bytes], log: Path) -> None:
    if process.poll() is not None:
        raise SystemExit(f"the operator ended:\n{log.read_text()}")


def wait_until(condition: Callable[[], bool], what: str, *, interval_s: float = 0.2, timeout_s: float = 300) -> None:
    """Wait for a condition. Raises SystemExit after the timeout."""
    end_s = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > end_s:
            raise SystemExit(f"not within {timeout_s:.0f} s: {what}")
        time.sleep(interval_s)


def _serves(name: str) -> bool:
    try:
        local(name).kubectl("get", "lorafinetunes")
    except CommandError:
        return False
    return True


def _is_ready(port: int) -> bool:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/readyz", timeout=5) as response:
            return bool(response.status == 200)
    except (urllib.error.HTTPError, OSError):
        return False
