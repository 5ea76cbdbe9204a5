"""Whether a GPU that the pod was given can train: found out before anything is read for the run.

Each refusal says what was found, what is needed and what to do. What a later attempt may find otherwise is a
`GpuFaultError`, all else a `GpuUnfitError`.
"""

import logging
import re
from collections.abc import Iterable
from pathlib import Path

import torch

from lora_trainer.errors import (
    CudaOutOfMemoryError,
    GpuFaultError,
    GpuUnfitError,
    InternalError,
    explain,
    out_of_memory,
)
from lora_trainer.plan.limits import CONTEXT_BYTES, FIT_SHARE

log = logging.getLogger(__name__)
LEAST_DRIVER = {"12": 525, "13": 580}
"""Oldest branch of NVIDIA's driver by major release of CUDA (NVIDIA, CUDA Toolkit Release Notes, minimum driver version
for minor version compatibility)."""
DRIVER_FILE = Path("/proc/driver/nvidia/version")
_GIB = 2**30
_LEAST_FREE_BYTES = _GIB
"""Of a GPU's memory: with less not even the smallest run begins."""
_UNMAPPABLE = re.compile(
    r"CUDA driver error: (operation not supported|unknown error)|CUDA_ERROR_NOT_SUPPORTED|nvmlDeviceGetGpuFabricInfo"
)
"""What virtual GPUs, WSL2 (pytorch issue 192330) and Jetson (186374) answer to CUDA's virtual memory management, which
`expandable_segments` rests on. Others, and Jetson too (pytorch pull request 112121), call it out of memory."""
_DRIVER = re.compile(r"\b(\d{3}\.\d+(?:\.\d+)?)\b")
_FOUND = re.compile(r"too old \(found version (\d+)\)")
_ARCHITECTURE = re.compile(r"(sm|compute)_(\d+)(\d)([af]?)")


def no_gpu(wanted: int, said: str, *, driver: str | None, cuda: str | None) -> GpuFaultError:
    """Why CUDA sees no GPU where `wanted` were given. `said` is its own text, `driver` the node's, where it is known,
    and `cuda` what the image is built for."""
    found = _FOUND.search(said)
    if found is None:
        why = f" ({' '.join(said.split())[:200].strip(' .')})" if said else ""
        return GpuFaultError(
            f"resources.gpus is {wanted}, but the container sees no usable GPU{why}: check the node's driver and "
            "device plugin, or set resources.gpus: 0 for a run on CPU"
        )
    version = f"{int(found[1]) // 1000}.{int(found[1]) % 1000 // 10}"
    least = LEAST_DRIVER.get(_major(cuda))
    needed = f"driver {least} or later (CUDA {cuda})" if least else f"one for CUDA {cuda}"
    return GpuUnfitError(
        f"the node's NVIDIA driver{f' {driver}' if driver else ''} is for CUDA {version}, and the trainer's image "
        f"needs {needed}: update the driver, choose other nodes (scheduling.nodeSelector){_or_rebuild(cuda)}"
    )


def too_few(wanted: int, seen: int, name: str) -> GpuFaultError:
    """Fewer GPUs are seen than were given; `name` is that of the first."""
    if "MIG" in name:
        return GpuUnfitError(
            f"resources.gpus is {wanted}, and the GPU is a MIG slice ({name}), of which CUDA shows a process one "
            "alone: set resources.gpus: 1, or ask for whole GPUs"
        )
    return GpuFaultError(
        f"resources.gpus is {wanted}, but the container sees {seen} usable GPUs: check the node's driver and device "
        "plugin, or lower resources.gpus"
    )


def without_kernels(
    name: str, capability: tuple[int, int], architectures: Iterable[str], *, cuda: str | None
) -> GpuUnfitError | None:
    """Where PyTorch, built for `architectures` as in `sm_75`, has no kernels for a GPU; None where it has, or where it
    does not say.

    Machine code runs on GPUs of its major capability and of its minor or a later one, that for an architecture alone
    (`sm_90a`) on no other, and PTX (`compute_75`) on all later ones (NVIDIA, CUDA C++ Programming Guide, binary and PTX
    compatibility).
    """
    built = [_ARCHITECTURE.fullmatch(one) for one in architectures]
    known = [(found[1], (int(found[2]), int(found[3])), found[4]) for found in built if found]
    if not known or any(_runs(capability, *one) for one in known):
        return None
    least, most = (f(one for _, one, _ in known) for f in (min, max))
    rule = f"needs {_dotted(least)} or more" if capability < least else f"has kernels for {_dotted(most)} at most"
    remedy = "choose newer GPUs" if capability < least else "choose older GPUs, or a later release of the image"
    return GpuUnfitError(
        f"the GPU {name} has compute capability {_dotted(capability)}, and the trainer's image {rule} (CUDA {cuda}): "
        f"{remedy} (resources.gpuProducts, scheduling.nodeSelector){_or_rebuild(cuda) if capability < least else ''}"
    )


def held(name: str, free: int, total: int, needed: int) -> GpuFaultError | None:
    """Where another process holds memory of the GPU that the run needs, all in bytes; None where there is room."""
    if free >= needed:
        return None
    return GpuFaultError(
        f"the GPU {name} has {free / _GIB:.1f} of {total / _GIB:.1f} GiB free, and the run needs {needed / _GIB:.1f}: "
        "another process holds the rest, so end it (nvidia-smi on the node names it), or ask for a GPU that is not "
        "shared"
    )


def failed(name: str, error: Exception, *, free: int, total: int) -> Exception:
    """What the first computation on a GPU failed of."""
    known = explain(error)
    if isinstance(known, CudaOutOfMemoryError):
        return held(name, free, total, _LEAST_FREE_BYTES) or known
    if "busy or unavailable" in str(error):
        return GpuFaultError(
            f"the GPU {name} is held by another process ({' '.join(str(error).split())[:80]}): end it (nvidia-smi on "
            "the node names it), or have the GPU's compute mode set to Default"
        )
    return error if isinstance(known, InternalError) else known


def check_gpu(device: torch.device, name: str, capability: tuple[int, int], dtype: torch.dtype) -> None:
    """Whether a GPU has kernels and memory, tried with a product in `dtype`. Raises `GpuFaultError`.

    Where the GPU cannot map memory piece by piece, the allocator of this process takes blocks of fixed size from then
    on.
    """
    unfit = without_kernels(name, capability, torch.cuda.get_arch_list(), cuda=torch.version.cuda)
    if unfit is not None:
        raise unfit
    try:
        try:
            multiply(device, dtype)
        except RuntimeError as error:
            if not _cannot_map(error, device):
                raise
            log.info("the GPU %s cannot map memory piece by piece (%s): expandable_segments is off", name, error)
            use_blocks()
            multiply(device, dtype)
    except RuntimeError as error:
        free, total = _memory(device)
        raise failed(name, error, free=free, total=total) from error
    check_room(device, name, _LEAST_FREE_BYTES)


def _cannot_map(error: RuntimeError, device: torch.device) -> bool:
    """Whether a GPU failed of mapping memory: a few megabytes do not suffice, and there is more."""
    unmappable = _UNMAPPABLE.search(str(error)) is not None
    return unmappable or (out_of_memory(error) and _memory(device)[0] >= _LEAST_FREE_BYTES)


def check_room(device: torch.device, name: str, needed: int) -> None:
    """Whether `needed` bytes of a GPU's memory are free, the process's own context included. Raises `GpuFaultError`.

    What the whole of it has no room for, no other process keeps from a run: micro-batches get smaller then, or it was
    estimated too high.
    """
    if device.type != "cuda":
        return
    free, total = _memory(device)
    trouble = held(name, free, total, needed - CONTEXT_BYTES) if needed <= FIT_SHARE * total else None
    if trouble is not None:
        raise trouble


def multiply(device: torch.device, dtype: torch.dtype) -> None:
    """A product, and wait for it: libraries load, and the GPU computes."""
    ones = torch.ones(32, 32, dtype=dtype, device=device)
    (ones @ ones).sum().item()


def use_blocks() -> None:
    """Have PyTorch's allocator take blocks of fixed size on GPUs."""
    # No public function does it for a process that runs; a test holds that this one is there.
    torch._C._accelerator_setAllocatorSettings("expandable_segments:False")


def driver_version(file: Path = DRIVER_FILE) -> str | None:
    """The node's NVIDIA driver, as in `580.95.05`; None where the kernel does not say."""
    try:
        found = _DRIVER.search(file.read_text(encoding="utf-8", errors="replace"))
    except OSError:
        return None
    return found[1] if found else None


def _memory(device: torch.device) -> tuple[int, int]:
    """Free and total, bytes; nothing where even that fails."""
    try:
        free, total = torch.cuda.mem_get_info(device)
    except RuntimeError:
        return 0, 0
    return int(free), int(total)


def _runs(capability: tuple[int, int], kind: str, built: tuple[int, int], suffix: str) -> bool:
    if suffix == "a":
        return capability == built
    return capability >= built and (kind == "compute" or capability[0] == built[0])


def _or_rebuild(cuda: str | None) -> str:
    return ", or build the image for CUDA 12, see docs/install.md" if _major(cuda) == "13" else ""


def _major(cuda: str | None) -> str:
    return (cuda or "").partition(".")[0]


def _dotted(capability: tuple[int, int]) -> str:
    return ".".join(map(str, capability))
