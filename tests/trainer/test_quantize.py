"""Base weights in 4 and 8 bits: real training steps of each, explicit settings, and devices that lack the kernels."""

import dataclasses
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from bitsandbytes import cextension
from tests.trainer import variants
from tests.trainer.conftest import make_config
from torch import nn

from lora_trainer.data.tokens import Encoder
from lora_trainer.errors import ConfigError
from lora_trainer.model import device_check
from lora_trainer.model.apply import apply_adapter
from lora_trainer.model.convert import copy_adapter, save_adapter
from lora_trainer.model.device import Device, choose_device
from lora_trainer.model.loading import load_model
from lora_trainer.model.options import check_options
from lora_trainer.model.quantize import check_kernels, full_weight, quantization_settings
from lora_trainer.spec.config import DeviceConfig, LoraConfig, Precision, Quantization, Variant
from lora_trainer.storage.base import Base

LORA = LoraConfig(rank=4, alpha=8)
FOUR_BITS = [Quantization.NF4, Quantization.FP4]
QUANTIZED = [*FOUR_BITS, Quantization.INT8]


def gpu(capability: tuple[int, int], dtype: torch.dtype = torch.float16) -> Device:
    """A GPU that is not here."""
    return Device(torch_device=torch.device("cuda", 0), name="a GPU", dtype=dtype, capability=capability)


def moved(model: Any) -> dict[str, bool]:
    """Whether both matrices of each adapted module have moved, by module."""
    found: dict[str, bool] = {}
    for name, parameter in model.named_parameters():
        if ".lora_B." in name:
            found[name] = bool(parameter.detach().abs().max() > 1e-4)
    return found


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("quantization", QUANTIZED)
def test_a_quantized_base_trains_every_adapter(
    tiny_base: Base, encoder: Encoder, cpu: Device, *, quantization: Quantization, dtype: torch.dtype
) -> None:
    """Down to the first layer, also after an evaluation; the loss falls, and the base stays as it was."""
    device, rows = variants.with_type(cpu, dtype), variants.rows(encoder)
    adapted = variants.fresh(tiny_base, device, LORA, quantization)
    before = variants.loss_of(adapted.model, adapted.head, rows, device)
    variants.learn(adapted, rows, device)
    after = variants.loss_of(adapted.model, adapted.head, rows, device)
    assert after < before - 0.1
    assert len(moved(adapted.model)) == 14
    assert all(moved(adapted.model).values()), "gradients were lost on their way"
    with adapted.model.disable_adapter():
        assert variants.loss_of(adapted.model, adapted.head, rows, device) == pytest.approx(before, abs=1e-5)


@pytest.mark.parametrize("variant", list(Variant))
@pytest.mark.parametrize("quantization", QUANTIZED)
def test_an_adapter_on_a_quantized_base_is_verified(
    *, tiny_base: Base, encoder: Encoder, cpu: Device, tmp_path: Path, quantization: Quantization, variant: Variant
) -> None:
    """By our own arithmetic, with the weights brought back in full for DoRA's lengths."""
    lora = dataclasses.replace(LORA, variant=variant)
    if (quantization, variant) == (Quantization.INT8, Variant.DORA):
        with pytest.raises(ConfigError, match="PEFT loses the scales of 8-bit weights on a CPU"):
            check_kernels(quantization, variant, cpu)
        return
    adapted, rows = variants.fresh(tiny_base, cpu, lora, quantization), variants.rows(encoder)
    variants.learn(adapted, rows, cpu)
    loss = variants.loss_of(adapted.model, adapted.head, rows, cpu)
    save_adapter(copy_adapter(adapted.model, adapted.starts), tmp_path)
    loaded = load_model(tiny_base, quantization, cpu)
    assert apply_adapter(loaded, tmp_path, lora, cpu) == adapted.trainable_parameters
    assert variants.loss_of(loaded.model, loaded.head, rows, cpu) == pytest.approx(loss, abs=1e-4)


@pytest.mark.parametrize("quantization", QUANTIZED)
def test_quantized_weights_come_back_nearly(tiny_base: Base, cpu: Device, quantization: Quantization) -> None:
    """Within the grain of their type: 8 bits a few thousandths, 4 bits a tenth."""
    plain = load_model(tiny_base, Quantization.NONE, cpu)
    stored = load_model(tiny_base, quantization, cpu)
    for name in plain.linear:
        whole = full_weight(plain.model.get_submodule(name))
        error = (full_weight(stored.model.get_submodule(name)) - whole).norm() / whole.norm()
        assert 0 < error < (0.02 if quantization is Quantization.INT8 else 0.15)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("quantization", FOUR_BITS)
def test_four_bits_are_doubly_quantized_with_an_explicit_compute_type(
    tiny_base: Base, cpu: Device, quantization: Quantization, dtype: torch.dtype
) -> None:
    """The library's own are FP4, fp32, single."""
    settings = quantization_settings(quantization, variants.with_type(cpu, dtype)).to_dict()
    assert settings["load_in_4bit"] is True
    assert settings["bnb_4bit_quant_type"] == quantization.value.lower()
    assert settings["bnb_4bit_use_double_quant"] is True
    assert settings["bnb_4bit_compute_dtype"] == str(dtype).removeprefix("torch.")
    if dtype == torch.float32:
        loaded = load_model(tiny_base, quantization, cpu)
        packed: list[Any] = [m for m in loaded.model.modules() if type(m).__name__ == "Linear4bit"]
        assert len(packed) == 14
        assert all(m.weight.quant_state.nested for m in packed)
        assert {m.weight.quant_state.quant_type for m in packed} == {quantization.value.lower()}


def test_eight_bits_are_stored_in_eight_bits(tiny_base: Base, cpu: Device) -> None:
    """With the threshold of the paper, and no second copy in 16 bits."""
    settings = quantization_settings(Quantization.INT8, cpu).to_dict()
    assert (settings["load_in_8bit"], settings["llm_int8_threshold"]) == (True, 6.0)
    assert settings["llm_int8_has_fp16_weight"] is False
    loaded = load_model(tiny_base, Quantization.INT8, cpu)
    linear = [m for m in loaded.model.modules() if isinstance(m, nn.Linear) and m is not loaded.head]
    assert {m.weight.dtype for m in linear} == {torch.int8}
    assert quantization_settings(Quantization.NONE, cpu) is None


@pytest.mark.parametrize(
    ("quantization", "capability", "cuda", "refused"),
    [
        (Quantization.INT8, (7, 0), "12.6", True),
        (Quantization.INT8, (7, 5), "13.2", False),
        (Quantization.NF4, (5, 2), "12.6", True),
        (Quantization.FP4, (6, 0), "12.6", False),
        (Quantization.FP4, (7, 0), "13.2", True),
        (Quantization.NF4, (7, 5), "13.2", False),
        (Quantization.NONE, (3, 5), "13.2", False),
    ],
)
def test_a_gpu_without_the_kernels_is_reported(
    monkeypatch: pytest.MonkeyPatch,
    *,
    quantization: Quantization,
    capability: tuple[int, int],
    cuda: str,
    refused: bool,
) -> None:
    """Before anything is loaded."""
    monkeypatch.setattr(torch.version, "cuda", cuda)
    if not refused:
        check_kernels(quantization, Variant.LORA, gpu(capability))
        return
    with pytest.raises(ConfigError) as caught:
        check_kernels(quantization, Variant.LORA, gpu(capability))
    assert f"quantization is {quantization.value}: bitsandbytes has kernels for it from compute capability" in str(
        caught.value
    )
    assert f"has {capability[0]}.{capability[1]}" in str(caught.value)


def test_a_missing_library_is_reported(tiny_base: Base, cpu: Device, monkeypatch: pytest.MonkeyPatch) -> None:
    """bitsandbytes itself would fail at the first use of a kernel."""
    stand_in = cextension.ErrorHandlerMockBNBNativeLibrary("no such file")
    monkeypatch.setattr(cextension, "lib", stand_in)
    with pytest.raises(ConfigError, match="bitsandbytes has no compiled library for the device cpu"):
        check_options(tiny_base, make_config(quantization="NF4"), cpu)


@pytest.fixture
def turing(monkeypatch: pytest.MonkeyPatch) -> None:
    """A T4 as PyTorch shows it: bf16 by emulation only."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: None)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "Tesla T4")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: (7, 5))
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: including_emulation)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (15 * 2**30, 15 * 2**30))
    monkeypatch.setattr(device_check, "multiply", lambda device, dtype: None)


@pytest.mark.usefixtures("turing")
def test_a_gpu_without_native_bf16_computes_in_fp16() -> None:
    """Its emulation would be slower than fp32; asked for by name it is refused."""
    device = choose_device(DeviceConfig(gpus=1), Precision.AUTO)
    assert (device.name, device.dtype, device.capability) == ("Tesla T4", torch.float16, (7, 5))
    for quantization in (Quantization.NONE, *QUANTIZED):
        check_kernels(quantization, Variant.LORA, device)
    for quantization in FOUR_BITS:
        settings = quantization_settings(quantization, device)
        assert settings.bnb_4bit_compute_dtype == torch.float16
    with pytest.raises(ConfigError, match=r"native bf16 needs 8\.0; use Auto or FP16"):
        choose_device(DeviceConfig(gpus=1), Precision.BF16)


@pytest.mark.parametrize("quantization", [Quantization.NONE, Quantization.NF4])
def test_fp16_trains_with_a_scaled_loss(
    tiny_base: Base, encoder: Encoder, cpu: Device, quantization: Quantization
) -> None:
    """fp32 adapters over fp16 weights: the steps are taken, and the loss falls."""
    device, rows = variants.with_type(cpu, torch.float16), variants.rows(encoder)
    adapted = variants.fresh(tiny_base, device, LORA, quantization)
    assert {p.dtype for p in adapted.model.parameters() if p.requires_grad} == {torch.float32}
    losses = variants.learn(adapted, rows, device, steps=5)
    assert losses[-1] < losses[0] - 0.1


@pytest.mark.parametrize(
    ("quantization", "variant"),
    [(q, v) for q in QUANTIZED for v in (Variant.LORA, Variant.DORA) if (q, v) != (Quantization.INT8, Variant.DORA)],
)
def test_what_a_gpu_computes_beside_quantized_weights_is_what_a_cpu_does(
    tiny_base: Base, encoder: Encoder, cpu: Device, quantization: Quantization, variant: Variant
) -> None:
    """PEFT asks whether autocast is on in a way that means CUDA's: on a CPU it takes the other branch, which rounds
    what the adapter gives to the type of the base's product."""
    device, rows = variants.with_type(cpu, torch.bfloat16), variants.rows(encoder)
    is_on = torch.is_autocast_enabled
    as_gpu = mock.Mock(side_effect=lambda kind="cpu": is_on(kind))
    found = []
    for asked in (is_on, as_gpu):
        adapted = variants.fresh(tiny_base, device, dataclasses.replace(LORA, variant=variant), quantization)
        # Beside a B of zeros, A would have no gradient.
        for name, parameter in adapted.model.named_parameters():
            if ".lora_B." in name:
                nn.init.normal_(parameter, std=0.02, generator=torch.Generator().manual_seed(len(name)))
        with mock.patch("torch.is_autocast_enabled", asked):
            loss = variants.backward(adapted, rows, device)
        found.append((loss, torch.cat([p.grad.flatten() for p in adapted.model.parameters() if p.requires_grad])))
    assert mock.call() in as_gpu.mock_calls, "PEFT no longer asks so"
    (loss, gradients), (loss_of_gpu, gradients_of_gpu) = found
    assert loss_of_gpu == pytest.approx(loss, abs=2e-3)
    assert float((gradients_of_gpu - gradients).norm() / gradients.norm()) < 0.02
