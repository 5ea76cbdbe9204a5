"""The optimizer that was asked for: its kind, its settings, its state in 8 bits, and what a step does."""

import pytest
import torch
from bitsandbytes.optim.adamw import AdamW8bit, PagedAdamW8bit
from tests.trainer import variants

from lora_trainer.contract.config import LoraConfig, Optimizer, TrainingConfig
from lora_trainer.data.tokens import Encoder
from lora_trainer.model.device import Device
from lora_trainer.places.base import Base
from lora_trainer.training.optimizers import make_optimizer

KINDS = {
    Optimizer.ADAMW: torch.optim.AdamW,
    Optimizer.ADAMW_8BIT: AdamW8bit,
    Optimizer.PAGED_ADAMW_8BIT: PagedAdamW8bit,
}


@pytest.mark.parametrize("name", list(Optimizer))
def test_an_optimizer_is_of_its_kind_and_has_the_runs_settings(name: Optimizer) -> None:
    """Learning rate and weight decay; made for a GPU, which it does not touch before its first step."""
    config = TrainingConfig(optimizer=name, learning_rate=0.003, weight_decay=0.25)
    device = Device(torch_device=torch.device("cuda", 0), name="a GPU", dtype=torch.bfloat16)
    optimizer = make_optimizer([torch.nn.Parameter(torch.ones(2, 2))], config, device)
    assert type(optimizer) is KINDS[name]
    (group,) = optimizer.param_groups
    assert (group["lr"], group["weight_decay"]) == (0.003, 0.25)
    assert (tuple(group["betas"]), group["eps"]) == ((0.9, 0.999), 1e-8)
    assert group.get("fused") is (True if name is Optimizer.ADAMW else None)


@pytest.mark.parametrize("name", list(Optimizer))
def test_weight_decay_shrinks_weights_apart_from_the_gradient(cpu: Device, name: Optimizer) -> None:
    """Decoupled: a step of rate 0.1 with decay 0.5 takes 5 % of the weight, and then Adam's 0.1."""
    parameter = torch.nn.Parameter(torch.full((64, 128), 2.0))
    config = TrainingConfig(optimizer=name, learning_rate=0.1, weight_decay=0.5)
    optimizer = make_optimizer([parameter], config, cpu)
    parameter.grad = torch.ones(64, 128)
    optimizer.step()
    # bitsandbytes shrinks after the update, PyTorch before it
    assert float(parameter.detach()[0, 0]) == pytest.approx(2.0 * 0.95 - 0.1, abs=0.006)


@pytest.mark.parametrize("name", list(Optimizer))
def test_weight_decay_leaves_vectors_alone(cpu: Device, name: Optimizer) -> None:
    """DoRA's magnitudes, norms and biases: towards 0 they would take the base model's own weights along."""
    matrix, vector = torch.nn.Parameter(torch.full((2, 2), 2.0)), torch.nn.Parameter(torch.full((4,), 2.0))
    optimizer = make_optimizer([vector, matrix], TrainingConfig(optimizer=name, weight_decay=0.5), cpu)
    decays = {id(parameter): group["weight_decay"] for group in optimizer.param_groups for parameter in group["params"]}
    assert decays == {id(matrix): 0.5, id(vector): 0.0}


@pytest.mark.parametrize("name", [Optimizer.ADAMW_8BIT, Optimizer.PAGED_ADAMW_8BIT])
def test_large_state_is_kept_in_8_bits(cpu: Device, name: Optimizer) -> None:
    """Two bytes a value instead of eight; small tensors stay in fp32."""
    large, small = torch.nn.Parameter(torch.ones(8192)), torch.nn.Parameter(torch.ones(64))
    optimizer = make_optimizer([large, small], TrainingConfig(optimizer=name), cpu)
    large.grad, small.grad = torch.ones(8192), torch.ones(64)
    optimizer.step()
    assert optimizer.state[large]["state1"].dtype == torch.uint8
    assert optimizer.state[small]["state1"].dtype == torch.float32


@pytest.mark.parametrize("name", list(Optimizer))
def test_every_optimizer_learns(tiny_base: Base, encoder: Encoder, cpu: Device, name: Optimizer) -> None:
    """Real steps on the tiny model, with matrices large enough for 8-bit state."""
    adapted = variants.fresh(tiny_base, cpu, LoraConfig(rank=64, alpha=64))
    losses = variants.learn(
        adapted, variants.rows(encoder), cpu, training=TrainingConfig(optimizer=name, learning_rate=0.003)
    )
    assert losses[-1] < losses[0] - 0.1
