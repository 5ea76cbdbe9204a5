"""The device, the number of its threads, and the types that weights and computations have on it."""

import contextlib
import dataclasses
import logging
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy.typing as npt
import torch

from lora_trainer.distributed.collectives import Ranks
from lora_trainer.distributed.cpus import cpu_threads
from lora_trainer.distributed.reports import GpuMemory
from lora_trainer.errors import ConfigError, GpuFaultError
from lora_trainer.model.device_check import check_gpu, driver_version, no_gpu, too_few
from lora_trainer.spec.config import DeviceConfig, Precision

log = logging.getLogger(__name__)
_DTYPES = {Precision.BF16: torch.bfloat16, Precision.FP16: torch.float16, Precision.FP32: torch.float32}


@dataclass(frozen=True, slots=True, kw_only=True)
class Device:
    """Where the run computes. `name` is `cpu` or the GPU's name, `capability` a GPU's compute capability."""

    torch_device: torch.device
    name: str
    dtype: torch.dtype
    capability: tuple[int, int] | None = None

    @property
    def dtype_name(self) -> str:
        """The compute type in the field's short form: bf16, fp16 or fp32."""
        return {torch.bfloat16: "bf16", torch.float16: "fp16", torch.float32: "fp32"}[self.dtype]

    @contextlib.contextmanager
    def autocast(self) -> Iterator[None]:
        """Mixed precision around a forward pass; nothing where the compute type is fp32."""
        with torch.autocast(self.torch_device.type, dtype=self.dtype, enabled=self.dtype != torch.float32):
            yield

    def reset_peak_memory(self) -> None:
        """Start a new measurement of `peak_memory_bytes`; on a CPU the process's whole life counts."""
        if self.torch_device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.torch_device)

    def give_back(self) -> None:
        """Give the driver the memory back that nothing uses."""
        if self.torch_device.type == "cuda":
            torch.cuda.empty_cache()

    def peak_memory_bytes(self) -> int:
        """Most memory used so far: allocated on the GPU, or resident in the process on a CPU."""
        if self.torch_device.type == "cuda":
            return int(torch.cuda.max_memory_allocated(self.torch_device))
        import resource  # noqa: PLC0415 - not on Windows, where the module must still import

        most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return most if sys.platform == "darwin" else most * 1024

    def gpu_memory(self) -> GpuMemory | None:
        """Of this process's GPU; None on a CPU."""
        if self.torch_device.type != "cuda":
            return None
        return GpuMemory(
            gpu=self.torch_device.index or 0,
            allocated_bytes=torch.cuda.memory_allocated(self.torch_device),
            reserved_bytes=torch.cuda.memory_reserved(self.torch_device),
            peak_bytes=torch.cuda.max_memory_allocated(self.torch_device),
        )


def sent(values: npt.NDArray[Any], device: torch.device) -> torch.Tensor:
    """A copy on the device, which nothing waits for: only what is locked in main memory a GPU reads by itself."""
    tensor = torch.from_numpy(values)
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)


def choose_device(config: DeviceConfig, precision: Precision, local_rank: int = 0) -> Device:
    """This process's GPU of those that the pod was given, or the CPU where none was asked for or allowed.

    `local_rank` numbers the pod's processes. A GPU is tried, see `device_check`. Raises `GpuFaultError` and
    `ConfigError`.
    """
    if config.gpus > 0 and torch.cuda.is_available():
        return _gpu(config.gpus, precision, local_rank)
    if config.gpus > 0 and not config.allow_cpu:
        raise no_gpu(config.gpus, _said_by_cuda(), driver=driver_version(), cuda=torch.version.cuda)
    if precision is Precision.FP16:
        raise ConfigError("training.precision is FP16: it needs a GPU; on a CPU use Auto, FP32 or BF16")
    dtype = torch.float32 if precision is Precision.AUTO else _DTYPES[precision]
    torch.set_num_threads(cpu_threads())
    return Device(torch_device=torch.device("cpu"), name="cpu", dtype=dtype)


def choose_anywhere(config: DeviceConfig, precision: Precision, local_rank: int = 0) -> Device:
    """The same for what a run has made: without a GPU on the CPU, in fp32 if that has not the run's type."""
    on_cpu = config.gpus == 0 or not torch.cuda.is_available()
    own = Precision.AUTO if on_cpu and precision is Precision.FP16 else precision
    return choose_device(dataclasses.replace(config, allow_cpu=True), own, local_rank)


def same_type(device: Device, ranks: Ranks) -> Device:
    """The device, with a compute type that all processes of the run have: sums of their gradients and slices of their
    weights are of one. GPUs of which only some have bf16 take fp16.

    A collective. Raises `GpuFaultError` where only some processes have a GPU.
    """
    there = ranks.gather((device.torch_device.type, device.dtype_name, device.name), tuple[str, ...])
    if len({kind for kind, _, _ in there}) > 1:
        gpu, cpu = (next(name for kind, _, name in there if (kind == "cpu") is on_cpu) for on_cpu in (False, True))
        raise GpuFaultError(
            f"processes of the run compute on {gpu} and on {cpu}, and all must have a GPU: check driver and device "
            "plugin of the nodes without one, or set resources.gpus: 0 for a run on CPU"
        )
    if len({dtype for _, dtype, _ in there}) == 1:
        return device
    log.warning(
        "the GPUs of the run differ (%s), and not all have native bf16: all compute in fp16; resources.gpuProducts "
        "keeps the run to GPUs of one kind",
        ", ".join(sorted({name for _, _, name in there})),
    )
    return dataclasses.replace(device, dtype=torch.float16)


def _gpu(wanted: int, precision: Precision, local_rank: int) -> Device:
    seen = torch.cuda.device_count()
    if local_rank >= seen:
        raise too_few(wanted, seen, torch.cuda.get_device_name(0) if seen else "")
    device = torch.device("cuda", local_rank)
    # Libraries allocate on the current device where they are given none.
    torch.cuda.set_device(device)
    name, capability = torch.cuda.get_device_name(device), torch.cuda.get_device_capability(device)
    dtype = _gpu_dtype(precision, name, capability)
    check_gpu(device, name, capability, dtype)
    # On Hopper and Blackwell PyTorch prefers cuDNN's attention, which builds a plan for each shape and keeps it outside
    # the allocator: micro-batches have another shape each. FlashAttention takes all of them as they are.
    torch.backends.cuda.enable_cudnn_sdp(enabled=False)
    return Device(torch_device=device, name=name, dtype=dtype, capability=capability)


def _said_by_cuda() -> str:
    """Why it sees no GPU; nothing where it does not say."""
    initialise: Callable[[], None] = torch.cuda.init
    try:
        initialise()
    except (RuntimeError, AssertionError) as error:
        return str(error)
    return ""


def _gpu_dtype(precision: Precision, name: str, capability: tuple[int, int]) -> torch.dtype:
    native = torch.cuda.is_bf16_supported(including_emulation=False)
    if precision is Precision.AUTO:
        return torch.bfloat16 if native else torch.float16
    if precision is Precision.BF16 and not native:
        raise ConfigError(
            f"training.precision is BF16: the GPU {name} has compute capability {'.'.join(map(str, capability))}, and "
            "native bf16 needs 8.0; use Auto or FP16"
        )
    return _DTYPES[precision]
