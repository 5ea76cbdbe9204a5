"""Triton kernels compiled for GPUs that are not there, down to machine code: what the tests of them ask, as JSON.

Nothing is launched. The driver that Triton asks for its target is replaced, so this is a process of its own.
"""

import json
import sys
from typing import Any
from unittest import mock

import torch
from benchmarks.acceptance.triton_kernel import add
from triton.backends.compiler import GPUTarget
from triton.runtime import driver
from triton.runtime.jit import JITFunction

from lora_trainer.model import liger


class Absent:
    """The driver of a GPU of this compute capability, as far as compiling asks for it."""

    def __init__(self, capability: int) -> None:
        self.capability = capability

    def get_current_target(self) -> GPUTarget:
        """What is compiled for."""
        return GPUTarget("cuda", self.capability, 32)

    def get_current_device(self) -> int:
        """Another for each capability: what is compiled is kept by it."""
        return self.capability

    def get_current_stream(self, _device: int) -> int:
        """The default one."""
        return 0


class Norm(torch.nn.Module):
    """Of Llama-3-8B's width, or another."""

    def __init__(self, dtype: torch.dtype, width: int = 4096) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(width, dtype=dtype), requires_grad=False)
        self.variance_epsilon = 1e-5


def use(dtype: torch.dtype) -> None:
    """Each kernel forward and backward, at the widths of Llama-3-8B; the results are never written."""

    def heads(count: int) -> torch.Tensor:
        return torch.zeros(1, 16, count, 128, dtype=dtype).transpose(1, 2).requires_grad_()

    def values(width: int) -> torch.Tensor:
        return torch.zeros(1, 16, width, dtype=dtype, requires_grad=True)

    turned = liger.rotate(heads(32), heads(8), *torch.ones(2, 1, 16, 128, dtype=dtype))
    results = (liger.norm(Norm(dtype), values(4096)), *turned, liger.gate(1 * values(14336), 1 * values(14336)))
    torch.autograd.backward([result.sum() for result in results])
    add(torch.zeros(1000), torch.zeros(1000))


def main() -> None:
    """Print which kernels became machine code, by compute capability."""
    compiled: dict[int, list[str]] = {int(capability): [] for capability in sys.argv[1:]}
    plain: Any = JITFunction.run

    def run(kernel: Any, *arguments: Any, **options: Any) -> Any:
        found = plain(kernel, *arguments, **{**options, "warmup": True})
        compiled[found.metadata.target.arch].extend([kernel.fn.__name__] if found.asm["cubin"] else [])
        return found

    properties = mock.Mock(multi_processor_count=40)
    with (
        mock.patch.object(JITFunction, "run", run),
        mock.patch.object(torch.cuda, "get_device_properties", return_value=properties),
    ):
        for capability in compiled:
            driver.set_active(Absent(capability))
            use(torch.bfloat16 if capability >= 80 else torch.float16)
    print(json.dumps(compiled))


if __name__ == "__main__":
    main()
