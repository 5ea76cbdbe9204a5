"""PiSSA and OLoRA: the model starts as the base, the same start can be made again, and what is written is plain."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tests.trainer import variants

from lora_trainer.data.tokens import Encoder
from lora_trainer.model.convert import PREFIX, Start, copy_adapter, plain_settings, plain_tensors, save_adapter
from lora_trainer.model.device import Device
from lora_trainer.model.loading import adapt, load_model
from lora_trainer.spec.config import Init, LoraConfig, Quantization, Scaling
from lora_trainer.spec.serving import traits_of
from lora_trainer.storage.base import Base

INITS = [Init.PISSA, Init.OLORA]
LORA = LoraConfig(rank=4, alpha=8)


def base_weights(model: Any) -> dict[str, torch.Tensor]:
    """The frozen weights of adapted modules."""
    return {name: tensor for name, tensor in model.state_dict().items() if "base_layer.weight" in name}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("init", INITS)
def test_the_model_starts_as_the_base(
    tiny_base: Base, encoder: Encoder, cpu: Device, *, init: Init, dtype: torch.dtype
) -> None:
    """What the adapter has was taken out of the base, up to the rounding of its type."""
    device, rows = variants.with_type(cpu, dtype), variants.rows(encoder)
    loaded = load_model(tiny_base, Quantization.NONE, device)
    loss = variants.loss_of(loaded.model, loaded.head, rows, device)
    before = loaded.model.get_parameter("model.layers.0.self_attn.q_proj.weight").clone()
    adapted = adapt(loaded, dataclasses.replace(LORA, init=init), tiny_base, device, 1)
    within = 1e-5 if dtype == torch.float32 else 2e-3
    assert variants.loss_of(adapted.model, adapted.head, rows, device) == pytest.approx(loss, abs=within)
    layer = adapted.model.get_submodule("base_model.model.model.layers.0.self_attn.q_proj")
    assert float((layer.base_layer.weight - before).float().norm()) > 0.1


def test_pissa_takes_the_largest_directions(tiny_base: Base, cpu: Device) -> None:
    """The singular values of what it takes are the largest of the weight."""
    weight = load_model(tiny_base, Quantization.NONE, cpu).model.get_parameter("model.layers.1.mlp.up_proj.weight")
    adapted = variants.fresh(tiny_base, cpu, dataclasses.replace(LORA, init=Init.PISSA))
    start = adapted.starts["model.layers.1.mlp.up_proj"]
    taken = torch.linalg.svdvals(start.scale * start.lora_b @ start.lora_a)[:4]
    torch.testing.assert_close(taken, torch.linalg.svdvals(weight.float())[:4], rtol=1e-3, atol=1e-3)


def test_the_rank_that_is_advised_on_is_the_one_that_is_written(tiny_base: Base, cpu: Device) -> None:
    """Of the module with the largest."""
    lora = dataclasses.replace(LORA, init=Init.OLORA, rank_pattern={"v_proj": 9})
    assert plain_settings(variants.fresh(tiny_base, cpu, lora).starts)["r"] == traits_of(lora).rank == 18


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("init", INITS)
def test_the_same_start_is_made_again_bit_for_bit(
    tiny_base: Base, cpu: Device, *, init: Init, dtype: torch.dtype
) -> None:
    """From weights and seed, and from start values that a checkpoint kept whatever the seed."""
    device, lora = variants.with_type(cpu, dtype), dataclasses.replace(LORA, init=init)
    first = variants.fresh(tiny_base, device, lora)
    again = variants.fresh(tiny_base, device, lora)
    kept = adapt(load_model(tiny_base, Quantization.NONE, device), lora, tiny_base, device, 99, starts=first.starts)
    for other in (again, kept):
        state = other.model.state_dict()
        assert all(torch.equal(tensor, state[name]) for name, tensor in first.model.state_dict().items())
        assert all(torch.equal(start.lora_a, other.starts[name].lora_a) for name, start in first.starts.items())


@pytest.mark.parametrize("init", INITS)
def test_what_is_written_is_plain_and_of_twice_the_rank(
    tiny_base: Base, encoder: Encoder, cpu: Device, tmp_path: Path, init: Init
) -> None:
    """One rank and one scale, no patterns: what servers know. The difference of weights is that of the training."""
    lora = dataclasses.replace(LORA, init=init, scaling=Scaling.RANK_STABILIZED, rank_pattern={"v_proj": 6})
    adapted = variants.fresh(tiny_base, cpu, lora)
    variants.learn(adapted, variants.rows(encoder), cpu, steps=2)
    save_adapter(copy_adapter(adapted.model, adapted.starts), tmp_path)
    config = json.loads((tmp_path / "adapter_config.json").read_text(encoding="utf-8"))
    assert {key: config[key] for key in plain_settings(adapted.starts)} == {
        "r": 12,
        "lora_alpha": 12,
        "use_rslora": False,
        "init_lora_weights": True,
        "rank_pattern": {},
        "alpha_pattern": {},
    }
    tensors = load_file(tmp_path / "adapter_model.safetensors")
    pristine = load_model(tiny_base, Quantization.NONE, cpu).model
    for name in adapted.starts:
        lora_a, lora_b = tensors[f"{PREFIX}{name}.lora_A.weight"], tensors[f"{PREFIX}{name}.lora_B.weight"]
        assert (lora_a.shape[0], lora_b.shape[1]) == (12, 12)
        layer = adapted.model.get_submodule(f"base_model.model.{name}")
        trained = layer.base_layer.weight + layer.get_delta_weight("default")
        change = trained.detach() - pristine.get_submodule(name).weight
        torch.testing.assert_close(lora_b @ lora_a, change, rtol=0, atol=2e-6)


def test_factors_of_a_small_difference_are_small() -> None:
    """B A and B0 A0 are large and nearly equal: rounded to 16 bits as they are, their difference would be noise."""
    generator = torch.Generator().manual_seed(1)
    lora_a, lora_b = torch.randn(4, 50, generator=generator), torch.randn(30, 4, generator=generator)
    moved = lora_b + 1e-3 * torch.randn(30, 4, generator=generator)
    start = {"m": Start(lora_a=lora_a, lora_b=lora_b, scale=0.5)}
    key_a, key_b = f"{PREFIX}m.lora_A.weight", f"{PREFIX}m.lora_B.weight"
    plain = plain_tensors({key_a: lora_a, key_b: moved}, start)
    wanted = 0.5 * (moved.double() - lora_b.double()) @ lora_a.double()
    found = plain[key_b].bfloat16().double() @ plain[key_a].bfloat16().double()
    assert float((found - wanted).norm() / wanted.norm()) < 0.01
    naive = 0.5 * (moved.bfloat16().double() - lora_b.bfloat16().double()) @ lora_a.bfloat16().double()
    assert float((naive - wanted).norm() / wanted.norm()) > 0.5
