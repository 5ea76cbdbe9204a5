"""The share of a GPU's peak that our optimizer step reaches on a model of Llama-3-8B's shape, in bf16 and in NF4.

    .venv/bin/python benchmarks/trainer_gpu.py [--tokens 4096] [--steps 10]

Random weights, rank 16 on all linear modules, one row of --tokens tokens for each micro-batch; the share is at 4 N
operations for each token, N being the model's parameters.
"""

import argparse
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import bitsandbytes
import numpy as np
import torch
import transformers
from torch import nn

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "trainer_image")]

from benchmarks.memory_simulation import Step

from lora_trainer.contract.config import ActivationCheckpointing, DeviceConfig, LoraConfig, Precision, Quantization
from lora_trainer.data.tokens import Example
from lora_trainer.model.attention import choose_attention
from lora_trainer.model.device import Device, choose_device
from lora_trainer.model.linear import linear_modules
from lora_trainer.model.loading import Adapted, Loaded, adapt, set_training
from lora_trainer.places.base import Base
from lora_trainer.ranks.collectives import Ranks
from lora_trainer.training.batches import Budget
from lora_trainer.training.step import run_step

RANK = 16
PEAK_FLOPS = {"H100": 989e12, "H200": 989e12, "A100": 312e12, "L40S": 362e12}
"""Dense bf16 operations a second, by the vendor's data sheets."""


def adapted_on(config: Mapping[str, Any], how: Step, device: Device) -> tuple[Adapted, bool]:
    """A Llama of random weights with its adapter, ready to be trained, and whether its rows can be packed."""
    library: Any = transformers
    shape = {name: value for name, value in config.items() if name != "model_type"}
    with device.torch_device:
        model = library.AutoModelForCausalLM.from_config(library.LlamaConfig(**shape), dtype=device.dtype)
    head = model.get_output_embeddings()
    if how.quantization is not Quantization.NONE:
        quantize(model, head, device)
    model.requires_grad_(False)
    base = Base(folder=Path(), name="random", revision="sha256:0", model_type="llama")
    loaded = Loaded(model=model, head=head, linear=linear_modules(model, head), quantization=how.quantization)
    checkpointing = ActivationCheckpointing.FULL if how.recompute else ActivationCheckpointing.NONE
    adapted = adapt(loaded, how.lora, base, device, 1, checkpointing=checkpointing)
    packs = choose_attention(adapted.model, device).packs
    set_training(adapted.model, on=True)
    return adapted, packs


def one_row(tokens: int, vocabulary: int) -> Example:
    """A row of random tokens, all of which are learned."""
    ids = np.random.default_rng(1).integers(3, vocabulary, size=tokens)
    return Example(input_ids=ids, labels=ids, truncated=False)


def steps_of(ready: tuple[Adapted, bool], tokens: int, device: Device, *, count: int) -> float:
    """Seconds of all optimizer steps but the first two."""
    adapted, packs = ready
    row = one_row(tokens, adapted.model.config.vocab_size)
    budget = Budget(tokens=tokens, longest=tokens, packed=packs)
    scaler = torch.amp.GradScaler(device.torch_device.type, enabled=False)
    parameters = [parameter for parameter in adapted.model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(parameters, fused=True)
    started = 0.0
    for step in range(count):
        if step == 2:
            # float() of the loss before has waited for the device.
            started = time.perf_counter()
        run_step(adapted, [row], targets=row.targets, budget=budget, device=device, scaler=scaler, ranks=Ranks())
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    if device.torch_device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - started


def gpu_share(shape: dict[str, int], device: Device, *, quantized: bool, tokens: int, steps: int) -> tuple[float, int]:
    """Tokens a second of our step on random weights of a Llama's shape, and the model's parameters."""
    quantization = Quantization.NF4 if quantized else Quantization.NONE
    # As `activationCheckpointing: Auto` has it for models of this size.
    how = Step(rows=(tokens,), lora=LoraConfig(rank=RANK, alpha=2 * RANK), quantization=quantization, recompute=True)
    ready = adapted_on(shape, how, device)
    return steps * tokens / steps_of(ready, tokens, device, count=steps + 2), ready[0].total_parameters


def quantize(model: Any, head: Any, device: Any) -> None:
    """Replace the linear modules by 4-bit ones, as loading a checkpoint does."""

    library: Any = bitsandbytes
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if type(child) is nn.Linear and child is not head:
                small = library.nn.Linear4bit(
                    child.in_features,
                    child.out_features,
                    bias=False,
                    compute_dtype=device.dtype,
                    compress_statistics=True,
                    quant_type="nf4",
                )
                small.weight = library.nn.Params4bit(
                    child.weight.data.cpu(), requires_grad=False, compress_statistics=True, quant_type="nf4"
                )
                setattr(parent, name, small.to(device.torch_device))


LLAMA_3_8B = {
    "vocab_size": 128256,
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "max_position_embeddings": 8192,
}


def on_gpu(tokens: int, steps: int) -> None:
    """Print the share of the GPU's peak for bf16 and NF4."""

    device = choose_device(DeviceConfig(gpus=1), Precision.BF16)
    peak = next((value for name, value in PEAK_FLOPS.items() if name in device.name), None)
    print(f"{device.name}, Llama-3-8B shape, rank {RANK}, {tokens} tokens for each micro-batch")
    for quantized in (False, True):
        speed, parameters = gpu_share(LLAMA_3_8B, device, quantized=quantized, tokens=tokens, steps=steps)
        share = "unknown peak" if peak is None else f"MFU {4 * parameters * speed / peak:.1%}"
        print(f"{'NF4' if quantized else 'bf16'}: {speed:.0f} tokens/s, {share}")


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=4096)
    parser.add_argument("--steps", type=int, default=10)
    options = parser.parse_args()
    on_gpu(options.tokens, options.steps)


if __name__ == "__main__":
    main()
