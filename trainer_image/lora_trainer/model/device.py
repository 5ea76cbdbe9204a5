"""The device, the number of its threads, and the types that weights and computations have on it."""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass

import torch

from lora_trainer.contract.config import DeviceConfig, Precision
from lora_trainer.errors import ConfigError, GpuFaultError
from lora_trainer.ranks.cpus import cpu_threads
from lora_trainer.ranks.reports import GpuMemory

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

    def peak_memory_bytes(self) -> int:
        """Most memory used so far: allocated on the GPU, or resident in the process on a CPU."""
        if self.torch_device.type == "cuda":
            return int(torch.cuda.max_memory_allocated(self.torch_device))
        import resource  # noqa: PLC0415 - not on Windows, where the module must still import

        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024

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


def choose_device(config: DeviceConfig, precision: Precision, local_rank: int = 0) -> Device:
    """This process's GPU of those that the pod was given, or the CPU where none was asked for or allowed.

    `local_rank` numbers the pod's processes. Raises `GpuFaultError`.
    """
    if config.gpus > 0 and torch.cuda.is_available():
        if local_rank >= torch.cuda.device_count():
            raise GpuFaultError(
                f"resources.gpus is {config.gpus}, but the container sees {torch.cuda.device_count()} usable GPUs: "
                "check the node's driver and device plugin, or lower resources.gpus"
            )
        device = torch.device("cuda", local_rank)
        # Libraries allocate on the current device where they are given none.
        torch.cuda.set_device(device)
        return Device(
            torch_device=device,
            name=torch.cuda.get_device_name(device),
            dtype=_gpu_dtype(precision),
            capability=torch.cuda.get_device_capability(device),
        )
    if config.gpus > 0 and not config.allow_cpu:
        raise GpuFaultError(
            f"resources.gpus is {config.gpus}, but the container sees no usable GPU: check the node's driver and "
            "device plugin, or set resources.gpus: 0 for a run on CPU"
        )
    if precision is Precision.FP16:
        raise ConfigError("training.precision is FP16: it needs a GPU; on a CPU use Auto, FP32 or BF16")
    dtype = torch.float32 if precision is Precision.AUTO else _DTYPES[precision]
    torch.set_num_threads(cpu_threads())
    return Device(torch_device=torch.device("cpu"), name="cpu", dtype=dtype)


def _gpu_dtype(precision: Precision) -> torch.dtype:
    native = torch.cuda.is_bf16_supported(including_emulation=False)
    if precision is Precision.AUTO:
        return torch.bfloat16 if native else torch.float16
    if precision is Precision.BF16 and not native:
        raise ConfigError("training.precision is BF16: this GPU has no native bf16; use Auto or FP16")
    return _DTYPES[precision]
