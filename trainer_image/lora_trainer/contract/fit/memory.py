"""Memory by part at the peak of a training, as this project's trainer has it. docs/fit.md has each formula's proof."""

from dataclasses import dataclass, fields

from lora_trainer.contract.config import Optimizer, Quantization
from lora_trainer.contract.fit.activations import layer_bytes
from lora_trainer.contract.fit.adapter import Adapter
from lora_trainer.contract.fit.limits import CONTEXT_BYTES
from lora_trainer.contract.fit.moments import Run, largest_moment
from lora_trainer.contract.fit.setting import Setting
from lora_trainer.contract.fit.shape import Shape

__all__ = ["Memory", "Setting", "gpu_memory", "layer_bytes", "main_memory", "state_bytes"]

_QUANTIZED, _DOUBLE_QUANTIZED = 0.5 + 4 / 64, 0.5 + 1 / 64 + 4 / (64 * 256)
"""Bytes a weight: 4 bits and a scale in fp32 for 64 weights; or a scale of 8 bits for these, and one in fp32 for 256
such scales (arXiv 2305.14314, section 3)."""
_SMALLEST_8BIT = 4096
"""Tensors of fewer values keep an optimizer's state in fp32 (bitsandbytes, `min_8bit_size`)."""
CPU_LIBRARIES, GPU_LIBRARIES = 1_300_000_000, 4_000_000_000
"""Resident set of Python with PyTorch, Transformers, PEFT: measured on a CPU; with CUDA a rule of thumb."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Memory:
    """Bytes by part. `weights` of the base, `dequantized` one of its matrices in full; the adapter in fp32 with
    `gradients`, `optimizer` state and autocast's `copies`; `activations` that the backward pass needs; `working` memory
    of the largest moment, the loss or one layer; `constant` for context and libraries.
    """

    weights: int
    dequantized: int
    adapter: int
    gradients: int
    optimizer: int
    copies: int
    activations: int
    working: int
    constant: int

    @property
    def total(self) -> int:
        """All of it."""
        return sum(int(getattr(self, field.name)) for field in fields(self))


def gpu_memory(shape: Shape, adapter: Adapter, setting: Setting) -> Memory:
    """Of the GPU, or with `setting.cpu` of the pod: there all parts are main memory."""
    values = adapter.parameters
    moment = largest_moment(Run(shape=shape, adapter=adapter, setting=setting))
    return Memory(
        weights=round(_weight_bytes(shape, setting)),
        dequantized=round(moment.dequantized),
        adapter=4 * values,
        gradients=4 * values,
        optimizer=round(state_bytes(adapter, setting.optimizer)),
        copies=round(moment.copies),
        activations=round(moment.activations),
        working=round(moment.working),
        constant=CPU_LIBRARIES if setting.cpu else CONTEXT_BYTES,
    )


def main_memory(shape: Shape, adapter: Adapter, setting: Setting, *, processes: int = 1) -> int:
    """Bytes of the pod's main memory, without the cache of its files, which the kernel gives back.

    Beside a GPU these are libraries and CUDA's own for each of the pod's `processes`, and a checkpoint's copy of the
    adapter and its state, which the first of them has alone, where it writes one and where it goes on from one.
    """
    if setting.cpu:
        return gpu_memory(shape, adapter, setting).total
    return GPU_LIBRARIES * processes + 12 * adapter.parameters


def base_bytes(
    parameters: int, linear: int, quantization: Quantization, size: int, *, double_quantized: bool = True
) -> float:
    """Of `parameters` weights of a base, of which `linear` are in modules that quantization makes smaller; the others
    have `size` bytes each."""
    four = _DOUBLE_QUANTIZED if double_quantized else _QUANTIZED
    small = {Quantization.NONE: float(size), Quantization.INT8: 1.0}.get(quantization, four)
    return linear * small + (parameters - linear) * size


def _weight_bytes(shape: Shape, setting: Setting) -> float:
    """The base's own; where layers are divided, two of them are whole at once: the one that computes, and the next."""
    # Models repeat one object, which is known by its identity.
    each = {
        key: base_bytes(
            layer.parameters,
            layer.linear_weights,
            setting.quantization,
            setting.size,
            double_quantized=setting.double_quantized,
        )
        for key, layer in {id(layer): layer for layer in shape.layers}.items()
    }
    layers = [each[id(layer)] for layer in shape.layers]
    whole = shape.whole * setting.size
    if setting.processes == 1:
        return sum(layers) + whole
    return sum(layers) / setting.processes + 2 * max(layers, default=0.0) + whole


def state_bytes(adapter: Adapter, optimizer: Optimizer) -> float:
    """Two moments: 8 bytes a value, or 2 and two scales in fp32 for 256 values (arXiv 2110.02861)."""
    if optimizer is Optimizer.ADAMW:
        return 8.0 * adapter.parameters
    small = sum(size for size in adapter.tensors if size < _SMALLEST_8BIT)
    return 8.0 * small + (2 + 2 * 4 / 256) * (adapter.parameters - small)
