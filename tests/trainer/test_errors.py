"""Errors of libraries and of the system, each with its exit code and a sentence."""

import errno

import pytest
import torch
import urllib3

from lora_trainer.contract.exit_codes import ExitCode
from lora_trainer.contract.reasons import Reason
from lora_trainer.errors import explain, one_sentence


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
    assert "\n" not in str(known)


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
