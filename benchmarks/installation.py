"""How long the chart takes to install, to test, and to upgrade.

    .venv/bin/python benchmarks/installation.py [--rounds 3]

Starts a full cluster of its own, with a node, and takes it down afterwards; it needs root. A first installation brings
the operator's image onto the node and is not counted; each further one begins with nothing of the release there, its
definition included, and ends when the Deployment is available. An upgrade that changes the pods of two replicas is
watched through the API server, each pod's `/metrics` about five times a second: a gap is the time between two answers
with `lora_operator_leader 1`, from whichever pod. Prints rows for docs/benchmarks.md.
"""

import argparse
import contextlib
import http.client
import statistics
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(REPOSITORY / folder) for folder in ("hack", "operator", "trainer_image", ".")]

from benchmarks.scale.connections import Connection
from benchmarks.scale.machine import Busy, description
from benchmarks.scale.processes import a_full_cluster

from localcluster import lifecycle, settings
from localcluster.api import Api
from localcluster.client import Client

NAME = "bench-install"
NAMESPACE = "lora-system"
RELEASE = "lora"
CHART = REPOSITORY / "helm/lora-finetune-operator"
_INTERVAL_S = 0.2
_TIMEOUT_S = 5
_SETTLED_S = 20


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    rounds = parser.parse_args().rounds
    print(f"{description()}\n\n| what | wanted | measured | machine busy |\n|---|---|---|---|")
    with a_full_cluster(NAME) as client:
        flags = _flags(client.images("operator"))
        _install(client, flags)
        client.helm("uninstall", RELEASE, f"--namespace={NAMESPACE}", "--wait")
        busy, installed, tested = Busy(), [], []
        for number in range(rounds):
            installed.append(_seconds(lambda: _install(client, flags)))
            tested.append(_seconds(lambda: client.helm("test", RELEASE, f"--namespace={NAMESPACE}", "--timeout=120s")))
            if number < rounds - 1:
                client.helm("uninstall", RELEASE, f"--namespace={NAMESPACE}", "--wait")
        _row("install to Ready, image on the node", "20 s", _told(installed), busy)
        _row("`helm test`", "30 s", _told(tested), busy)
        busy, gaps = Busy(), []
        two = (*flags, "--set=replicas=2")
        _upgrade(client, two)
        record = lifecycle.load_record(settings.places(NAME))
        assert record is not None
        with _leaders(lifecycle.api(settings.places(NAME), record.api_port)) as leaders:
            for number in range(rounds):
                leaders.wait()
                leaders.longest_s = 0.0
                _upgrade(client, (*two, f"--set-string=podAnnotations.round={number}"))
                time.sleep(_SETTLED_S)
                gaps.append(leaders.longest())
        _row("longest gap in `lora_operator_leader` during an upgrade with two replicas", "5 s", _told(gaps), busy)


def _flags(images: dict[str, str]) -> tuple[str, ...]:
    repository, _, tag = images["operator"].rpartition(":")
    return (
        f"--set=image.repository={repository}",
        f"--set-string=image.tag={tag}",
        # No run is made.
        "--set=trainer.image.repository=registry.example.com/lora-trainer",
        "--set=crds.keep=false",
    )


def _install(client: Client, flags: tuple[str, ...]) -> None:
    place = (f"--namespace={NAMESPACE}", "--create-namespace")
    client.helm("install", RELEASE, str(CHART), *place, *flags, "--wait", "--timeout=180s")


def _upgrade(client: Client, flags: tuple[str, ...]) -> None:
    client.helm("upgrade", RELEASE, str(CHART), f"--namespace={NAMESPACE}", *flags, "--wait", "--timeout=180s")


class Leaders:
    """How long nobody led, as far as pods' metrics say, in all while this looks on."""

    def __init__(self, api: Api) -> None:
        self._api = api
        self._last_s = time.monotonic()
        self._lock = threading.Lock()
        self._ended = threading.Event()
        self._seen = threading.Event()
        self.longest_s = 0.0

    def wait(self) -> None:
        """Until somebody leads from now on. Raises SystemExit where nobody does within a minute."""
        self._seen.clear()
        if not self._seen.wait(60):
            raise SystemExit("no pod of the operator says that it leads")

    def longest(self) -> float:
        """Seconds; one that has not ended counts up to now."""
        with self._lock:
            return max(self.longest_s, time.monotonic() - self._last_s)

    def look_on(self) -> None:
        """Until `end`, at each pod in a thread of its own: whoever asks one that is gone waits for long."""
        followed: dict[str, threading.Thread] = {}
        while not self._ended.wait(_INTERVAL_S):
            for pod in self._pods() - followed.keys():
                followed[pod] = threading.Thread(target=self._follow, args=(pod,), daemon=True)
                followed[pod].start()

    def end(self) -> None:
        """Look no more."""
        self._ended.set()

    def _pods(self) -> set[str]:
        selector = f"labelSelector=app.kubernetes.io%2Finstance%3D{RELEASE}"
        found = self._api.get(f"/api/v1/namespaces/{NAMESPACE}/pods?{selector}")["items"]
        return {pod["metadata"]["name"] for pod in found if pod["status"].get("podIP")}

    def _follow(self, pod: str) -> None:
        path = f"/api/v1/namespaces/{NAMESPACE}/pods/{pod}:8080/proxy/metrics"
        while pod in self._pods():
            with contextlib.suppress(RuntimeError, OSError, http.client.HTTPException):
                connection = Connection(self._api, _TIMEOUT_S)
                while not self._ended.wait(_INTERVAL_S):
                    asked_s = time.monotonic()
                    if b"\nlora_operator_leader 1.0" in connection.send("GET", path):
                        self._led(asked_s)
            if self._ended.wait(_INTERVAL_S):
                return

    def _led(self, at_s: float) -> None:
        with self._lock:
            self.longest_s = max(self.longest_s, at_s - self._last_s)
            self._last_s = max(self._last_s, at_s)
            self._seen.set()


@contextmanager
def _leaders(api: Api) -> Iterator[Leaders]:
    leaders = Leaders(api)
    thread = threading.Thread(target=leaders.look_on, daemon=True)
    thread.start()
    try:
        yield leaders
    finally:
        leaders.end()
        thread.join()


def _seconds(action: Callable[[], object]) -> float:
    began_s = time.monotonic()
    action()
    return time.monotonic() - began_s


def _told(found: list[float]) -> str:
    return f"{statistics.median(found):.1f} s (median of {len(found)}, {min(found):.1f} to {max(found):.1f})"


def _row(what: str, wanted: str, measured: str, busy: Busy) -> None:
    print(f"| {what} | {wanted} | {measured} | {100 * busy.share():.0f} % |", flush=True)


if __name__ == "__main__":
    main()
