"""Memory by part at the peak of a training, as this project's trainer has it. docs/fit.md has each formula's proof."""

from dataclasses import dataclass, fields

from lora_trainer.contract.config import DeviceConfig, Optimizer, Quantization
from lora_trainer.contract.fit.activations import layer_bytes
from lora_trainer.contract.fit.adapter import Adapter
from lora_trainer.contract.fit.limits import CONTEXT_BYTES, NCCL_BYTES
from lora_trainer.contract.fit.moments import Run, largest_moment
from lora_trainer.contract.fit.setting import Setting
from lora_trainer.contract.fit.shape import Shape

__all__ = ["Memory", "Setting", "gpu_memory", "layer_bytes", "main_memory", "state_bytes"]

_PACKED = 0.5
_QUANTIZED, _DOUBLE_QUANTIZED = _PACKED + 4 / 64, _PACKED + 1 / 64 + 4 / (64 * 256)
"""Bytes a weight: 4 bits and a scale in fp32 for 64 weights; or a scale of 8 bits for these, and one in fp32 for 256
such scales (arXiv 2305.14314, section 3)."""
_WHOLE_AT_ONCE = 3
"""Layers of a divided base."""
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
        constant=CPU_LIBRARIES if setting.cpu else outside_bytes(setting.communicators),
    )


def outside_bytes(communicators: int) -> int:
    """Of a GPU's memory what PyTorch's allocator does not give out."""
    return CONTEXT_BYTES + NCCL_BYTES * communicators


def communicators_of(device: DeviceConfig, divided: int = 1) -> int:
    """How many of NCCL's communicators a run has on a GPU: one of all processes, and where each node has the whole base
    one of its node's, over which layers are gathered."""
    everyone = device.processes > 1 and device.gpus > 0
    return everyone + (1 < divided < device.processes)


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
    """The base's own. Where layers are divided, those of three are whole at once: of the one that computes, what it was
    gathered into, and what the next is gathered into meanwhile. FSDP2 keeps the former until then (PyTorch 2.15,
    `FSDPParamGroup.wait_for_unshard`), and both are of another stream, whose memory the first may not take over.

    Scales of 4-bit weights are no parameters, and stay whole.
    """
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
    scales = (_DOUBLE_QUANTIZED - _PACKED) * shape.linear_weights if setting.is_4bit else 0.0
    return (sum(layers) - scales) / setting.processes + scales + _WHOLE_AT_ONCE * max(layers, default=0.0) + whole


def state_bytes(adapter: Adapter, optimizer: Optimizer) -> float:
    """Two moments: 8 bytes a value, or 2 and two scales in fp32 for 256 values (arXiv 2110.02861)."""
    if optimizer is Optimizer.ADAMW:
        return 8.0 * adapter.parameters
    small = sum(size for size in adapter.tensors if size < _SMALLEST_8BIT)
    return 8.0 * small + (2 + 2 * 4 / 256) * (adapter.parameters - small)
