"""What each exit code of the trainer means: for docs/states.md."""

from collections.abc import Mapping

from docgen.text import code, table
from lora_trainer.spec.exit_codes import FINAL, ExitCode

EXIT_CODES: Mapping[ExitCode, str] = {
    ExitCode.OK: "`Succeeded`, together with a report",
    ExitCode.INTERNAL: "`InternalError`, or `VerificationFailed` because of damaged files",
    ExitCode.CONFIG_INVALID: "`ConfigInvalid`, `DoesNotFit`, or `GPUFault` if GPU or driver are too old",
    ExitCode.DATASET_INVALID: "`DatasetInvalid`",
    ExitCode.NOT_FOUND: "`ModelNotFound`, `DatasetNotFound`; also for a private one without a token",
    ExitCode.NON_FINITE_LOSS: "`NonFiniteLoss`, `LossDiverged`",
    ExitCode.CUDA_OUT_OF_MEMORY: "`CUDAOutOfMemory`",
    ExitCode.GPU_FAULT: "`GPUFault`: missing, failed, or in use by another process",
    ExitCode.VERIFICATION_FAILED: "`VerificationFailed`",
    ExitCode.STORAGE: "`StorageFull`, `StorageError`, `UploadFailed`",
    ExitCode.TRANSIENT: "`Restarting` (a server is unreachable), `OutputLocked`, `Stalled`, `PeerFailed`",
    ExitCode.PEER_FAILED: "`PeerFailed`, `Evicted`: another pod of the run was stopped, came again or never came",
    ExitCode.ACCESS_DENIED: "`ModelAccessDenied`, `DatasetAccessDenied`, `OutputAccessDenied`",
    ExitCode.CHECKPOINT_INVALID: "`CheckpointInvalid`, `ResumeMismatch`",
    ExitCode.KERNEL_OUT_OF_MEMORY: "`OOMKilled`, `Evicted`, `NodeLost` or `InternalError`, by what the node reports",
    ExitCode.TERMINATED: "`Evicted`: asked to stop, after a checkpoint where possible",
}
"""The reasons with which a pod ends so."""


def render() -> str:
    """The table, by number."""
    rows = [(code(each.value), EXIT_CODES[each], _retried(each)) for each in sorted(ExitCode)]
    return table(("exit code", "reason", "retried"), rows)


def _retried(each: ExitCode) -> str:
    return "no" if each in FINAL or each is ExitCode.OK else "yes"
