"""A base model that does not fit one GPU, divided over those of a node, or of all nodes, with FSDP2.

Each decoder layer's weights lie in equal parts on these processes and are gathered for the moment in which the layer
computes: within a node over the links between its GPUs, so that each node has the whole base (HSDP). Only a base that
no node holds is divided over all nodes: then it crosses the network twice for each micro-batch.

Adapters stay whole on each process: they are small, their gradients are summed as without sharding, and rank 0 can
write them as they are. So do embeddings, last norm and output embeddings, 4 GB for the largest vocabularies: the loss
calls the output embeddings apart from the model.

The verification has one node's GPUs. Where these do not hold the base, its layers come from main memory one after the
other, for each batch anew: slow for a GPU, and hundreds of times faster than a CPU.
"""

from collections.abc import Callable, Iterable
from dataclasses import replace
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn

from lora_trainer.distributed.collectives import Ranks
from lora_trainer.distributed.deadline import connecting
from lora_trainer.errors import ConfigError, CudaOutOfMemoryError, InternalError
from lora_trainer.model.device import Device
from lora_trainer.model.quantize import is_4bit, keep_state, packed
from lora_trainer.plan.choice import divides
from lora_trainer.plan.limits import WEIGHTS_SHARE
from lora_trainer.plan.memory import base_bytes
from lora_trainer.spec.config import Merge, Quantization, TrainConfig
from lora_trainer.spec.run_plan import RunPlan
from lora_trainer.storage.tensor_files import read_entries

_GIB = 2**30


def divided_over(
    *, plan: RunPlan | None, weights: Callable[[], float], device_bytes: int | None, ranks: Ranks, config: TrainConfig
) -> int:
    """Over how many processes the base model has to be divided, 1 where it stays whole; `device_bytes` is None on a
    CPU, and `weights` says how many bytes those of the base model take.

    It is as the plan says, where that fits. Where there is none, or it may not fit, the weights alone decide: they may
    take `WEIGHTS_SHARE` of a GPU, or all of it where they cannot be divided and may fit. Raises `ConfigError` where it
    would have to be and cannot, `CudaOutOfMemoryError` where even its parts do not fit.
    """
    processes = ranks.world
    if device_bytes is None or processes == 1:
        return 1
    within = ranks.local_world if processes % ranks.local_world == 0 else processes
    if plan is not None and plan.fits:
        return (within if plan.sharded_over == within else processes) if plan.sharded else 1
    weight_bytes = weights()
    if weight_bytes <= WEIGHTS_SHARE * device_bytes:
        return 1
    size = f"the base model takes {weight_bytes / _GIB:.1f} GiB, and a GPU has {device_bytes / _GIB:.1f} GiB"
    if not fits_divided(weight_bytes, device_bytes, processes):
        raise CudaOutOfMemoryError(f"{size}: {processes} GPUs do not suffice; raise resources.gpus or resources.nodes")
    quantization, lora, merge = config.quantization, config.lora, config.output.merge
    unfit = {
        f"quantization is {quantization.value}": quantization is Quantization.INT8,
        f"lora.variant is DoRA with quantization {quantization.value}": not divides(quantization, lora.variant),
        f"output.merge is {merge.value}": merge is not Merge.ADAPTER,
        f"lora.init is {lora.init.value}": lora.init.changes_base,
        "lora.targetParameters is set": bool(lora.target_parameters),
    }
    reasons = [reason for reason, applies in unfit.items() if applies]
    if reasons and plan is not None and plan.fits is None and weight_bytes <= device_bytes:
        # Whole on each of them, as on one alone: to run out of memory is better than to be refused for a rule of thumb.
        return 1
    if reasons:
        raise ConfigError(
            f"{reasons[0]}: {size}, so that its weights must be divided over the GPUs, with which this does not go "
            "together; leave it out, or use GPUs with more memory"
        )
    return within if within > 1 and fits_divided(weight_bytes, device_bytes, within) else processes


def fits_divided(weight_bytes: float, device_bytes: int | None, processes: int) -> bool:
    """Whether each process's part of the weights fits its device; a CPU's memory is not counted."""
    return device_bytes is None or weight_bytes / processes <= WEIGHTS_SHARE * device_bytes


def weight_bytes(files: Iterable[Path], dtype: torch.dtype, quantization: Quantization, linear: int = 0) -> float:
    """Memory that the weights in safetensors files take as `dtype`, `linear` of them quantized; only the files' headers
    are read."""
    parameters = sum(entry.values for file in files for entry in read_entries(file))
    return base_bytes(parameters, min(linear, parameters), quantization, dtype.itemsize)


def device_bytes(device: Device) -> int | None:
    """All memory of the GPU; None on a CPU, whose processes share theirs."""
    if device.torch_device.type != "cuda":
        return None
    return int(torch.cuda.get_device_properties(device.torch_device).total_memory)


def on_cpu(device: Device) -> Device:
    """Where a model that is to be divided is loaded first, in the type that it will have."""
    return replace(device, torch_device=torch.device("cpu"), name="cpu")


def mesh_over(device: Device, ranks: Ranks, over: int) -> Any:
    """The processes by whose parts a model is divided: `over` neighbours, and others with the same parts. A
    collective."""
    import torch.distributed as dist  # noqa: PLC0415 - takes a second to import
    from torch.distributed.device_mesh import init_device_mesh  # noqa: PLC0415 - as above

    shape = (ranks.world,) if over == ranks.world else (ranks.world // over, over)
    with connecting(ranks.timeout_s):
        mesh = init_device_mesh(device.torch_device.type, shape, mesh_dim_names=("replicate", "shard")[-len(shape) :])
    if ranks.timeout_s is not None:
        # Groups within the world's have the library's own time, and the layers' collectives are theirs. PyTorch 2.14
        # has no public function for it.
        set_timeout = getattr(dist, "set_timeout", None) or dist.distributed_c10d._set_pg_timeout
        for group in mesh.get_all_groups():
            set_timeout(timedelta(seconds=ranks.timeout_s), group)
    return mesh


def shard(model: Any, device: Device, mesh: Any) -> None:
    """Divide the frozen weights of the decoder layers of a model on the CPU, and move everything to the device.

    A layer at a time comes to the device whole, so that its memory never holds more than its part and one layer.
    """
    from torch.distributed.fsdp import fully_shard  # noqa: PLC0415 - takes a second to import

    decoder, layers = _decoder(model)
    whole = {parameter for parameter in model.parameters() if parameter.requires_grad}
    for layer in layers:
        states = [(module, _pack(module, device)) for module in layer.modules() if is_4bit(module)]
        fully_shard(layer, mesh=mesh, ignored_params=whole, reshard_after_forward=True)
        # After FSDP2's own: what it gathers has no scales beside it, which each process holds whole.
        layer.register_forward_pre_hook(partial(_give_states, states))
    whole |= _outside(model, layers)
    _move(model, whole, device)
    # Holds no weights itself, but makes the layers one pipeline: each is gathered while the one before computes.
    fully_shard(decoder, mesh=mesh, ignored_params=whole)


def _pack(module: nn.Linear, device: Device) -> Any:
    """Pack a 4-bit module's weight on the device; its scales."""
    module.weight = packed(module, device.torch_device)
    return vars(module.weight)["quant_state"]


def _give_states(states: list[tuple[nn.Linear, Any]], *_: Any) -> None:
    for module, state in states:
        keep_state(module.weight, state)


def stream(model: Any, device: Device) -> None:
    """Have the weights of each decoder layer of a model on the CPU come to the device for the layer's own computation
    and no longer, and move everything else there. Not for training: a backward pass would not find them."""
    _, layers = _decoder(model)
    _move(model, _outside(model, layers), device)
    for layer in layers:
        in_4_bits = [(module, module.weight) for module in layer.modules() if is_4bit(module)]
        apart = {weight for _, weight in in_4_bits}
        kept = [(parameter, parameter.data) for parameter in layer.parameters() if parameter not in apart]
        layer.register_forward_pre_hook(partial(_bring, kept, in_4_bits, device.torch_device))
        layer.register_forward_hook(partial(_take_back, kept, in_4_bits), always_call=True)


_Kept = list[tuple[nn.Parameter, torch.Tensor]]
_Packed = list[tuple[nn.Linear, torch.Tensor]]


def _bring(kept: _Kept, in_4_bits: _Packed, where: torch.device, *_: Any) -> None:
    for parameter, weights in kept:
        parameter.data = weights.to(where, copy=True)
    for module, _full in in_4_bits:
        module.weight = packed(module, where)


def _take_back(kept: _Kept, in_4_bits: _Packed, *_: Any) -> None:
    for parameter, weights in kept:
        parameter.data = weights
    for module, full in in_4_bits:
        module.weight = cast("nn.Parameter", full)


def _outside(model: nn.Module, layers: nn.Module) -> set[nn.Parameter]:
    of_layers = set(layers.parameters())
    return {parameter for parameter in model.parameters() if parameter not in of_layers}


def _move(model: nn.Module, parameters: Iterable[nn.Parameter], device: Device) -> None:
    """These parameters and all buffers, to the device; weights that are to have 4 bits are packed there."""
    moved: set[torch.Tensor] = set(parameters)
    for module in model.modules():
        if is_4bit(module) and module.weight in moved:
            moved.remove(module.weight)
            _pack(module, device)
    for parameter in moved:
        parameter.data = parameter.data.to(device.torch_device)
    for module in model.modules():
        for name, buffer in module.named_buffers(recurse=False):
            setattr(module, name, buffer.to(device.torch_device))


def _decoder(model: nn.Module) -> tuple[nn.Module, nn.ModuleList]:
    """The list of layers that holds most of the parameters, and the module that it belongs to."""
    lists = [
        (parent, child)
        for parent in model.modules()
        for child in parent.children()
        if isinstance(child, nn.ModuleList) and len(child) > 0
    ]
    if not lists:
        raise InternalError("the base model has no list of decoder layers: it cannot be divided over GPUs")
    return max(lists, key=lambda found: sum(parameter.numel() for parameter in found[1].parameters()))
