"""Errors of libraries and of the system, each with its exit code and a sentence."""

import errno
import importlib.util
import re
from pathlib import Path

import pytest
import torch
import torch.distributed
import urllib3

from lora_trainer.command_options import by_hand
from lora_trainer.errors import discreet, explain, explain_abort, explain_exit, one_sentence, out_of_memory
from lora_trainer.spec.exit_codes import FINAL, ExitCode
from lora_trainer.spec.reasons import Reason


@pytest.mark.parametrize(
    ("error", "code", "reason"),
    [
        (
            torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
            ExitCode.CUDA_OUT_OF_MEMORY,
            Reason.CUDA_OUT_OF_MEMORY,
        ),
        (
            RuntimeError("CUDA error: out of memory\nCUDA kernel errors might be asynchronously reported"),
            ExitCode.CUDA_OUT_OF_MEMORY,
            Reason.CUDA_OUT_OF_MEMORY,
        ),
        (
            RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
            ExitCode.CUDA_OUT_OF_MEMORY,
            Reason.CUDA_OUT_OF_MEMORY,
        ),
        *(
            (RuntimeError(text), ExitCode.CUDA_OUT_OF_MEMORY, Reason.CUDA_OUT_OF_MEMORY)
            for text in (
                "CUDA driver error: out of memory",
                "cuSOLVER error: CUSOLVER_STATUS_ALLOC_FAILED, when calling `cusolverDnCreate(handle)`",
            )
        ),
        (
            RuntimeError("CUDA error: an illegal memory access was encountered"),
            ExitCode.GPU_FAULT,
            Reason.GPU_FAULT,
        ),
        (
            RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory"),
            ExitCode.KERNEL_OUT_OF_MEMORY,
            Reason.OOM_KILLED,
        ),
        (OSError(errno.ENOSPC, "No space left on device", "/x"), ExitCode.STORAGE, Reason.STORAGE_FULL),
        (RuntimeError("something\nelse"), ExitCode.INTERNAL, Reason.INTERNAL_ERROR),
    ],
)
def test_an_error_of_a_library_has_an_exit_code_and_one_line(error: Exception, code: ExitCode, reason: Reason) -> None:
    """Too little memory of a GPU is not retried on another one, as a fault of the GPU is."""
    known = explain(error)
    assert (known.code, known.reason) == (code, reason)
    assert out_of_memory(error) is (reason in (Reason.CUDA_OUT_OF_MEMORY, Reason.OOM_KILLED))
    assert "\n" not in str(known)


ASSERT = """CUDA error: device-side assert triggered
Search for `cudaErrorAssert' in https://docs.nvidia.com/cuda/cuda-runtime-api/group__CUDART__TYPES.html for more.
CUDA kernel errors might be asynchronously reported at some other API call, so the stacktrace below might be incorrect.
"""


def test_an_index_out_of_range_is_no_fault_of_the_gpu() -> None:
    """A healthy node would be drained for a token that the model has no embedding of; no attempt finds another. Which
    index it was, or whether another assertion failed, the GPU does not say."""
    known = explain(torch.AcceleratorError(ASSERT))
    assert str(known).startswith("most likely a token or a position has no row in the model's embeddings (")
    assert (known.code, known.reason) == (ExitCode.CONFIG_INVALID, Reason.CONFIG_INVALID)
    assert known.code in FINAL
    assert "tokenizer" in str(known)
    assert not any(text in str(known) for text in ("health", "https", "Search"))


@pytest.mark.parametrize(
    ("error", "want"),
    [
        (
            torch.OutOfMemoryError("CUDA out of memory"),
            r"\(CUDA out of memory\): take a GPU with more memory",
        ),
        (MemoryError(), "the memory does not suffice: give the process or its pod more main memory"),
        (OSError(errno.ENOSPC, "No space left on device", "/x"), "/x cannot be written: the volume is full"),
    ],
)
def test_a_command_on_a_result_names_no_field_of_a_training(
    capsys: pytest.CaptureFixture[str], error: Exception, want: str
) -> None:
    """Nobody can lower these there."""

    def act() -> None:
        raise error

    assert by_hand(act) == explain(error).code
    said = capsys.readouterr().err
    assert re.search(want, said)
    assert "training." not in said
    assert "resources." not in said


def nccl(status: str, last: str, name: str) -> torch.distributed.DistBackendError:
    """NCCL's error as PyTorch raises it."""
    return torch.distributed.DistBackendError(
        f"NCCL error in: /pytorch/torch/csrc/distributed/c10d/NCCLUtils.hpp:268, {status} (run with NCCL_DEBUG=INFO "
        f"for details), NCCL version 2.30.7\n{name}: {last}"
    )


def system(last: str) -> torch.distributed.DistBackendError:
    """One of a system call."""
    preface = "System call (e.g. socket, malloc) or external library call failed or device error. \nLast error:\n"
    return nccl("unhandled system error", preface + last, "ncclSystemError")


def remote(last: str) -> torch.distributed.DistBackendError:
    """One of another process."""
    preface = "A call failed possibly due to a network error or a remote process exiting prematurely.\nLast error:\n"
    return nccl("remote process exited or there was a network error", preface + last, "ncclRemoteError")


def cuda(last: str) -> torch.distributed.DistBackendError:
    """One of a CUDA function."""
    preface = "Call to CUDA function failed.\nLast error:\n"
    return nccl("unhandled cuda error", preface + last, "ncclUnhandledCudaError")


PEER, OWN_NETWORK = (ExitCode.TRANSIENT, Reason.PEER_FAILED), (ExitCode.TRANSIENT, Reason.RESTARTING)
GPU, UNFIT = (ExitCode.GPU_FAULT, Reason.GPU_FAULT), (ExitCode.CONFIG_INVALID, Reason.GPU_FAULT)
SHORT = (ExitCode.CUDA_OUT_OF_MEMORY, Reason.CUDA_OUT_OF_MEMORY)


@pytest.mark.parametrize(
    ("error", "blame", "named"),
    [
        (
            remote("socketProgressOpt: Call to recv from 10.0.0.7<33759> failed : Connection reset by peer"),
            PEER,
            "33759",
        ),
        (
            remote("NET/IB : Got completion from peer 10.0.0.7<54862> with status=12 opcode=0 len=0 vendor err 129"),
            PEER,
            "12",
        ),
        (
            remote("NET/IB : Got completion from peer 10.0.0.7<5486> with status=4 opcode=0 len=0 vendor err 81"),
            OWN_NETWORK,
            "4",
        ),
        (system("socketStartConnect: Connect to 10.0.0.7<52822> failed : No route to host"), PEER, "No route"),
        (system("Call to ibv_modify_qp failed with error No such device"), OWN_NETWORK, "ibv_modify_qp"),
        (system("Bootstrap : no socket interface found"), OWN_NETWORK, "no socket interface"),
        (system("Error while creating shared memory segment /dev/shm/nccl-KWfVyt (size 5967872)"), OWN_NETWORK, "shm"),
        (cuda("Cuda failure 999 'unknown error'"), GPU, "999"),
        (cuda("Cuda failure 'uncorrectable ECC error encountered'"), GPU, "ECC"),
        (cuda("Cuda failure 2 'out of memory'"), SHORT, "out of memory"),
        (
            nccl(
                "invalid usage",
                "This usually reflects invalid usage of NCCL library.\nLast error:\nDuplicate GPU "
                "detected : rank 1 and rank 0 both on CUDA device 50000",
                "ncclInvalidUsage",
            ),
            UNFIT,
            "Duplicate GPU",
        ),
        (
            torch.distributed.DistNetworkError(
                "The client socket has timed out after 60000ms while trying to connect to (10.0.0.7, 29400)."
            ),
            PEER,
            "29400",
        ),
        (
            torch.distributed.DistNetworkError(
                "The server socket has failed to listen on any local network address. port: "
                "29400, useIpv6: false, code: -98, name: EADDRINUSE, message: address already in use"
            ),
            OWN_NETWORK,
            "29400",
        ),
    ],
)
def test_a_collective_that_fails_is_blamed_on_whom_it_is_the_fault_of(
    error: Exception, blame: tuple[ExitCode, Reason], named: str
) -> None:
    """This node's network card and GPU are not hidden behind another process, whose log would say nothing of them."""
    known = explain(error)
    assert (known.code, known.reason) == blame
    assert named in str(known)
    assert "NCCL_DEBUG" not in str(known)


@pytest.mark.parametrize(
    ("said", "remedy"),
    [
        (
            "Error while creating shared memory segment /dev/shm/nccl-K (size 330305), error: No space left on device",
            "raise resources.sharedMemory",
        ),
        ("Call to ibv_reg_mr failed with error Cannot allocate memory errno 12", "set LimitMEMLOCK=infinity"),
        ("Call to ibv_create_cq failed with error Cannot allocate memory", "set LimitMEMLOCK=infinity"),
        ("Call to ibv_create_qp failed with error Invalid argument", "look at the node's network card"),
        ("Error while attaching to shared memory segment /dev/shm/nccl-KWfVyt (size 9637892)", "look at the node's"),
    ],
)
def test_a_node_that_gives_too_little_is_not_a_network_card_that_fails(said: str, remedy: str) -> None:
    """Each attempt on it ends alike, until somebody raises what it gives; from an error and from the watchdog's log."""
    for known in (explain(system(said)), explain_abort(ENDED + str(system(said)) + FRAMES)):
        assert known is not None
        assert (known.code, known.reason) == OWN_NETWORK
        assert f": {remedy}" in str(known)


@pytest.mark.parametrize(
    ("error", "named"),
    [
        (
            RuntimeError(
                "CUDA error: no kernel image is available for execution on the device\nCUDA kernel errors might be "
                "asynchronously reported at some other API call"
            ),
            "docs/install.md",
        ),
        (RuntimeError("The NVIDIA driver on your system is too old (found version 12020)."), "found version 12020"),
        (
            RuntimeError(
                "Failed to find C compiler. Please specify via CC environment variable or set triton.knobs.build.impl."
            ),
            "C compiler",
        ),
        (
            type("OutOfResources", (Exception,), {})(
                "out of resource: shared memory, Required: 131072, Hardware limit: "
                "101376. Reducing block sizes or `num_stages` may help."
            ),
            "101376",
        ),
        (
            type("PTXASError", (RuntimeError,), {})("PTXAS error: Internal Triton PTX codegen error"),
            "use the trainer image of the release or another kind of GPU, or set spec.training.kernels to Reference",
        ),
    ],
)
def test_what_no_attempt_can_mend_is_a_fault_of_the_gpu_that_is_final(error: Exception, named: str) -> None:
    """The exit code is one that operators of earlier releases take as final, too."""
    known = explain(error)
    assert (known.code, known.reason) == UNFIT
    assert known.code in FINAL
    assert named in str(known)
    assert "asynchronously" not in str(known)


WATCHDOG = "[rank1]:[E410 01:50:33.889423318 ProcessGroupNCCL.cpp:1895] [PG ID 0 PG GUID 0(default_pg) Rank 1] "
ENDED = WATCHDOG + "Process group watchdog thread terminated with exception: "
TIMEOUT = (
    "[Rank 1] Watchdog caught collective operation timeout: WorkNCCL(SeqNum=12, OpType=ALLREDUCE, NumelIn=4096, "
    "NumelOut=4096, Timeout(ms)=600000) ran for 600004 milliseconds before timing out."
)
FRAMES = (
    "\nException raised from checkTimeout at /pytorch/torch/csrc/distributed/c10d/ProcessGroupNCCL.cpp:632 (most "
    "recent call first):\nframe #0: c10::Error::Error(c10::SourceLocation, std::string) + 0x96 (0x7f5a in libc10.so)\n"
)
ECC = "CUDA error: uncorrectable ECC error encountered\nCUDA kernel errors might be"
OTHER = ENDED.replace("ank1", "ank0").replace("Rank 1", "Rank 0")
THROWN = "terminate called after throwing an instance of 'c10::DistBackendError'\n  what():  [PG ID 0 Rank 1] "


@pytest.mark.parametrize(
    ("log", "blame", "named"),
    [
        (ENDED + TIMEOUT + FRAMES + THROWN + ENDED + TIMEOUT + FRAMES, PEER, "ALLREDUCE"),
        (ENDED + ECC + FRAMES, GPU, "ECC"),
        (ENDED + ECC + FRAMES + OTHER + TIMEOUT.replace("Rank 1", "Rank 0") + FRAMES, GPU, "ECC"),
        (OTHER + TIMEOUT.replace("Rank 1", "Rank 0") + FRAMES + ENDED + ECC + FRAMES, GPU, "ECC"),
        (ENDED + str(remote("socketProgress: Connection closed by remote peer node1<57557>")) + FRAMES, PEER, "node1"),
        (ENDED + str(system("Call to ibv_reg_mr failed with error Bad address")) + FRAMES, OWN_NETWORK, "ibv_reg_mr"),
        (ENDED + str(cuda("Cuda failure 2 'out of memory'")), SHORT, "out of memory"),
    ],
)
def test_an_abort_of_the_watchdog_is_explained_from_its_log(
    log: str, blame: tuple[ExitCode, Reason], named: str
) -> None:
    """NCCL's watchdog ends its process by SIGABRT, which no exception handler sees."""
    known = explain_abort("step 12/100  loss 1.2\n" + log)
    assert known is not None
    assert (known.code, known.reason) == blame
    assert named in str(known)
    assert "frame #0" not in str(known)


@pytest.mark.parametrize(
    ("said", "blame"),
    [
        ("out of memory", SHORT),
        ("an illegal memory access was encountered", GPU),
        ("uncorrectable ECC error encountered", GPU),
        ("CUDA driver version is insufficient for CUDA runtime version", UNFIT),
        ("no kernel image is available for execution on the device", UNFIT),
        ("device-side assert triggered", (ExitCode.CONFIG_INVALID, Reason.CONFIG_INVALID)),
    ],
)
def test_an_exit_of_bitsandbytes_is_explained_from_its_log(said: str, blame: tuple[ExitCode, Reason]) -> None:
    """It ends its process by C's `exit` on a CUDA error that one of its calls sees first."""
    known = explain_exit(f"step 12/100\nError {said} at line 93 in file /src/csrc/ops.cu\nstep 13/100\n")
    assert known is not None
    assert (known.code, known.reason) == blame
    assert said in str(known)
    assert "ops.cu" not in str(known)


def test_bitsandbytes_still_says_so() -> None:
    """The form of its text is no interface: a release that changes it is to be noticed."""
    found = importlib.util.find_spec("bitsandbytes")
    assert found is not None
    assert found.origin is not None
    libraries = list(Path(found.origin).parent.glob("libbitsandbytes_cuda*.so"))
    assert libraries
    for library in libraries:
        data = library.read_bytes()
        assert b"Error %s at line %d in file %s" in data
        assert b"csrc/ops.cu" in data


NCCL2 = "[TC][rank=1] nccl hit async error on rank 1: remote process exited or there was a network error\n"
GONE = "remote process exited or there was a network error"


@pytest.mark.parametrize(
    ("error", "blame"),
    [
        (RuntimeError(f"NCCL Async Error: {GONE}"), PEER),
        (RuntimeError(f"NCCL operation failed: {GONE} NCCL Last Error: socketProgress: Connection closed"), PEER),
        (RuntimeError("NCCL Async Error: unhandled system error: Call to ibv_reg_mr failed"), OWN_NETWORK),
        (RuntimeError("NCCL Async Error: unhandled cuda error Cuda failure 719 'unspecified launch failure'"), GPU),
    ],
)
def test_the_other_backend_of_nccl_is_understood_too(error: Exception, blame: tuple[ExitCode, Reason]) -> None:
    """Whoever asks for it by TORCH_DIST_USE_NCCL2, or builds the image with another PyTorch."""
    known = explain(error)
    assert (known.code, known.reason) == blame
    aborted = explain_abort(f"{NCCL2}[TC][rank=1] Aborting process on rank 1 due to error - {error}\n")
    assert aborted is not None
    assert (aborted.code, aborted.reason) == blame


def test_a_process_that_was_waited_for_may_still_load() -> None:
    """The remedy is a setting then."""
    late = explain(RuntimeError("[gloo/transport/tcp/unbound_buffer.cc:78] Timed out waiting 1800000ms for recv"))
    store = explain(torch.distributed.DistStoreError("wait timeout after 1800000ms, keys: /lora/here/1"))
    assert all("raise stallTimeoutSeconds" in str(error) for error in (late, store))
    gone = explain(RuntimeError("[gloo/transport/tcp/pair.cc:547] Connection closed by peer [10.0.0.3]:48213"))
    assert "stallTimeoutSeconds" not in str(gone)


@pytest.mark.parametrize("log", ["", "step 12/100\n", "terminate called\n  what():  basic_string::_M_create\n"])
def test_an_abort_of_anything_else_stays_without_a_cause(log: str) -> None:
    """Nothing is guessed."""
    assert explain_abort(log) is None
    assert explain_exit(log) is None


def test_signatures_and_passwords_of_addresses_are_no_part_of_a_sentence() -> None:
    """A storage's address that the Hub or a registry gave opens the object to whoever reads the status."""
    pool = urllib3.HTTPSConnectionPool("cdn.example")
    address = "/blob/7f?X-Amz-Credential=AKIA&X-Amz-Signature=0123abcd"
    error = urllib3.exceptions.MaxRetryError(pool, address, OSError("via http://ann:geheim@proxy.example:3128"))
    sentence = one_sentence(error)
    assert not any(secret in sentence for secret in ("AKIA", "0123abcd", "geheim"))
    assert "/blob/7f?…" in sentence
    assert "http://…@proxy.example:3128" in sentence
    assert one_sentence(ValueError("is it so? a=b")) == "ValueError: is it so? a=b"
    assert one_sentence(ValueError(f"no hf_{'Ab1' * 11}")) == "ValueError: no hf_…"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("http://me:p@ss@proxy:3128 refused", "http://…@proxy:3128 refused"),
        ("http://me:p/ss@proxy:3128/ refused", "http://…@proxy:3128/ refused"),
        ("https://TOKEN@host/x", "https://…@host/x"),
        ("Invalid header value b'Bearer dapi0123456789\\n'", "Invalid header value b'Bearer …'"),
        ("Authorization: Basic dXNlcjpodW50ZXIy", "Authorization: Basic …"),
        ("basic authentication failed", "basic authentication failed"),
        ("oci://registry:5000/team/x@sha256:0", "oci://registry:5000/team/x@sha256:0"),
        ("hf://org/model@main and s3://b/k@1", "hf://org/model@main and s3://b/k@1"),
        ('{"a":"http://x","b":"me@x"}', '{"a":"http://x","b":"me@x"}'),
    ],
)
def test_logins_are_no_part_of_a_sentence(text: str, said: str) -> None:
    """Also those that an address has without encoding them, and those of headers; addresses of the API stay."""
    assert discreet(text) == said
