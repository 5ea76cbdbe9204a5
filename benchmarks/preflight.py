"""How long a run waits for its preflight, and a person for `lora-trainer plan`.

    .venv/bin/python benchmarks/preflight.py [--rounds 5]

`plan` is timed from the start of its process, 10 times, on the configuration of Llama-3-8B against every GPU that it
knows. The preflight is the quickstart's on the cluster that `make demo` leaves, whose images the node has by then: the
time from its Job to the training's, as a watch sees both; the runs are deleted before they train on. Prints medians.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(REPOSITORY / folder) for folder in ("hack", "operator", "trainer_image", ".")]

from benchmarks.scale.connections import Object, Watch
from benchmarks.scale.machine import Busy, description
from tests.unit.fit_models import MODELS

from demoflow.run import EXAMPLES, NAMESPACE, renamed
from localcluster import lifecycle, settings
from localcluster.client import Client, local
from lora_operator.model.names import NAME_LABEL, ROLE_LABEL

_STARTS = 10
_TIMEOUT_S = 300
_ENVIRONMENT = {**os.environ, "PYTHONPATH": str(REPOSITORY / "trainer_image")}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    rounds = parser.parse_args().rounds
    print(f"{description()}\n\n| what | measured | machine busy |\n|---|---|---|")
    busy = Busy()
    starts = list(_plans())
    print(f"| `lora-trainer plan`, {_STARTS} starts | {_seconds(starts)} | {100 * busy.share():.0f} % |", flush=True)
    busy = Busy()
    waits = [_wait(local(settings.DEFAULT_NAME), f"support-tone-timed-{number}") for number in range(rounds)]
    print(f"| preflight's Job to the training's, quickstart | {_seconds(waits)} | {100 * busy.share():.0f} % |")


def _seconds(found: list[float]) -> str:
    return f"{statistics.median(found):.2f} s ({min(found):.2f} to {max(found):.2f})"


def _plans() -> Iterator[float]:
    with tempfile.TemporaryDirectory() as folder:
        shape = Path(folder) / "config.json"
        shape.write_text(json.dumps(MODELS["Llama-3-8B"][0]), encoding="utf-8")
        command = [sys.executable, "-m", "lora_trainer.cli", "plan", "-f", str(EXAMPLES / "quickstart.yaml")]
        for _ in range(_STARTS):
            began_s = time.monotonic()
            subprocess.run([*command, f"--config={shape}"], env=_ENVIRONMENT, check=True, capture_output=True)
            yield time.monotonic() - began_s


def _wait(client: Client, name: str) -> float:
    """From the preflight's Job to the training's."""
    places = settings.places(settings.DEFAULT_NAME)
    record = lifecycle.load_record(places)
    if record is None:
        raise SystemExit("there is no cluster: run make demo before")
    api = lifecycle.api(places, record.api_port)

    def role_of(job: Object) -> str | None:
        labels = job["metadata"].get("labels", {})
        return str(labels.get(ROLE_LABEL)) if labels.get(NAME_LABEL) == name else None

    manifest = renamed((EXAMPLES / "quickstart.yaml").read_text(encoding="utf-8"), name)
    try:
        with Watch(api, f"/apis/batch/v1/namespaces/{NAMESPACE}/jobs", role_of, names_only=True) as jobs:
            client.kubectl("apply", f"--namespace={NAMESPACE}", "--filename=-", stdin=manifest)
            jobs.wait(2, _TIMEOUT_S)
        return jobs.seen["train"] - jobs.seen["preflight"]
    finally:
        client.kubectl("delete", "lorafinetune", name, f"--namespace={NAMESPACE}", "--cascade=foreground")


if __name__ == "__main__":
    main()
