"""A stage as a process of its own: its command line and environment, what it reports, and how it is asked to stop."""

import dataclasses
import logging
import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from lora_trainer.distributed.cpus import cpu_threads
from lora_trainer.distributed.reports import Failure, Report, failure_of_status, first_cause
from lora_trainer.errors import explain_exit
from lora_trainer.host.launch import ONE_PROCESS, Program
from lora_trainer.host.passed_log import PassedLog
from lora_trainer.host.trackers import SECRETS
from lora_trainer.spec.exit_codes import ExitCode
from lora_trainer.spec.progress import Phase
from lora_trainer.spec.reasons import Reason
from lora_trainer.storage.volumes import Volumes

log = logging.getLogger(__name__)
STACKS_S = 3.0
"""How long a stage may take to log its stacks before it is killed."""
PEERS_S = 30.0
"""How long a stage may take to end once one of its processes has reported why it ends. The others may wait in a
collective, within a layer or in a driver, where they hear no signal."""
PATIENCE_S = 300.0
"""How long after its first failure a stage is still tried again that is behind the training."""
PAUSES_S = 5.0, 60.0
"""The first pause before that, and the longest; each is twice the one before."""
_SAVING = (Phase.CHECKPOINTING, Phase.PUBLISHING)
"""Where a training writes what would be lost if it were ended."""
_PASSING = (ExitCode.GPU_FAULT, ExitCode.STORAGE, ExitCode.TRANSIENT, ExitCode.PEER_FAILED)
"""A stage that ended with these may well do without another pod."""

_ALLOCATOR_NAMES = frozenset({"PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF"})
"""Where PyTorch's allocator is set: the name of 2.9 and later, and the one before it, which still counts."""

STOPPED = Failure(
    code=int(ExitCode.TERMINATED), reason=Reason.EVICTED, message="the run was asked to stop before its end"
)


class StageFailedError(Exception):
    """A stage ended otherwise than well."""

    def __init__(self, failure: Failure) -> None:
        super().__init__(failure.message)
        self.failure = failure


@dataclass(slots=True, kw_only=True)
class Stages:
    """Runs one stage at a time. `take` gets every report; `grace_s` is how long a stage may take to stop; `training` is
    what the stage `train` is started with, `sharded` a stage that needs the memory of all GPUs of this node;
    `environment` is what all get on top; `started` hears the name of each."""

    config_file: Path
    volumes: Volumes
    take: Callable[[Report], None]
    grace_s: float
    training: Program = ONE_PROCESS
    sharded: Program = ONE_PROCESS
    environment: Mapping[str, str] = field(default_factory=dict)
    stopping: threading.Event = field(default_factory=threading.Event)
    failure: Failure | None = None
    aborted: Failure | None = None
    saving: bool = False
    started: Callable[[str], None] = lambda stage: None
    child: "subprocess.Popen[bytes] | None" = None

    def run(self, stage: str, *arguments: str | Path, sharded: bool = False) -> None:
        """Run a stage to its end. Raises `StageFailedError` with what it said of itself, or what its status means."""
        self._check_aborted()
        self.failure, self.saving = None, False
        self.started(stage)
        read_end, write_end = os.pipe()
        program = self.training if stage == "train" else self.sharded if sharded else ONE_PROCESS
        command = [*program.command, *self._arguments(stage), *map(str, arguments), "--report", str(write_end)]
        environment = {**stage_environment(), **self.environment, **program.environment}
        passed = PassedLog()
        try:
            with os.fdopen(read_end, encoding="utf-8") as reports:
                try:
                    self.child = subprocess.Popen(
                        command, pass_fds=(write_end,), process_group=0, env=environment, stderr=passed.write_end
                    )
                finally:
                    os.close(write_end)
                if self.stopping.is_set():
                    self.child.send_signal(signal.SIGTERM)
                for line in reports:
                    self._take(line)
                status = self.child.wait()
                self.child = None
        finally:
            said = passed.end()
        if self.aborted is not None:
            raise StageFailedError(self.aborted)
        if status != 0:
            raise StageFailedError(self._cause(status, said))

    def insist(
        self, stage: str, *arguments: str | Path, sharded: bool = False, begin: Callable[[], None] = lambda: None
    ) -> None:
        """As `run`, and again within `PATIENCE_S` where the failure may pass: what was trained goes with the pod, or
        costs another one. `begin` comes before each try."""
        pause_s, longest_s = PAUSES_S
        until: float | None = None
        while True:
            self._check_aborted()
            begin()
            try:
                self.run(stage, *arguments, sharded=sharded)
            except StageFailedError as error:
                now = time.monotonic()
                until = now + PATIENCE_S if until is None else until
                if self.aborted is not None or not _may_pass(stage, error.failure) or now + pause_s > until:
                    raise
                log.warning("%s failed, and is tried again in %.0f s: %s", stage, pause_s, error.failure.message)
            else:
                return
            self.wait(pause_s)
            pause_s = min(2 * pause_s, longest_s)

    def stop(self) -> None:
        """Pass a request to stop on; a stage that does not heed it within the grace is killed."""
        self.stopping.set()
        child = self.child
        if child is not None:
            child.send_signal(signal.SIGTERM)
            self._end_within(self.grace_s)

    def wait(self, seconds: float) -> None:
        """Wait, and no longer than until a request to stop. Raises `StageFailedError` for that."""
        self.stopping.wait(seconds)
        self._check_stopping()

    def _check_aborted(self) -> None:
        self._check_stopping()
        if self.aborted is not None:
            raise StageFailedError(self.aborted)

    def abort(self, failure: Failure, *, log_stacks: bool = False) -> None:
        """Kill the stage at work, which ends for `failure`; `log_stacks` has it do that first."""
        self.aborted = failure
        child = self.child
        if child is not None:
            if log_stacks:
                child.send_signal(signal.SIGUSR1)
                time.sleep(STACKS_S)
            child.kill()

    def _arguments(self, stage: str) -> list[str]:
        places = ["--claims", str(self.volumes.claims), "--configmaps", str(self.volumes.config_maps)]
        return [stage, "--config", str(self.config_file), *places]

    def _take(self, line: str) -> None:
        try:
            report = Report.from_line(line)
        except ValueError as error:
            log.warning("unreadable report of the stage: %s", error)
            return
        if report.progress is not None:
            self.saving = report.progress.phase in _SAVING
        if report.failure is not None and self.failure is None:
            self._end_after_a_failure()
        self.failure = first_cause(self.failure, report.failure)
        self.take(report)

    def _end_within(self, seconds: float) -> None:
        """Kill the stage at work unless it ends by itself until then. torchrun's processes end with it."""
        if self.child is not None:
            _after(seconds, self.child.kill)

    def _end_after_a_failure(self) -> None:
        """As `_end_within`, with the grace on top for one that saves then: its volume may be slow."""
        child = self.child
        if child is not None:
            _after(PEERS_S, lambda: _after(self.grace_s if self.saving else 0.0, child.kill))

    def _cause(self, status: int, said: str) -> Failure:
        """Why a stage ended with this status, which wrote that to stderr at last."""
        if self.stopping.is_set():
            return self._after_a_stop()
        # A process that a library ended reports nothing; those that waited for it report that it is gone.
        unsaid = explain_exit(said)
        return first_cause(self.failure, Failure.of(unsaid) if unsaid else None) or failure_of_status(status)

    def _after_a_stop(self) -> Failure:
        """What a stage that was asked to stop has saved, or why it could not; all else followed from the request."""
        if self.failure is not None and self.failure.reason is Reason.EVICTED:
            # A process may have heard of it by another one of this pod.
            return dataclasses.replace(self.failure, code=int(ExitCode.TERMINATED))
        return self.failure if self.failure is not None and self.failure.code == ExitCode.STORAGE else STOPPED

    def _check_stopping(self) -> None:
        if self.stopping.is_set():
            raise StageFailedError(STOPPED)


def _after(seconds: float, call: Callable[[], None]) -> None:
    timer = threading.Timer(seconds, call)
    timer.daemon = True
    timer.start()


def _may_pass(stage: str, failure: Failure) -> bool:
    """Whether another try may do. A merge that found its volume full would fill it again, on which others save."""
    fills = stage == "merge" and failure.reason is Reason.STORAGE_FULL
    return failure.code in _PASSING and not fills


def stage_environment() -> dict[str, str]:
    """The environment of a stage: quiet libraries without telemetry, as many threads as the container has CPUs.

    Threads that wait for each other sleep instead of spinning: where another process also wants the CPU, a spinning one
    takes it from the very thread that it waits for. Two to six times as fast on two busy cores.

    Packs change their shape at every micro-batch, which leaves gaps between blocks of fixed size: PyTorch's allocator
    maps memory piece by piece instead. It reads that when it is initialised, and the user's own setting counts.

    Collectives of GPUs go through the ProcessGroupNCCL of all releases so far: PyTorch 2.15 has a second one as its
    default, which reports failures in other words, those of a peer that is gone among them.

    Keys of trackers are for the tracker's process alone.
    """
    threads = str(cpu_threads())
    allocator = {} if _ALLOCATOR_NAMES & os.environ.keys() else {"PYTORCH_ALLOC_CONF": "expandable_segments:True"}
    return {
        "OMP_WAIT_POLICY": "PASSIVE",
        "TORCH_DIST_USE_NCCL2": "0",
        **allocator,
        **{name: value for name, value in os.environ.items() if name not in SECRETS},
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "OMP_NUM_THREADS": threads,
        "PYTHONHASHSEED": "0",
        "RAYON_NUM_THREADS": threads,
        "TOKENIZERS_PARALLELISM": "true",
        "TRANSFORMERS_VERBOSITY": "error",
    }
