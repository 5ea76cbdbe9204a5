"""How long from the creation of a LoRAFineTune to that of its Job, and what the operator costs at rest.

    .venv/bin/python benchmarks/apply_to_job.py [--count 400] [--rate 20] [--rest 30]

Starts a control plane of its own (etcd, API server, controller manager, scheduler; no node) and one operator process
with its production settings, creates `--count` LoRAFineTunes at `--rate` a second, and watches. The time runs from
just before the create request is sent until a watch of this process tells of the Job, both on one monotonic clock: the
API server's share is in it, as a user would see it. The last line is a row for docs/benchmarks.md.
"""

import argparse
import http.client
import json
import math
import os
import platform
import random
import signal
import ssl
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(REPOSITORY / "hack"), str(REPOSITORY)]

from localcluster import lifecycle, ports, settings  # noqa: E402 - found by the path set above
from localcluster.api import Api  # noqa: E402 - as above
from localcluster.client import HACK_CLUSTER, Client, CommandError, local  # noqa: E402 - as above

NAME = "bench-apply"
NAMESPACE = "default"
FINETUNES = f"/apis/lora-operator.io/v1alpha1/namespaces/{NAMESPACE}/lorafinetunes"
CONNECTIONS = 8
SETTLE_S = 20
JOBS = f"/apis/batch/v1/namespaces/{NAMESPACE}/jobs"


@dataclass(frozen=True, slots=True, kw_only=True)
class Usage:
    """What the kernel says of a process."""

    cpu_s: float
    resident_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Measurement:
    """Latencies in seconds, sorted, and the operator's costs: at rest, and over the whole burst."""

    latencies_s: Sequence[float]
    burst_cpu_s: float
    rest_before: Usage
    rest_after: Usage
    rest_cpu_share: float


def main() -> int:
    """Measure, print, and take everything down."""
    parser = argparse.ArgumentParser(description="Latency from apply to Job, and the operator's cost at rest.")
    parser.add_argument("--count", type=int, default=400, help="LoRAFineTunes to create")
    parser.add_argument("--rate", type=float, default=20, help="creations a second")
    parser.add_argument("--rest", type=float, default=30, help="seconds to watch the operator at rest")
    options = parser.parse_args()
    with control_plane() as cluster, operator(cluster) as process:
        record = lifecycle.load_record(settings.places(NAME))
        assert record is not None
        api = lifecycle.api(settings.places(NAME), record.api_port)
        measurement = measure(api, process.pid, options.count, options.rate, options.rest)
    report(measurement, options.count, options.rate)
    return 0


def measure(api: Api, pid: int, count: int, rate: float, rest_s: float) -> Measurement:
    """Rest, burst, rest."""
    time.sleep(5)
    before = usage(pid)
    seen: dict[str, float] = {}
    watcher = threading.Thread(target=_watch_jobs, args=(api, seen, count), daemon=True)
    watcher.start()
    time.sleep(1)
    sent = _create(api, count, rate)
    watcher.join(timeout=60)
    if len(seen) < count:
        raise SystemExit(f"only {len(seen)} of {count} Jobs appeared")
    after_burst = usage(pid)
    # The Job controller and the scheduler have more to do than the operator, and it follows them.
    time.sleep(SETTLE_S)
    first = usage(pid)
    time.sleep(rest_s)
    last = usage(pid)
    return Measurement(
        latencies_s=sorted(seen[name] - sent[name] for name in sent),
        burst_cpu_s=after_burst.cpu_s - before.cpu_s,
        rest_before=before,
        rest_after=last,
        rest_cpu_share=(last.cpu_s - first.cpu_s) / rest_s,
    )


def report(measurement: Measurement, count: int, rate: float) -> None:
    """One line for people, one row for the table."""
    latencies = measurement.latencies_s
    p50, p99, longest = (1000 * percentile(latencies, share) for share in (0.5, 0.99, 1.0))
    empty, full = (u.resident_bytes / 2**20 for u in (measurement.rest_before, measurement.rest_after))
    print(
        f"{count} LoRAFineTunes at {rate:g}/s: apply to Job p50 {p50:.0f} ms, p99 {p99:.0f} ms, max {longest:.0f} ms; "
        f"operator {empty:.0f} MiB empty, {full:.0f} MiB with {count} pending runs, "
        f"{measurement.burst_cpu_s:.1f} CPU s for the burst, {100 * measurement.rest_cpu_share:.1f} % of a core at rest"
    )
    machine = f"{os.cpu_count()} cores, {platform.machine()}, Python {platform.python_version()}"
    print(
        f"| apply to Job, {count} at {rate:g}/s | p50 {p50:.0f} ms, p99 {p99:.0f} ms, max {longest:.0f} ms; "
        f"RSS {empty:.0f} MiB empty, {full:.0f} MiB after | {machine} | `python benchmarks/apply_to_job.py` |"
    )


def percentile(values: Sequence[float], share: float) -> float:
    """Nearest rank of sorted values."""
    return values[max(0, math.ceil(share * len(values)) - 1)]


def usage(pid: int) -> Usage:
    """CPU time and resident memory of a process."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    ticks = int(fields[11]) + int(fields[12])
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return Usage(cpu_s=ticks / os.sysconf("SC_CLK_TCK"), resident_bytes=pages * os.sysconf("SC_PAGE_SIZE"))


@contextmanager
def control_plane() -> Iterator[Client]:
    """A control plane with the definition, taken down afterwards."""
    _hack_cluster("up", "--profile=control-plane", f"--name={NAME}")
    try:
        cluster = local(NAME)
        cluster.kubectl("apply", "--server-side", f"--filename={REPOSITORY / 'crds/lorafinetunes.yaml'}")
        while not _served(cluster):
            time.sleep(0.2)
        yield cluster
    finally:
        _hack_cluster("down", f"--name={NAME}")


@contextmanager
def operator(cluster: Client) -> Iterator[subprocess.Popen[bytes]]:
    """An operator process that is ready."""
    (port,) = ports.choose(1, random.Random())  # noqa: S311 - a port number is no secret
    with tempfile.TemporaryDirectory() as folder:
        config, log = Path(folder, "config.yaml"), Path(folder, "operator.log")
        config.write_text(json.dumps({"trainerImage": "registry.example/lora-trainer:bench", "httpPort": port}))
        environment = {**cluster.environment, "PYTHONPATH": f"{REPOSITORY}/operator:{REPOSITORY}/trainer_image"}
        command = [sys.executable, "-m", "lora_operator", "--config", str(config)]
        with log.open("wb") as file:
            process = subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT, env=environment)
        try:
            while not _ready(port):
                if process.poll() is not None:
                    raise SystemExit(f"the operator ended:\n{log.read_text()}")
                time.sleep(0.1)
            yield process
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(timeout=30)


def _create(api: Api, count: int, rate: float) -> dict[str, float]:
    """Create at an even pace over a few connections; returns when each request was sent."""
    sent: dict[str, float] = {}
    context = ssl.create_default_context(cafile=str(api.ca_file))
    headers = {"Authorization": f"Bearer {api.token}", "Content-Type": "application/json"}
    begin = time.monotonic()

    def create_every_nth(first: int) -> None:
        connection = http.client.HTTPSConnection("127.0.0.1", api.port, timeout=30, context=context)
        for number in range(first, count, CONNECTIONS):
            time.sleep(max(0.0, begin + number / rate - time.monotonic()))
            sent[f"bench-{number}"] = time.monotonic()
            connection.request("POST", FINETUNES, json.dumps(_manifest(f"bench-{number}")), headers)
            answer = connection.getresponse()
            text = answer.read().decode()
            if answer.status != 201:
                raise RuntimeError(f"the API server answered {answer.status}: {text}")
        connection.close()

    with ThreadPoolExecutor(CONNECTIONS) as pool:
        list(pool.map(create_every_nth, range(CONNECTIONS)))
    pace = (count - 1) / (max(sent.values()) - begin)
    if pace < 0.95 * rate:
        raise SystemExit(f"this machine creates {pace:.1f} LoRAFineTunes a second only, {rate:g} were asked for")
    return sent


def _manifest(name: str) -> dict[str, object]:
    return {
        "apiVersion": "lora-operator.io/v1alpha1",
        "kind": "LoRAFineTune",
        "metadata": {"name": name},
        "spec": {
            "model": {"uri": "hf://acme/model"},
            "dataset": {"uri": "hf://acme/data"},
            "output": {"uri": f"pvc://adapters/{name}"},
        },
    }


def _watch_jobs(api: Api, seen: dict[str, float], count: int) -> None:
    for event in api.watch(JOBS, timeout_s=600):
        if event["type"] == "ADDED":
            seen[event["object"]["metadata"]["labels"]["lora-operator.io/name"]] = time.monotonic()
        if len(seen) == count:
            return


def _served(cluster: Client) -> bool:
    try:
        cluster.kubectl("get", "lorafinetunes")
    except CommandError:
        return False
    return True


def _ready(port: int) -> bool:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/readyz", timeout=5) as response:
            return bool(response.status == 200)
    except (urllib.error.HTTPError, OSError):
        return False


def _hack_cluster(*arguments: str) -> None:
    subprocess.run([str(HACK_CLUSTER), *arguments], check=True, stdout=subprocess.DEVNULL)


if __name__ == "__main__":
    sys.exit(main())
