"""Models of random weights in 4 bits: a GPU that holds them in 4 bits alone can make them."""

import gc
import importlib
from dataclasses import replace
from typing import Any

import pytest
import torch
from benchmarks.acceptance.bench import Bench
from benchmarks.acceptance.models import adapted_on, random_model
from torch import nn

from lora_trainer.model.device import Device
from lora_trainer.model.quantize import full_weight, is_4bit
from lora_trainer.spec.config import LoraConfig, Quantization

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")
WIDTH, MLP = 96, 160
"""Of the model; few others have weights of these widths."""


def shape(cpu: Device, **changes: object) -> dict[str, Any]:
    """A tiny model with a few layers."""
    sizes = {**Bench(device=cpu, tiny=True).sizes, "hidden_size": WIDTH, "intermediate_size": MLP}
    return {**sizes, "num_hidden_layers": 2, **changes}


def in_16_bits() -> dict[int, torch.Tensor]:
    """The linear modules' weights that are there in 16 bits, by their place in memory: of such a width, and not as
    long as the vocabulary."""
    found = {}
    for one in gc.get_objects():
        # By type: some objects warn when they are asked for their class.
        if not issubclass(type(one), torch.Tensor) or one.device.type != "cpu" or one.dtype is not torch.bfloat16:
            continue
        if one.dim() == 2 and set(one.shape) <= {WIDTH, WIDTH // 2, MLP}:
            found[one.data_ptr()] = one
    return found


@pytest.mark.parametrize("tied", [False, True], ids=["head of its own", "tied head"])
def test_one_module_at_a_time_is_in_16_bits(cpu: Device, monkeypatch: pytest.MonkeyPatch, tied: bool) -> None:
    """Llama-3-8B takes 16 GB so, and a T4 has them not; in 4 bits it trains there."""
    library: Any = importlib.import_module("bitsandbytes.nn")
    alive: list[int] = []
    original = library.Params4bit._quantize

    def look(weight: Any, device: object) -> Any:
        alive.append(sum(one.nbytes for one in in_16_bits().values()))
        return original(weight, device)

    monkeypatch.setattr(library.Params4bit, "_quantize", look)
    device = replace(cpu, dtype=torch.bfloat16)
    sizes = shape(cpu, tie_word_embeddings=tied)
    config = {**sizes, "model_type": "llama"}
    # What is there already, of libraries and of the tests before, is no object that the collector knows any more.
    gc.collect()
    gc.freeze()
    adapted, _ = adapted_on(config, LoraConfig(rank=4, alpha=8), device, quantization=Quantization.NF4, recompute=False)
    base = adapted.model.get_base_model()
    assert max(alive) == 2 * WIDTH * MLP

    plain = random_model("llama", sizes, device)
    linear = {name for name, module in plain.named_modules() if isinstance(module, nn.Linear)} - {"lm_head"}
    quantized = {name.removesuffix(".base_layer") for name, module in base.named_modules() if is_4bit(module)}
    assert quantized == linear
    assert len(alive) == len(linear)
    spread = full_weight(base.model.layers[0].mlp.down_proj.base_layer).std()
    assert spread == pytest.approx(float(sizes["initializer_range"]), rel=0.1)
    others = dict(plain.named_parameters()) | dict(plain.named_buffers())
    for name, tensor in [*base.named_parameters(), *base.named_buffers()]:
        assert tensor.device.type == "cpu", name
        if "embed_tokens" in name or "lm_head" in name:
            assert tensor.float().std() == pytest.approx(float(others[name].float().std()), rel=0.1)
        elif name in others:
            # Norms and rotary frequencies are no random numbers.
            assert torch.equal(tensor, others[name]), name
    assert (base.lm_head.weight is base.model.embed_tokens.weight) is tied
