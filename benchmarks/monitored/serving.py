"""A real Prometheus with the chart's rules, and what it scrapes, all on 127.0.0.1."""

import json
import signal
import subprocess
import threading
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import yaml
from benchmarks.monitored.chart import Chart
from benchmarks.monitored.targets import Target
from benchmarks.scale.processes import wait_until

_HOURS_OF_A_BLOCK = 2


@contextmanager
def serve(port: int, targets: Callable[[], Sequence[Target]]) -> Iterator[None]:
    """Answer for targets, each under its path, one scrape at a time."""
    lock = threading.Lock()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            with lock:
                found = next((target for target in targets() if target.path == self.path), None)
                body = found.text() if found else b""
            self.send_response(200 if found else 404)
            self.send_header("Content-Type", "text/plain; version=0.0.4")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *arguments: object) -> None:  # noqa: A002 - its name there
            """Nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", port), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def announce(folder: Path, targets: Sequence[Target]) -> None:
    """Have the Prometheus of that folder scrape these from now on."""
    for honors in (True, False):
        entries = [
            {"targets": [target.labels["instance"]], "labels": {**target.labels, "__metrics_path__": target.path}}
            for target in targets
            if target.honors is honors
        ]
        file = folder / f"targets-{honors}.json"
        # Prometheus reads it when it changes, and must not find half of it.
        file.with_suffix(".new").write_text(json.dumps(entries))
        file.with_suffix(".new").rename(file)


@dataclass(frozen=True, slots=True, kw_only=True)
class Prometheus:
    """One that runs: its address and its process."""

    url: str
    pid: int


@contextmanager
def a_prometheus(folder: Path, chart: Chart, port: int, *, scrape_s: int, evaluate_s: int) -> Iterator[Prometheus]:
    """Debian's, over the blocks in the folder's `data`, once it is ready."""
    config = {
        "global": {"scrape_interval": f"{scrape_s}s", "evaluation_interval": f"{evaluate_s}s"},
        "rule_files": ["rules.yaml"],
        "scrape_configs": [
            {
                "job_name": f"honors-{honors}",
                "honor_labels": honors,
                "file_sd_configs": [{"files": [f"targets-{honors}.json"]}],
            }
            for honors in (True, False)
        ],
    }
    (folder / "prometheus.yaml").write_text(yaml.safe_dump(config))
    (folder / "rules.yaml").write_text(yaml.safe_dump({"groups": chart.groups}))
    length = f"{_HOURS_OF_A_BLOCK}h"
    command = [
        "prometheus",
        f"--config.file={folder / 'prometheus.yaml'}",
        f"--storage.tsdb.path={folder / 'data'}",
        f"--web.listen-address=127.0.0.1:{port}",
        # Larger blocks would be made while queries are timed.
        f"--storage.tsdb.min-block-duration={length}",
        f"--storage.tsdb.max-block-duration={length}",
    ]
    url, log = f"http://127.0.0.1:{port}", folder / "prometheus.log"
    with log.open("wb") as file:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=file, stderr=subprocess.STDOUT)
    try:

        def ready() -> bool:
            if process.poll() is not None:
                raise SystemExit(f"Prometheus ended:\n{log.read_text()}")
            return _answers(f"{url}/-/ready")

        wait_until(ready, "Prometheus is ready")
        yield Prometheus(url=url, pid=process.pid)
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(timeout=60)


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=5):  # noqa: S310 - of this machine
            return True
    except OSError:
        return False


def rules_of(url: str) -> list[dict[str, Any]]:
    """What a Prometheus says of the groups of its rules."""
    with urllib.request.urlopen(f"{url}/api/v1/rules", timeout=60) as answer:  # noqa: S310 - of this machine
        return list(json.load(answer)["data"]["groups"])
