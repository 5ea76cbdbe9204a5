"""The optimizer that was asked for: its kind, its settings, its state in 8 bits, and what a step does."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from bitsandbytes.optim.adamw import AdamW8bit, PagedAdamW8bit
from tests.trainer import variants

from lora_trainer.data.tokens import Encoder
from lora_trainer.model.device import Device
from lora_trainer.spec.config import LoraConfig, Optimizer, TrainingConfig
from lora_trainer.storage.base import Base
from lora_trainer.train.optimizers import load_state, make_optimizer
from lora_trainer.train.state import read_nested, write_nested

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


def pages(self: Any, parameter: torch.Tensor, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """What bitsandbytes gives on a GPU: main memory that the GPU maps, and marks on it."""
    buffer: Any = torch.zeros(parameter.shape, dtype=dtype)
    if parameter.numel() >= 1e5:
        buffer.is_paged, buffer.page_deviceid = True, 0
        self.page_mng.paged_tensors.append(buffer)
    paged: torch.Tensor = buffer
    return paged


def test_paged_state_is_paged_again_after_a_resumption(
    cpu: Device, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From a file, whose tensors are no pages; the next step is the uninterrupted run's."""
    monkeypatch.setattr(PagedAdamW8bit, "get_state_buffer", pages)
    monkeypatch.setattr(PagedAdamW8bit, "prefetch_state", lambda self, parameter: None)
    large, small = torch.nn.Parameter(torch.ones(400, 300)), torch.nn.Parameter(torch.ones(64, 64))
    gpu = dataclasses.replace(cpu, torch_device=torch.device("cuda", 0))
    config = TrainingConfig(optimizer=Optimizer.PAGED_ADAMW_8BIT)

    def step(optimizer: torch.optim.Optimizer) -> None:
        large.grad, small.grad = torch.full((400, 300), 0.5), torch.ones(64, 64)
        optimizer.step()

    first: Any = make_optimizer([large, small], config, gpu)
    step(first)
    with (tmp_path / "optimizer.safetensors").open("wb") as file:
        write_nested(first.state_dict(), file)
    first.page_mng.paged_tensors.clear()
    second: Any = make_optimizer([large, small], config, gpu)
    second.param_groups[0]["weight_decay"] = 0.25
    load_state(second, read_nested(tmp_path / "optimizer.safetensors"))
    owned = {id(tensor) for tensor in second.page_mng.paged_tensors}
    assert {id(second.state[large][name]) for name in ("state1", "state2")} == owned
    assert second.param_groups[0]["weight_decay"] == 0.25, "its own, not that of the state"
    second.param_groups[0]["weight_decay"] = config.weight_decay
    for parameter in (large, small):
        for name, value in first.state[parameter].items():
            assert torch.equal(torch.as_tensor(second.state[parameter][name]), torch.as_tensor(value)), name
    step(first)
    step(second)
    assert torch.equal(second.state[large]["state1"], first.state[large]["state1"])


@pytest.mark.parametrize("name", list(Optimizer))
def test_a_run_that_goes_on_from_another_has_its_own_weight_decay(cpu: Device, name: Optimizer) -> None:
    """`resumeFrom` takes over moments, and no setting."""
    matrix, vector = torch.nn.Parameter(torch.full((64, 128), 2.0)), torch.nn.Parameter(torch.full((4,), 2.0))
    before = make_optimizer([matrix, vector], TrainingConfig(optimizer=name, weight_decay=0.5), cpu)
    matrix.grad, vector.grad = torch.ones(64, 128), torch.ones(4)
    before.step()
    after = make_optimizer([matrix, vector], TrainingConfig(optimizer=name, weight_decay=0.125), cpu)
    load_state(after, before.state_dict())
    assert [group["weight_decay"] for group in after.param_groups] == [0.125, 0.0]
    assert after.state[matrix].keys() == before.state[matrix].keys()


@pytest.mark.parametrize("name", list(Optimizer))
def test_every_optimizer_learns(tiny_base: Base, encoder: Encoder, cpu: Device, name: Optimizer) -> None:
    """Real steps on the tiny model, with matrices large enough for 8-bit state."""
    adapted = variants.fresh(tiny_base, cpu, LoraConfig(rank=64, alpha=64))
    losses = variants.learn(
        adapted, variants.rows(encoder), cpu, training=TrainingConfig(optimizer=name, learning_rate=0.003)
    )
    assert losses[-1] < losses[0] - 0.1
