"""Why a run does without a fast path that raised: a kernel may raise anything, but some of it no run survives."""

import re

from lora_trainer.errors import ConfigError, GpuFaultError, GpuUnfitError, explain, one_sentence

_NOT_LAUNCHED = re.compile(
    r"invalid (configuration )?argument|invalid device function|kernel image is invalid|PTX JIT compilation failed|"
    r"too many resources requested|operation not supported(?! on global)|"
    r"CUBLAS_STATUS_(NOT_SUPPORTED|INVALID_VALUE|ARCH_MISMATCH)"
)
"""What CUDA says of a kernel that it did not begin: the next one can run."""


def refusal_of(error: Exception, path: str, trouble: str = "fails") -> str:
    """The reason to leave a fast path out that raised this while it was tried.

    Raises the error's own sentence where the GPU failed: CUDA answers every later call of this process with the same
    error, so that plain PyTorch would fail next, and hide what did it.
    """
    known = explain(error)
    # An assertion on the device, which is explained by the configuration, ends the context as well.
    broken = isinstance(known, GpuFaultError | ConfigError) and not isinstance(known, GpuUnfitError)
    if broken and not _NOT_LAUNCHED.search(str(error)):
        raise type(known)(
            f"{known}; the fast path {path} was being tried: if this repeats, set spec.training.kernels to Reference"
        ) from error
    return f"it {trouble}: {one_sentence(error)[:200]}"
