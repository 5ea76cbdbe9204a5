"""What can go wrong in a run, each with an exit code, a reason of the vocabulary and one sentence for a person.

TrainerError
 ├─ ConfigError            64  ConfigInvalid
 ├─ DoesNotFitError        64  DoesNotFit
 ├─ DatasetError           65  DatasetInvalid
 ├─ NotFoundError          66  ModelNotFound or DatasetNotFound
 ├─ NonFiniteLossError     70  NonFiniteLoss or LossDiverged
 ├─ CudaOutOfMemoryError   71  CUDAOutOfMemory
 ├─ GpuFaultError          72  GPUFault
 │   └─ GpuUnfitError      64  GPUFault
 ├─ VerificationError      73  VerificationFailed
 │   └─ DamagedError       1   VerificationFailed
 ├─ StorageError           74  StorageFull, StorageError or UploadFailed
 ├─ TransientError         75  Restarting, OutputLocked or Stalled
 ├─ PeerFailedError        75  PeerFailed; 76 where the other one's end is known
 ├─ AccessDeniedError      77  ModelAccessDenied, DatasetAccessDenied or OutputAccessDenied
 ├─ CheckpointError        78  CheckpointInvalid or ResumeMismatch
 ├─ KernelOutOfMemoryError 137 OOMKilled
 ├─ TerminatedError        143 Evicted; 76 where a peer was asked to stop
 └─ InternalError          1   InternalError
"""

import errno
import os
import re

from lora_trainer.spec.codec import CodecError
from lora_trainer.spec.exit_codes import ExitCode, reason_of
from lora_trainer.spec.reasons import Reason
from lora_trainer.spec.run_plan import RunPlan
from lora_trainer.spec.uri import UriError

_STORAGE_ERRNOS = (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EPERM, errno.EROFS)
_FAILING_ERRNOS = {errno.EIO, errno.ESTALE, getattr(errno, "EREMOTEIO", errno.EIO)}
"""What a volume answers that fails, whether it is read or written; macOS does not know the last."""

_COLLECTIVE_ERRORS = ("DistBackendError", "DistNetworkError", "DistStoreError")
_OUT_OF_DEVICE_MEMORY = re.compile(
    r"CUDA (driver )?error: out of memory|CU(BLAS|SOLVER)_STATUS_ALLOC_FAILED|Cuda failure (\d+ )?'out of memory'|"
    r"\[CUDA\]: out of memory"
)
"""cuBLAS, NCCL, the driver that maps memory and kernels that allocate past PyTorch's allocator report the shortage as a
failure of the GPU."""
_OUT_OF_RANGE = "device-side assert triggered"
_UNFIT = re.compile(
    r"no kernel image is available|driver on your system is too old|CUDA driver version is insufficient|"
    r"unsupported toolchain|Duplicate GPU detected"
)
_UNCOMPILED_ERRORS = ("CompilationError", "PTXASError", "OutOfResources", "InductorError", "BackendCompilerFailed")
_UNCOMPILED = re.compile(r"Failed to find C compiler|ptxas fatal|PTXAS error|out of resource: shared memory")
_EXITED = re.compile(r"Error ([^\n]{1,200}?) at line \d+ in file \S*csrc/")
"""How bitsandbytes says of a CUDA error why it ends its process (its `CUDA_CHECK_RETURN`)."""
_GPU_FAILED = re.compile(r"CUDA error|CUDA driver|Cuda failure|unhandled cuda error|\[CUDA\]: ")
_OWN_NETWORK = re.compile(
    r"\bibv_\w+|no socket interface|/dev/shm|shared memory segment|failed to listen|[Aa]ddress already in use|"
    r"Got async (fatal )?event|Got completion .*?(status=|error )[1-4]\b"
)
"""What NCCL and the store report of this node: calls of its network card that fail, no interface, no shared memory, and
work requests that end with a local error (`ibv_wc_status` 1 to 4)."""
MORE_LOCKED_MEMORY = (
    "set LimitMEMLOCK=infinity for the nodes' container runtime (docs/install.md), or NCCL_IB_DISABLE=1 in "
    "defaults.environment to do without RDMA"
)
_OWN_REMEDIES = (
    (re.compile(r"(/dev/shm|shared memory segment).*No space left"), "raise resources.sharedMemory"),
    (re.compile(r"\bibv_\w+.*Cannot allocate memory"), f"memory cannot be locked: {MORE_LOCKED_MEMORY}"),
)
_WATCHDOG = re.compile(
    r"watchdog thread terminated with exception: |Watchdog caught |what\(\): |Aborting process on rank \d+ due to "
)
_OF_A_COLLECTIVE = re.compile(r"NCCL|operation|remote process")
_NO_PART_OF_THE_CAUSE = re.compile(
    r" (Exception raised from|Search for `|CUDA kernel errors might be|For debugging consider|frame #0|"
    r"\(run with NCCL_DEBUG)"
)
_QUERY = re.compile(r"\?[\w.%-]+=[^\s'\")>]*")
_PASSWORD = re.compile(r"://(?:[^\s/\"'\\]*|[^\s/:@\[\"'\\]+:(?![0-9]{1,5}(?:[/?\s]|$))[^\s\"'\\]{1,128})@")
"""Also a password with `@` or `/` in it, which should have been encoded."""
_HEADER = re.compile(r"(?i)\b(bearer|basic)\s+(?=[^\s'\",]*[0-9])[^\s'\",]{8,}")
_MODULE_DUMP = re.compile(r"\(\n(?: .*\n)*\)")
"""What PyTorch prints of a module that holds others, behind its name."""
_NCCL = re.compile(r"^NCCL |NCCL (Async|Last) Error")
"""How the NCCL backend begins that PyTorch has beside ProcessGroupNCCL; it raises errors of no type of its own."""
NOT_CONNECTED = "no connections between all processes"
_LATE = re.compile(rf"Timed out waiting|wait timeout after|{NOT_CONNECTED}")
"""How gloo, the store and the trainer itself say that a process did not come in time."""
_HUB_TOKEN = re.compile(r"\bhf_[A-Za-z0-9]{16,}")
_PEER_GONE = ("gloo/transport", "Connection closed by peer", "Connection reset by peer")

_LESS = "raise resources.memory, or lower training.microBatchSize or training.maxSequenceLength"
_LESS_ON_GPU = "lower training.microBatchSize or training.maxSequenceLength, or use quantization: NF4"


class TrainerError(Exception):
    """A run's end that has a sentence. `str(error)` names the field or file, the value, the rule and the remedy."""

    code = ExitCode.INTERNAL

    def __init__(self, message: str, reason: Reason | None = None) -> None:
        super().__init__(message)
        self.reason = reason or reason_of(self.code)


class ConfigError(TrainerError):
    """The configuration cannot be honoured."""

    code = ExitCode.CONFIG_INVALID


class DoesNotFitError(TrainerError):
    """The plan says that the run does not fit the device that it is for; `plan` has what would."""

    code = ExitCode.CONFIG_INVALID

    def __init__(self, message: str, plan: RunPlan) -> None:
        super().__init__(message, Reason.DOES_NOT_FIT)
        self.plan = plan


class DatasetError(TrainerError):
    """The data cannot be learned from."""

    code = ExitCode.DATASET_INVALID


class NotFoundError(TrainerError):
    """The model or the data set does not exist where it was said to be."""

    code = ExitCode.NOT_FOUND


class NonFiniteLossError(TrainerError):
    """The loss became NaN or infinite, or went up and stayed there."""

    code = ExitCode.NON_FINITE_LOSS


class CudaOutOfMemoryError(TrainerError):
    """The GPU's memory did not suffice."""

    code = ExitCode.CUDA_OUT_OF_MEMORY


class GpuFaultError(TrainerError):
    """No usable GPU where one was given."""

    code = ExitCode.GPU_FAULT


class GpuUnfitError(GpuFaultError):
    """The GPUs, their driver or the image's kernels cannot do what the run asks, in no attempt.

    The exit code is that of a configuration that cannot be honoured, which every operator takes as final.
    """

    code = ExitCode.CONFIG_INVALID

    def __init__(self, message: str) -> None:
        super().__init__(message, Reason.GPU_FAULT)


class StorageError(TrainerError):
    """A volume cannot be written."""

    code = ExitCode.STORAGE

    def __init__(self, message: str, reason: Reason = Reason.STORAGE_ERROR) -> None:
        super().__init__(message, reason)


class TransientError(TrainerError):
    """A network failed; a later attempt may succeed."""

    code = ExitCode.TRANSIENT


class PeerFailedError(TrainerError):
    """Another process of the same training is gone, or did not come within the time: the cause is reported there.

    `accounted`: the other one said that it ends, or its pod is known to have ended, or not to have begun. Else nobody
    may ever say why this one ended, as where nodes cannot reach each other, and it counts as a failure of its own.
    """

    code = ExitCode.TRANSIENT

    def __init__(self, detail: str, *, accounted: bool = False) -> None:
        # A process that reads a large model from slow storage has done nothing wrong, and no log has a cause.
        late = ", or where it was still loading, raise stallTimeoutSeconds in the operator's configuration"
        super().__init__(
            f"another process of the run ended or does not answer ({detail[:200]}): the log of its pod has the cause"
            f"{late if _LATE.search(detail) else ''}; the run is tried again from its last checkpoint",
            Reason.PEER_FAILED,
        )
        if accounted:
            self.code = ExitCode.PEER_FAILED


class AccessDeniedError(TrainerError):
    """A token is missing or does not allow the model or the data set."""

    code = ExitCode.ACCESS_DENIED


class CheckpointError(TrainerError):
    """No saved state can be gone on from, though there is one."""

    code = ExitCode.CHECKPOINT_INVALID


class KernelOutOfMemoryError(TrainerError):
    """The kernel killed the process for memory."""

    code = ExitCode.KERNEL_OUT_OF_MEMORY


class TerminatedError(TrainerError):
    """Somebody asked the run to stop before its end; `by_a_peer`, which was asked, and whose pod says so."""

    code = ExitCode.TERMINATED

    def __init__(self, message: str, *, by_a_peer: bool = False) -> None:
        super().__init__(message, Reason.EVICTED)
        if by_a_peer:
            self.code = ExitCode.PEER_FAILED


class VerificationError(TrainerError):
    """The written adapter does not give what the trained model gave, and would not in another attempt."""

    code = ExitCode.VERIFICATION_FAILED

    def __init__(self, message: str) -> None:
        super().__init__(message, Reason.VERIFICATION_FAILED)


class DamagedError(VerificationError):
    """The files are not those that were written: another attempt writes them again."""

    code = ExitCode.INTERNAL


class InternalError(TrainerError):
    """A fault of the trainer itself."""


def storage_error(error: OSError, what: str) -> StorageError:
    """The sentence for a write that failed; `what` is the address that was written."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return StorageError(
            f"{what} cannot be written: the volume is full; free space or enlarge it", Reason.STORAGE_FULL
        )
    if error.errno == errno.EROFS:
        return StorageError(f"{what} cannot be written: {error.strerror}; mount the volume writable")
    if error.errno in (errno.EACCES, errno.EPERM):
        return StorageError(
            f"{what} cannot be written: {error.strerror}; let user {os.geteuid()} and group {os.getegid()} of the "
            "trainer write there: NFS, EFS and others may ignore fsGroup (docs/namespaces.md)"
        )
    return StorageError(f"{what} cannot be written: {error.strerror or error}")


def discreet(text: str) -> str:
    """The text without queries of addresses, which may be signatures, passwords in them, logins of headers, and tokens
    of the Hub."""
    text = _HEADER.sub(r"\1 …", _PASSWORD.sub("://…@", _QUERY.sub("?…", text)))
    return _HUB_TOKEN.sub("hf_…", text)


def one_sentence(error: BaseException) -> str:
    """An unexpected exception as one line: its type and its text, never a stack trace nor all that a module holds.

    It is `discreet`.
    """
    text = discreet(" ".join(_MODULE_DUMP.sub("", str(error)).split()))
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def explain(error: Exception) -> TrainerError:
    """The trainer's own error for one of another library or of the system; `InternalError` where none fits."""
    if isinstance(error, TrainerError):
        return error
    if isinstance(error, CodecError | UriError):
        return ConfigError(str(error))
    if isinstance(error, OSError) and error.errno in _STORAGE_ERRNOS:
        return storage_error(error, str(error.filename or "the volume"))
    if isinstance(error, OSError) and error.errno in _FAILING_ERRNOS:
        return StorageError(
            f"{error.filename or 'a volume'} cannot be read or written: {error.strerror}; look at the claim and its "
            "storage if this lasts"
        )
    return _explain_torch(error) or InternalError(one_sentence(error))


def explain_by_hand(error: Exception) -> TrainerError:
    """As `explain`, for a command on a finished result: it has no fields of a training to lower."""
    known = explain(error)
    remedies = {
        _LESS_ON_GPU: "take a GPU with more memory, or hide it (CUDA_VISIBLE_DEVICES=) to compute in main memory",
        _LESS: "give the process or its pod more main memory",
    }
    for ours, others in remedies.items():
        if known is not error and str(known).endswith(ours):
            return type(known)(str(known).removesuffix(ours) + others)
    return known


def out_of_memory(error: Exception) -> bool:
    """Whether the device's memory did not suffice, so that less at once may help."""
    return isinstance(_explain_torch(error), CudaOutOfMemoryError | KernelOutOfMemoryError)


def explain_abort(log: str) -> TrainerError | None:
    """Why a process aborted, from the end of what it and the others of its node wrote to stderr: NCCL's watchdog leaves
    no other word. Of several causes the first that is this node's own; else the last.

    None where it was not the watchdog, or not a failure that is known.
    """
    text = " ".join(log.split())
    known = [error for cause in _WATCHDOG.split(text)[1:] if (error := _explain_watchdog(cause)) is not None]
    own = (error for error in known if not isinstance(error, PeerFailedError))
    return next(own, known[-1] if known else None)


def explain_exit(log: str) -> TrainerError | None:
    """Why a process ended, from the end of what it and the others of its node wrote to stderr: bitsandbytes calls C's
    `exit(1)` on a CUDA error that it sees first, past all handlers.

    None where it was not bitsandbytes.
    """
    found = _EXITED.search(log)
    return None if found is None else _explain_device(f"CUDA error: {found[1]}")


def _explain_watchdog(cause: str) -> TrainerError | None:
    return _explain_device(cause) or (_explain_collective(cause) if _OF_A_COLLECTIVE.search(cause) else None)


def _explain_torch(error: Exception) -> TrainerError | None:
    """PyTorch's errors are known by name: importing their types would take seconds."""
    name, text = type(error).__name__, " ".join(str(error).split())
    if name == "OutOfMemoryError":
        return _device_memory(text)
    if isinstance(error, MemoryError) or "DefaultCPUAllocator" in text:
        return KernelOutOfMemoryError(f"the memory does not suffice: {_LESS}")
    if name in _UNCOMPILED_ERRORS or _UNCOMPILED.search(text):
        return GpuUnfitError(
            f"a GPU kernel does not compile ({_gist(text)}): the image needs a C compiler and kernels for this GPU; "
            "use the trainer image of the release or another kind of GPU, or set spec.training.kernels to Reference"
        )
    return _explain_device(text) or _explain_by_name(name, text)


def _explain_by_name(name: str, text: str) -> TrainerError | None:
    if name in _COLLECTIVE_ERRORS or (name == "RuntimeError" and _NCCL.search(text)):
        return _explain_collective(text)
    if name == "RuntimeError" and any(phrase in text for phrase in _PEER_GONE):
        return PeerFailedError(_gist(text))
    return _gpu_fault(text) if name == "AcceleratorError" else None


def _explain_device(text: str) -> TrainerError | None:
    """What CUDA, its driver and NCCL say of this process's own GPU."""
    if _OUT_OF_DEVICE_MEMORY.search(text):
        return _device_memory(text)
    if _OUT_OF_RANGE in text:
        return ConfigError(
            f"most likely a token or a position has no row in the model's embeddings ({_gist(text)}): check that the "
            "tokenizer belongs to the model's weights, and that no row of the data is longer than the model has "
            "positions"
        )
    if _UNFIT.search(text):
        return GpuUnfitError(
            f"the GPUs cannot be used ({_gist(text)}): each process needs a GPU of its own, of a kind and with a "
            "driver that the trainer's image is built for; docs/install.md says which"
        )
    return _gpu_fault(text) if _GPU_FAILED.search(text) else None


def _explain_collective(text: str) -> TrainerError:
    """Whose failure it is that a collective failed: this node's own, or somebody else's."""
    if _OWN_NETWORK.search(text):
        card = "look at the node's network card and its driver if this lasts"
        remedy = next((remedy for cause, remedy in _OWN_REMEDIES if cause.search(text)), card)
        return TransientError(
            f"this node's network or shared memory failed ({_gist(text)}): {remedy}; the run is tried again from its "
            "last checkpoint"
        )
    return PeerFailedError(_gist(text))


def _device_memory(text: str) -> CudaOutOfMemoryError:
    return CudaOutOfMemoryError(f"the GPU's memory does not suffice ({_gist(text)}): {_LESS_ON_GPU}")


def _gpu_fault(text: str) -> GpuFaultError:
    return GpuFaultError(f"the GPU failed ({_gist(text)}): check the node's driver and its health")


def _gist(text: str) -> str:
    """The cause without stack frames and advice for programmers; of NCCL's errors what comes after its own preface."""
    cause = _NO_PART_OF_THE_CAUSE.split(text, maxsplit=1)[0]
    named = re.search(r"\bnccl[A-Z]\w+: ", text)
    return (_NO_PART_OF_THE_CAUSE.split(text[named.start() :], maxsplit=1)[0] if named else cause)[:300].strip(" .")
