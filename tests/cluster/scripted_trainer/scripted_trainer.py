"""Stands in for the trainer where training is not the point: it keeps the contract and does what a script says.

The script is the run's data set, `configmap://NAME/KEY`: a JSON list of actions, or a list of such
lists, one for each time that a pod of the run starts (the last one goes on). Each action is an object
with one key:

    {"progress": {"phase": "Training", "step": 3, "total_steps": 10}}   what /progress answers from now on
    {"sleep": 1.5}                      seconds
    {"wait_for": "go"}                  until /tmp/go exists: `kubectl exec POD -- touch /tmp/go`
    {"resume": {"phase": "Training"}}   as progress, from the step that an earlier start has saved, else from 0
    {"on_term": "ignore"}               what SIGTERM does: an exit status (143 from the start), "ignore", or "save":
                                        keep the step of the last progress beside the output, and end with 143
    {"lock": 120}                       take the trainer's own lock of the run's folder, or end with 75 after so long
    {"message": "text"}                 a termination message that may be anything
    {"fail": {"reason": "DatasetInvalid", "message": "...", "code": 65}}
    {"exit": 1}                         without a message
    {"succeed": {"steps": 10}}          a summary with a made-up artifact, and exit status 0

A script that ends without one of the last three succeeds, and so does a run without a script.
"""

import argparse
import atexit
import contextlib
import hashlib
import http.server
import json
import os
import signal
import sys
import threading
import time
from pathlib import Path
from typing import Any

from lora_trainer.errors import TransientError
from lora_trainer.spec.config import TrainConfig
from lora_trainer.spec.progress import PORT, Progress
from lora_trainer.spec.reasons import Reason
from lora_trainer.spec.summary import Artifact, Results, Summary, Verification
from lora_trainer.spec.uri import ClaimUri, ConfigMapUri, parse_uri
from lora_trainer.storage import lock

TERMINATION_LOG = Path("/dev/termination-log")
CLAIMS = Path("/claims")
CONFIG_MAPS = Path("/configmaps")
SIGNALS = Path("/tmp")  # noqa: S108 - the pod's own emptyDir
_POLL_S = 0.05
_HELD = contextlib.ExitStack()


class Server(http.server.ThreadingHTTPServer):
    """Answers /progress with the last progress that the script gave, and /healthz, since the kubelet asks."""

    progress = Progress(updated_at=time.time())


class Handler(http.server.BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        pages = {"/progress": self.server.progress.to_json().encode(), "/healthz": b"{}"}
        body = pages.get(self.path, b"{}")
        self.send_response(200 if self.path in pages else 404)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Say nothing of each question."""


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("command", choices=["run", "preflight"])
    parser.add_argument("--config", type=Path, required=True)
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: os._exit(143))
    config = TrainConfig.from_json(options.config.read_text())
    if options.command == "preflight":
        TERMINATION_LOG.write_text(
            Summary(reason=Reason.PREFLIGHT_PASSED, message="Nothing was looked at.").to_message()
        )
        return
    server = Server(("", PORT), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    for action in script(config):
        ((verb, value),) = action.items()
        print(f"{verb}: {value}")
        act(verb, value, config, server)
    succeed(config, steps=1)


def script(config: TrainConfig) -> list[dict[str, Any]]:
    """The actions of this start of the run."""
    dataset = parse_uri(config.dataset.uri)
    if not isinstance(dataset, ConfigMapUri):
        return []
    document = json.loads((CONFIG_MAPS / dataset.name / dataset.key).read_text())
    if not document or isinstance(document[0], dict):
        return list(document)
    return list(document[min(count_start(config), len(document)) - 1])


def count_start(config: TrainConfig) -> int:
    """Which start of the run this is, from 1; the count lies beside the output."""
    file = beside_output(config, "starts")
    if file is None:
        return 1
    count = int(file.read_text()) + 1 if file.exists() else 1
    file.write_text(str(count))
    return count


def beside_output(config: TrainConfig, what: str) -> Path | None:
    """A file of this run on the output's claim; None where the output goes elsewhere."""
    output = parse_uri(config.output.uri)
    return CLAIMS / output.claim / f".{what}-{config.run.uid}" if isinstance(output, ClaimUri) else None


def save_and_end(config: TrainConfig, server: Server) -> None:
    """What the trainer does when it is told to stop."""
    file = beside_output(config, "step")
    if file is not None:
        file.write_text(str(server.progress.step or 0))
    os._exit(143)


def hold_output(config: TrainConfig, *, wait_s: float) -> None:
    """Hold the lock until the process ends."""
    folder = beside_output(config, "locked")
    assert folder is not None
    atexit.register(_HELD.close)
    lock.BEAT_S, lock.STALE_S, lock.POLL_S = 0.5, 10, 0.2
    try:
        _HELD.enter_context(lock.held(folder, "the output", reason=Reason.OUTPUT_LOCKED, wait_s=wait_s))
    except TransientError as error:
        TERMINATION_LOG.write_text(Summary(reason=error.reason, message=str(error)).to_message())
        sys.exit(error.code)


def on_term(value: Any, config: TrainConfig, server: Server) -> None:
    """What SIGTERM does from now on."""
    if value == "save":
        signal.signal(signal.SIGTERM, lambda *_: save_and_end(config, server))
    else:
        signal.signal(signal.SIGTERM, signal.SIG_IGN if value == "ignore" else lambda *_: os._exit(value))


def act(verb: str, value: Any, config: TrainConfig, server: Server) -> None:
    if verb == "progress":
        server.progress = Progress.from_json(json.dumps({"updated_at": time.time(), **value}))
    elif verb == "resume":
        file = beside_output(config, "step")
        step = int(file.read_text()) if file is not None and file.exists() else 0
        act("progress", {**value, "step": step}, config, server)
    elif verb == "sleep":
        time.sleep(value)
    elif verb == "wait_for":
        while not (SIGNALS / value).exists():
            time.sleep(_POLL_S)
    elif verb == "on_term":
        on_term(value, config, server)
    elif verb == "lock":
        hold_output(config, wait_s=value)
    elif verb == "message":
        TERMINATION_LOG.write_text(value)
    elif verb == "fail":
        summary = Summary(reason=Reason(value["reason"]), message=value["message"])
        TERMINATION_LOG.write_text(summary.to_message())
        sys.exit(value["code"])
    elif verb == "exit":
        sys.exit(value)
    elif verb == "succeed":
        succeed(config, **value)
    else:
        sys.exit(f"The script has an unknown action {verb!r}.")


def succeed(config: TrainConfig, *, steps: int = 10) -> None:
    """End as a run with a verified adapter does, with numbers that nobody trained."""
    verification = Verification(loss=1.5, difference=0.0, tolerance=0.01)
    results = Results(
        steps=steps,
        trained_tokens=1000 * steps,
        train_loss=1.6,
        eval_loss_before=2.5,
        eval_loss_after=1.5,
        eval_loss_before_standard_error=0.05,
        eval_loss_after_standard_error=0.04,
        improvement_standard_error=0.03,
        held_out=True,
        duration_seconds=float(steps),
        tokens_per_second=1000.0,
        peak_memory_bytes=2**30,
        verification=verification,
    )
    artifact = Artifact(
        uri=config.output.uri,
        digest=f"sha256:{hashlib.sha256(config.run.uid.encode()).hexdigest()}",
        size_bytes=1024,
        format="PEFT",
        base_model=config.model.uri,
        base_revision="0" * 40,
        rank=config.lora.rank,
        servable=True,
    )
    summary = Summary(reason=Reason.SUCCEEDED, message="The script succeeded.", results=results, artifact=artifact)
    TERMINATION_LOG.write_text(summary.to_message())
    sys.exit(0)


if __name__ == "__main__":
    main()
