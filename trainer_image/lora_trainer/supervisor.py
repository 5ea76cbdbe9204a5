"""The light process around a run: starts the stages, serves progress and metrics, publishes, writes the summary.

It loads no PyTorch, so it answers at once, survives a stage that the kernel kills, and can say so.
"""

import logging
import os
import signal
import subprocess
import sys
import tempfile
import threading
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType

from lora_trainer.artifact import (
    Manifest,
    describe,
    discard_partial,
    find_place,
    publish,
    published,
    read_manifest,
    start_partial,
)
from lora_trainer.contract import codec
from lora_trainer.contract.config import TrainConfig
from lora_trainer.contract.exit_codes import ExitCode
from lora_trainer.contract.progress import Progress
from lora_trainer.contract.reasons import Reason
from lora_trainer.contract.summary import DatasetStats, Results, Summary, Verification
from lora_trainer.contract.uri import ClaimUri, parse_uri
from lora_trainer.cpus import cpu_threads
from lora_trainer.endpoints import serve
from lora_trainer.errors import ConfigError, InternalError, explain
from lora_trainer.metrics import CONTENT_TYPE, TrainingMetrics
from lora_trainer.reports import Failure, Report, failure_of_status
from lora_trainer.volumes import Volumes

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """How a run is hosted. `port` None serves nothing; `grace_s` is how long a stage may take to stop."""

    volumes: Volumes
    port: int | None
    work: Path | None = None
    grace_s: float = 100.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Ending:
    """How a run ended: the process's exit status, the summary, and the folder of the adapter where there is one."""

    code: int
    summary: Summary
    folder: Path | None = None


@dataclass(slots=True, kw_only=True)
class Supervisor:
    """One run. The mutable fields hold what the stages reported last."""

    config: TrainConfig
    settings: Settings
    metrics: TrainingMetrics = field(default_factory=TrainingMetrics)
    progress: Progress = field(default_factory=Progress)
    dataset: DatasetStats | None = None
    verification: Verification | None = None
    failure: Failure | None = None
    child: "subprocess.Popen[bytes] | None" = None
    stopping: threading.Event = field(default_factory=threading.Event)

    def run(self) -> Ending:
        """Train, verify and publish, or find that an earlier attempt did; never raises for what a run can meet."""
        pages = {
            "/progress": lambda: ("application/json", self.progress.to_json().encode()),
            "/metrics": lambda: (CONTENT_TYPE, self.metrics.text()),
            "/healthz": lambda: ("text/plain", b"ok\n"),
        }
        server = None if self.settings.port is None else serve(self.settings.port, pages)
        previous = {number: signal.signal(number, self._stop) for number in (signal.SIGTERM, signal.SIGINT)}
        try:
            return self._guarded()
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)
            if server is not None:
                server.shutdown()
                server.server_close()

    def _guarded(self) -> Ending:
        try:
            with tempfile.TemporaryDirectory(prefix="lora-trainer-", dir=self.settings.work) as work:
                return self._run(Path(work))
        except Exception as error:
            known = explain(error)
            if isinstance(known, InternalError):
                log.exception("unexpected error")
            return self._failed(Failure(code=int(known.code), reason=known.reason, message=str(known)))

    def _run(self, work: Path) -> Ending:
        uri = parse_uri(self.config.output.uri)
        if not isinstance(uri, ClaimUri):
            raise ConfigError(f"output.uri is {uri}: must start with pvc://")
        place = find_place(self.config, uri, self.settings.volumes)
        config_file = work / "config.json"
        config_file.write_text(self.config.to_json(), encoding="utf-8")
        earlier = published(place)
        if earlier is not None:
            log.info("this run published its adapter already, at %s", earlier[0])
            failure = self._stage("verify", config_file, earlier[1])
            return self._failed(failure) if failure else self._succeeded(*earlier)
        start_partial(place)
        try:
            failure = self._stage("train", config_file, place.partial)
            failure = failure or self._stage("verify", config_file, place.partial)
            return self._failed(failure) if failure else self._succeeded(*publish(place))
        finally:
            discard_partial(place)

    def _stage(self, stage: str, config_file: Path, folder: Path) -> Failure | None:
        """Run a stage to its end; why it failed, or None."""
        if self.stopping.is_set():
            return _stopped()
        self.failure = None
        read_end, write_end = os.pipe()
        command = [sys.executable, "-P", "-m", "lora_trainer.stage", stage, "--config", str(config_file)]
        command += ["--folder", str(folder), "--claims", str(self.settings.volumes.claims)]
        command += ["--configmaps", str(self.settings.volumes.config_maps), "--report", str(write_end)]
        with os.fdopen(read_end, encoding="utf-8") as reports:
            self.child = subprocess.Popen(command, pass_fds=(write_end,), process_group=0, env=stage_environment())
            os.close(write_end)
            if self.stopping.is_set():
                self.child.send_signal(signal.SIGTERM)
            for line in reports:
                self._take(line)
            status = self.child.wait()
            self.child = None
        return self._why(status)

    def _why(self, status: int) -> Failure | None:
        if status == 0:
            return None
        return _stopped() if self.stopping.is_set() else self.failure or failure_of_status(status)

    def _take(self, line: str) -> None:
        try:
            report = Report.from_line(line)
        except ValueError as error:
            log.warning("unreadable report of the stage: %s", error)
            return
        if report.progress is not None:
            self.progress = report.progress
            self.metrics.update(report.progress, report.counters)
        self.dataset = report.dataset or self.dataset
        self.verification = report.verification or self.verification
        self.failure = report.failure or self.failure

    def _stop(self, number: int, _frame: FrameType | None) -> None:
        """Pass a request to stop on; a stage that does not heed it within the grace is killed."""
        log.info("stopping: %s", signal.Signals(number).name)
        self.stopping.set()
        child = self.child
        if child is not None:
            child.send_signal(signal.SIGTERM)
            timer = threading.Timer(self.settings.grace_s, child.kill)
            timer.daemon = True
            timer.start()

    def _succeeded(self, uri: ClaimUri, folder: Path) -> Ending:
        manifest = read_manifest(folder)
        if self.verification is None:
            raise InternalError("the verification ended well but reported nothing")
        summary = Summary(
            reason=Reason.SUCCEEDED,
            message=success_sentence(uri, manifest),
            resolved=manifest.resolved,
            dataset=manifest.dataset,
            results=Results(**codec.encode(manifest.measured), verification=self.verification),
            artifact=describe(uri, folder, manifest),
        )
        return Ending(code=int(ExitCode.OK), summary=summary, folder=folder)

    def _failed(self, failure: Failure) -> Ending:
        resolved = self.progress.resolved
        summary = Summary(reason=failure.reason, message=failure.message, resolved=resolved, dataset=self.dataset)
        return Ending(code=failure.code, summary=summary)


def _stopped() -> Failure:
    return Failure(
        code=int(ExitCode.TERMINATED), reason=Reason.EVICTED, message="the run was told to stop before its end"
    )


def success_sentence(uri: ClaimUri, manifest: Manifest) -> str:
    """The summary's message of a run that went well."""
    measured = manifest.measured
    rows = "held-out rows" if measured.held_out else "training rows (none were held out)"
    return (
        f"loss on {rows} went from {measured.eval_loss_before:.3f} to {measured.eval_loss_after:.3f} "
        f"(± {measured.improvement_standard_error:.3f}); the verified adapter is at {uri}"
    )


def stage_environment() -> dict[str, str]:
    """The environment of a stage: quiet libraries without telemetry, as many threads as the container has CPUs.

    Threads that wait for each other sleep instead of spinning: where another process also wants the CPU, a spinning one
    takes it from the very thread that it waits for. Two to six times as fast on two busy cores.
    """
    threads = str(cpu_threads())
    return {
        "OMP_WAIT_POLICY": "PASSIVE",
        **os.environ,
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "OMP_NUM_THREADS": threads,
        "PYTHONHASHSEED": "0",
        "TOKENIZERS_PARALLELISM": "false",
        "TRANSFORMERS_VERBOSITY": "error",
    }
