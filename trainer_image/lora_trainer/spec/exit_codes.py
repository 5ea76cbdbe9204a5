"""What the trainer's exit status means. Rendered into the Job's `podFailurePolicy` and into the docs."""

import enum

from lora_trainer.spec.reasons import Reason


class ExitCode(enum.IntEnum):
    """Exit status of the trainer; 64 to 78 follow sysexits where a meaning exists there.

    With `PEER_FAILED`, which the Job leaves out of its count, ends a pod that another one of the run asked to, or that
    waited for it in vain: that one's end counts, or its absence does not.
    """

    OK = 0
    CONFIG_INVALID = 64
    DATASET_INVALID = 65
    NOT_FOUND = 66
    NON_FINITE_LOSS = 70
    CUDA_OUT_OF_MEMORY = 71
    GPU_FAULT = 72
    VERIFICATION_FAILED = 73
    STORAGE = 74
    TRANSIENT = 75
    PEER_FAILED = 76
    ACCESS_DENIED = 77
    CHECKPOINT_INVALID = 78
    INTERNAL = 1
    KERNEL_OUT_OF_MEMORY = 137
    TERMINATED = 143


FINAL = (
    ExitCode.CONFIG_INVALID,
    ExitCode.DATASET_INVALID,
    ExitCode.NOT_FOUND,
    ExitCode.NON_FINITE_LOSS,
    ExitCode.CUDA_OUT_OF_MEMORY,
    ExitCode.VERIFICATION_FAILED,
    ExitCode.ACCESS_DENIED,
    ExitCode.CHECKPOINT_INVALID,
)
"""Exit codes that the same input would give again: the Job fails at once, without a retry."""

_REASONS = {
    ExitCode.CONFIG_INVALID: Reason.CONFIG_INVALID,
    ExitCode.DATASET_INVALID: Reason.DATASET_INVALID,
    ExitCode.NOT_FOUND: Reason.MODEL_NOT_FOUND,
    ExitCode.NON_FINITE_LOSS: Reason.NON_FINITE_LOSS,
    ExitCode.CUDA_OUT_OF_MEMORY: Reason.CUDA_OUT_OF_MEMORY,
    ExitCode.GPU_FAULT: Reason.GPU_FAULT,
    ExitCode.VERIFICATION_FAILED: Reason.VERIFICATION_FAILED,
    ExitCode.STORAGE: Reason.STORAGE_FULL,
    ExitCode.TRANSIENT: Reason.RESTARTING,
    ExitCode.PEER_FAILED: Reason.PEER_FAILED,
    ExitCode.ACCESS_DENIED: Reason.MODEL_ACCESS_DENIED,
    ExitCode.CHECKPOINT_INVALID: Reason.CHECKPOINT_INVALID,
    ExitCode.KERNEL_OUT_OF_MEMORY: Reason.OOM_KILLED,
    ExitCode.TERMINATED: Reason.EVICTED,
}


def reason_of(status: int) -> Reason:
    """The reason that an exit status alone allows; the termination message may know a better one."""
    return _REASONS.get(ExitCode(status), Reason.INTERNAL_ERROR) if status in set(ExitCode) else Reason.INTERNAL_ERROR
