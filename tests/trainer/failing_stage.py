"""A stand-in for the stage `train` under torchrun: process 1 fails as FAIL says, process 0 waits to be asked to stop,
and with FAIL=unsaved fails then. With FAIL=unfit both fail at once, as where the run does not fit their GPUs. One
process alone is process 1.

They meet in the folder MEETING, and need no PyTorch for it, whose import takes most of the time."""

import atexit
import faulthandler
import os
import signal
import sys
import time
from pathlib import Path

from tests.unit.reports import make_plan

from lora_trainer.distributed.parent import end_with_parent
from lora_trainer.distributed.reports import Report, Reporter, open_report
from lora_trainer.errors import DatasetError, DoesNotFitError, PeerFailedError, StorageError
from lora_trainer.host.guard import guarded, leave
from lora_trainer.spec.progress import Phase
from lora_trainer.spec.reasons import Reason

PLAN = make_plan(fits=False, reason="the run needs at least 20.0 GiB of a GPU's memory, and T4 has 15.0 GiB: more")


def main() -> int:
    """What the stage does around its own work."""
    end_with_parent()
    faulthandler.register(signal.SIGUSR1, all_threads=True)
    rank = int(os.environ.get("LOCAL_RANK", "1"))
    reporter = Reporter(open_report(sys.argv[sys.argv.index("--report") + 1]), failures_only=rank > 0)
    return guarded(lambda: _work(rank, reporter), reporter)


def _unsaved(*_: object) -> None:
    raise StorageError("the checkpoint step-00000012 does not fit", Reason.STORAGE_FULL)


def _meet(where: str, rank: int) -> None:
    place = Path(os.environ["MEETING"])
    (place / f"{where}-{rank}").touch()
    while len(list(place.glob(f"{where}-*"))) < int(os.environ.get("WORLD_SIZE", "1")):
        time.sleep(0.02)


def _wait_said() -> None:
    """Until the other's last words are out: only with its end does a connection to it break."""
    while not (Path(os.environ["MEETING"]) / "said").exists():
        time.sleep(0.02)


def _end_as_bitsandbytes() -> None:
    """Its text on a CUDA error, and C's exit, which ends a process like this: no handler runs, nothing is reported."""
    os.write(2, f"Error {os.environ['LAST_WORDS']} at line 93 in file /src/csrc/ops.cu\n".encode())
    (Path(os.environ["MEETING"]) / "said").touch()
    os._exit(1)


def _work(rank: int, reporter: Reporter) -> None:
    how = os.environ["FAIL"]
    signal.signal(signal.SIGTERM, _unsaved if how == "unsaved" and rank == 0 else lambda *_: sys.exit(143))
    _meet("started", rank)  # neither is asked to stop, or to fail, in the middle of its start
    reporter.phase(Phase.TRAINING)
    if how.startswith("saving") and rank == 0:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        reporter.phase(Phase.CHECKPOINTING)
        reporter.failure(PeerFailedError("its node is gone or began again"))  # as torchrun for a round that is over
        time.sleep(300 if how == "saving for ever" else 3)
        reporter.progress(phase=Phase.TRAINING, checkpoint_step=12)
        raise PeerFailedError("Connection closed by peer")
    if how.startswith("saving"):
        signal.pause()
    if how in ("error", "killed", "aborted"):
        _meet("reported", rank)  # the failure of one ends the other, which has reported by then
    if how == "unfit":
        reporter.send(Report(plan=PLAN))
        _meet("planned", rank)  # once one has failed, the other is asked to stop, on a busy machine before it reports
        raise DoesNotFitError(PLAN.reason, PLAN)
    if how == "deaf" and rank == 0:
        # As a process does that waits in a collective of its GPU.
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    if how == "deaf" and rank == 1:
        atexit.register(time.sleep, 300)  # as Python's own end, which waits for the others
    if how == "peer exited" and rank == 0:
        _wait_said()
        raise PeerFailedError("Connection closed by peer")
    if how in ("exited", "peer exited") and rank == 1:
        _end_as_bitsandbytes()
    if rank == 0 or how in ("never", "unsaved"):
        signal.pause()
    if how == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
    if how == "aborted":
        # As NCCL's watchdog does, from a thread of its own: PyTorch's text, then SIGABRT.
        sys.stderr.write(f"{os.environ['LAST_WORDS']}\n")
        sys.stderr.flush()
        os.abort()
    raise DatasetError("row 17 of train.jsonl has no columns: give it some")


if __name__ == "__main__":
    leave(main(), os.environ)
