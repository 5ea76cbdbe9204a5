"""What a stage reports to its supervisor: JSON lines on a pipe."""

import dataclasses
import json
import os
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from lora_trainer.distributed.activity import Activity
from lora_trainer.errors import TrainerError
from lora_trainer.spec import codec
from lora_trainer.spec.exit_codes import ExitCode
from lora_trainer.spec.progress import Phase, Progress
from lora_trainer.spec.reasons import Reason
from lora_trainer.spec.run_plan import RunPlan
from lora_trainer.spec.summary import DatasetStats, ResolvedRun, Verification
from lora_trainer.storage.manifest import Published


@dataclass(frozen=True, slots=True, kw_only=True)
class Counters:
    """Totals of this attempt so far, for metrics that only grow. `left_out` are steps without finite numbers,
    `scaled_down` those beyond the range of FP16; `mfu` is the share of the GPUs' peak."""

    tokens: int = 0
    rows: int = 0
    left_out: int = 0
    scaled_down: int = 0
    saves: int = 0
    failed_saves: int = 0
    halvings: int = 0
    gradient_norm: float | None = None
    step_seconds: float | None = None
    fill: float | None = None
    mfu: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuMemory:
    """Memory of one GPU, which PyTorch numbers `gpu`: of tensors now and at most, and what is kept for them."""

    gpu: int
    allocated_bytes: int
    reserved_bytes: int
    peak_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """Why a stage ended; `message` is one sentence."""

    code: int
    reason: Reason
    message: str

    @classmethod
    def of(cls, error: TrainerError) -> "Failure":
        """That of a stage which ended with this error."""
        return cls(code=int(error.code), reason=error.reason, message=str(error))


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """One line from a stage; exactly what changed is set."""

    progress: Progress | None = None
    activity: Activity | None = None
    counters: Counters | None = None
    memory: GpuMemory | None = None
    dataset: DatasetStats | None = None
    verification: Verification | None = None
    published: Published | None = None
    plan: RunPlan | None = None
    failure: Failure | None = None

    def to_line(self) -> str:
        """JSON on one line, with its line end."""
        return json.dumps(codec.encode(self)) + "\n"

    @classmethod
    def from_line(cls, line: str) -> "Report":
        """Read the text of `to_line`. Raises `ValueError`."""
        return codec.decode(cls, json.loads(line))


class Reporter:
    """Sends reports on a file descriptor, or nowhere. `wall_clock` gives seconds since 1970.

    With `failures_only` all but the memory of its GPU is left to another process of the node. Each report is one write:
    lines of several processes do not mix as long as they are shorter than a pipe's atomic 4096 bytes, and these are.
    """

    def __init__(
        self, descriptor: int | None, wall_clock: Callable[[], float] = time.time, *, failures_only: bool = False
    ) -> None:
        self._descriptor = descriptor
        self._failures_only = failures_only
        self._wall_clock = wall_clock
        self._progress = Progress()

    def progress(self, counters: Counters | None = None, **changes: Any) -> None:
        """Report progress with some of its fields changed."""
        self._progress = dataclasses.replace(self._progress, updated_at=self._wall_clock(), **changes)
        self.send(Report(progress=self._progress, counters=counters))

    def phase(self, phase: Phase, resolved: ResolvedRun | None = None) -> None:
        """Report that another part of the run begins."""
        self.progress(phase=phase, resolved=resolved or self._progress.resolved)

    def activity(self, activity: Activity) -> None:
        """Report how far a piece of work is that is no step."""
        self.send(Report(activity=activity))

    def smaller_micro_batches(self, rows: int, accumulation: int, counters: Counters) -> None:
        """Report that memory did not suffice: micro-batches have at most that many rows of the longest length from now
        on, and a step that many micro-batches."""
        resolved = self._progress.resolved
        if resolved is not None:
            rows = min(rows, resolved.micro_batch_size)
            resolved = dataclasses.replace(resolved, micro_batch_size=rows, gradient_accumulation_steps=accumulation)
        self.progress(counters, resolved=resolved)

    def failure(self, error: TrainerError) -> None:
        """Report the end of the stage."""
        self.send(Report(failure=Failure.of(error)))

    def send(self, report: Report) -> None:
        """Send one line. Ends the process where the supervisor is gone: nobody would verify and publish the result."""
        said_by_all = report.failure is not None or report.memory is not None
        if self._descriptor is None or (self._failures_only and not said_by_all):
            return
        data = report.to_line().encode()
        try:
            while data:
                data = data[os.write(self._descriptor, data) :]
        except BrokenPipeError:
            raise SystemExit(ExitCode.TERMINATED) from None


def open_report(where: str) -> int:
    """The pipe to the supervisor: a descriptor's number, or a path under torchrun, which hands no descriptors on."""
    return int(where) if where.isdigit() else os.open(where, os.O_WRONLY)


def first_cause(earlier: Failure | None, later: Failure | None) -> Failure | None:
    """Which of two reports of failing processes has the cause: the earlier one, unless it only followed from another.

    When a process fails, the others find that it is gone, and torchrun stops them.
    """
    consequences = (Reason.PEER_FAILED, Reason.EVICTED)
    if earlier is None or later is None:
        return earlier or later
    return later if earlier.reason in consequences and later.reason not in consequences else earlier


def failure_of_status(status: int) -> Failure:
    """Why a stage ended that could not say so itself; `status` as of `subprocess`, negative for a signal, never 0."""
    if status == -9:
        return Failure(
            code=int(ExitCode.KERNEL_OUT_OF_MEMORY),
            reason=Reason.OOM_KILLED,
            message="the kernel killed the training process, most likely for memory: raise resources.memory, or lower "
            "training.maxSequenceLength or training.microBatchSize",
        )
    how = f"signal {_name_of(-status)}" if status < 0 else f"exit status {status}"
    return Failure(
        code=int(ExitCode.INTERNAL),
        reason=Reason.INTERNAL_ERROR,
        message=f"the training process ended with {how} and no explanation: see the log of the pod",
    )


def _name_of(number: int) -> str:
    return signal.Signals(number).name if number in set(signal.Signals) else str(number)
