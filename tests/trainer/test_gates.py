"""The gate of an MLP on a CPU: its SiLU is computed again in the backward pass, which keeps less, bit for bit alike."""

import dataclasses

import pytest
import torch
from tests.trainer.test_kernels import CONFIG, PADDED, adapted, step
from tests.trainer.tiny import MLP
from tests.trainer.variants import rows

from lora_trainer.data.tokens import Encoder
from lora_trainer.model.device import Device
from lora_trainer.model.fast import CPU_GATE, GATE
from lora_trainer.model.loading import Adapted, load_model, set_training
from lora_trainer.model.recompute import recompute_mlps
from lora_trainer.spec.config import Quantization
from lora_trainer.storage.base import Base
from lora_trainer.train.batches import Batch, collate
from lora_trainer.train.loss import token_losses


def kept_bytes(model: Adapted, batch: Batch, device: Device) -> int:
    """Of all that a forward pass keeps, each storage once."""
    sizes: dict[int, int] = {}
    alive: list[torch.Tensor] = []

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        sizes[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        # A storage that is freed gives its address to another.
        alive.append(tensor)
        return tensor

    set_training(model.model, on=True)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        token_losses(model.model, model.head, batch, device)
    return sum(sizes.values())


def install(model: Adapted, device: Device) -> None:
    """As a run does."""
    assert len(CPU_GATE.find(model.model, device)) == 2
    CPU_GATE.put(model.model, device)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("quantization", [Quantization.NONE, Quantization.NF4])
def test_a_gate_that_is_computed_again_keeps_a_width_less_and_changes_no_bit(
    tiny_base: Base, encoder: Encoder, cpu: Device, *, dtype: torch.dtype, quantization: Quantization
) -> None:
    """Loss and every gradient of a step."""
    device = dataclasses.replace(cpu, dtype=dtype)
    model, batch = adapted(tiny_base, device, CONFIG, quantization), collate(rows(encoder, 4), cpu.torch_device)
    kept_bytes(model, batch, device)  # tries first whether anything follows the output embedding
    (loss, gradients), kept = step(model, device, PADDED), kept_bytes(model, batch, device)
    install(model, device)
    (same, others), less = step(model, device, PADDED), kept_bytes(model, batch, device)
    assert same == loss
    assert all(map(torch.equal, others, gradients))
    assert kept - less == 2 * MLP * batch.input_ids.numel() * dtype.itemsize


def test_a_recomputed_mlp_keeps_nothing_of_it(tiny_base: Base, encoder: Encoder, cpu: Device) -> None:
    """And computes the same, whichever of the two was put in first."""
    model, batch = adapted(tiny_base, cpu, CONFIG), collate(rows(encoder, 4), cpu.torch_device)
    loss, gradients = step(model, cpu, PADDED)
    recompute_mlps(model.model)
    kept = kept_bytes(model, batch, cpu)
    install(model, cpu)
    assert kept_bytes(model, batch, cpu) == kept
    same, others = step(model, cpu, PADDED)
    assert same == loss
    assert all(map(torch.equal, others, gradients))


def test_other_activations_and_other_devices_keep_their_own_code(tiny_base: Base, cpu: Device) -> None:
    """A GPU has Liger's kernel."""
    model = load_model(tiny_base, Quantization.NONE, cpu).model
    assert len(CPU_GATE.find(model, cpu)) == 2
    assert GATE.find(model, cpu) == []
    for layer in model.model.layers:
        layer.mlp.act_fn = torch.nn.GELU()
    assert CPU_GATE.find(model, cpu) == []
    assert CPU_GATE.find(load_model(tiny_base, Quantization.NONE, cpu).model.to("meta"), cpu) == []
