"""Memory of a training step against the fit model, over a matrix of settings of Llama-2-7B and Llama-3-8B.

    .venv/bin/python benchmarks/memory.py --simulate    real modules on fake tensors: no GPU, no weights, seconds a row
    .venv/bin/python benchmarks/memory.py               on a GPU: the allocator's peak of a real step, random weights
                                                        on a CPU: saved tensors of two real layers, for a token

Without CUDA's context, which the allocator does not count. An error is negative where the estimate is too low.
"""

import argparse
import gc
import itertools
import statistics
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "trainer_image")]

import torch
from benchmarks.acceptance.models import adapted_on, one_row
from benchmarks.acceptance.shapes import LLAMA_3_8B
from benchmarks.acceptance.steps import stepper
from benchmarks.memory_estimate import estimate, setting_of
from benchmarks.memory_simulation import Step, simulate_deep
from peft.helpers import disable_input_dtype_casting

from lora_trainer.errors import out_of_memory
from lora_trainer.model.attention import has_kernel
from lora_trainer.model.device import Device, choose_device
from lora_trainer.model.loading import Adapted
from lora_trainer.plan.adapter import plan_adapter
from lora_trainer.plan.families import architecture_of
from lora_trainer.plan.memory import layer_bytes
from lora_trainer.spec.config import DeviceConfig, Layers, LoraConfig, Precision, Quantization
from lora_trainer.train.batches import MicroBatchLimit, collate
from lora_trainer.train.loss import token_losses

LLAMA_2_7B = {**LLAMA_3_8B, "vocab_size": 32000, "intermediate_size": 11008, "num_key_value_heads": 32}
SHAPES = {"Llama-2-7B": LLAMA_2_7B, "Llama-3-8B": LLAMA_3_8B}
VARIANTS = ((1304, 0.0, 8), (1304, 0.05, 8), (2048, 0.0, 64), (4096, 0.0, 16), (4096, 0.05, 256), (8192, 0.0, 16))
"""Tokens of a micro-batch, dropout, rank."""
COUNTED_TOKENS = 97
"""On a CPU. No width of these models, so that a tensor with so many rows is an activation."""


Row = tuple[str, Mapping[str, Any], Step]


def matrix() -> Iterator[Row]:
    """Name, `config.json` and step of each row."""
    quantizations = (Quantization.NONE, Quantization.NF4)
    for (name, shape), quantization, recompute, (tokens, dropout, rank) in itertools.product(
        SHAPES.items(), quantizations, (False, True), VARIANTS
    ):
        layers = Layers.QUERY_VALUE if rank == 8 else Layers.ALL_LINEAR
        lora = LoraConfig(rank=rank, alpha=2 * rank, dropout=dropout, layers=layers)
        how = Step(rows=(tokens,), lora=lora, quantization=quantization, recompute=recompute)
        words = (
            f"{name}, {quantization.value}, {'recomputed' if recompute else 'kept'}, {tokens} tokens, "
            f"dropout {dropout:g}, r = {rank}, {layers.value}"
        )
        yield words, shape, how


def simulated(config: Mapping[str, Any], how: Step) -> tuple[float, float]:
    """Bytes of the simulation and of the fit model."""
    memory = estimate(config, how)
    return simulate_deep(config, how).peak, memory.total - memory.constant


def measured(config: Mapping[str, Any], how: Step, device: Device) -> tuple[float, float] | None:
    """Bytes of the allocator and of the fit model, with the kernel that the GPU has; None where its bytes do not
    suffice."""
    memory = estimate(config, replace(how, packs=_packs(config, device)))
    gc.collect()
    device.give_back()
    try:
        adapted, packs = _adapted(config, how, device)
        # In a step of one micro-batch gradients come only as what the forward pass kept goes.
        step = stepper(adapted, sum(how.rows), device, packs=packs, micro_batches=2)
        # What making the model took for a moment is no part of a training.
        gc.collect()
        device.reset_peak_memory()
        for _ in range(3):
            step()
    except RuntimeError as error:
        if not out_of_memory(error):
            raise
        return None
    return device.peak_memory_bytes(), memory.total - memory.constant


def _packs(config: Mapping[str, Any], device: Device) -> bool:
    """Whether the device has a kernel for packs of this model: else keys and values are kept for each head."""
    size = config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"]
    return has_kernel(size, size, device.dtype, device.capability)


def _adapted(config: Mapping[str, Any], how: Step, device: Device) -> tuple[Adapted, bool]:
    return adapted_on(
        config, how.lora, device, quantization=how.quantization, recompute=how.recompute, selective=how.selective
    )


def counted(config: Mapping[str, Any], how: Step, device: Device) -> tuple[float, float]:
    """Bytes that two layers more keep more, for a token and layer, and those of the fit model."""
    how = replace(how, recompute=False, selective=False, rows=(COUNTED_TOKENS,), packs=False)
    kept = [_kept({**config, "num_hidden_layers": layers, "vocab_size": 300}, how, device) for layers in (1, 3)]
    shape = architecture_of(config)
    ranks = plan_adapter(how.lora, shape).ranks[0]
    setting = replace(setting_of(how), cpu=True)
    return (kept[1] - kept[0]) / 2 / COUNTED_TOKENS, layer_bytes(shape.layers[0], ranks, setting)


def _kept(config: Mapping[str, Any], how: Step, device: Device) -> int:
    adapted, packs = _adapted(config, how, device)
    row = one_row(COUNTED_TOKENS, config["vocab_size"])
    limit = MicroBatchLimit(tokens=COUNTED_TOKENS, longest=COUNTED_TOKENS, packed=packs)
    batch = collate([row], device.torch_device, packed=limit.packed)
    token_losses(adapted.model, adapted.head, batch, device)  # tries once whether the head is the last
    sizes: dict[int, int] = {}
    alive: list[torch.Tensor] = []

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        if COUNTED_TOKENS in tensor.shape:
            sizes[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        # A storage that is freed gives its address to another.
        alive.append(tensor)
        return tensor

    hooks = torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor)
    with hooks, disable_input_dtype_casting(adapted.model):
        loss = token_losses(adapted.model, adapted.head, batch, device).sum()
    assert loss.requires_grad
    return sum(sizes.values())


def report(
    title: str,
    unit: float,
    rows: Iterable[Row],
    measure: Callable[[Mapping[str, Any], Step], tuple[float, float] | None],
) -> None:
    """Print each row, and the mean and the largest error."""
    print(f"{title:>9} {'estimated':>9} {'error':>7}  training")
    errors: list[float] = []
    for name, config, how in rows:
        found = measure(config, how)
        if found is None:
            print(f"{'-':>9} {'-':>9} {'-':>7}  {name}: does not fit this GPU", flush=True)
            continue
        errors.append(found[1] / found[0] - 1)
        print(f"{found[0] / unit:>9.3f} {found[1] / unit:>9.3f} {errors[-1]:>+7.1%}  {name}", flush=True)
    mean, worst = statistics.fmean(map(abs, errors)), max(errors, key=abs)
    print(f"{len(errors)} rows, mean error {mean:.1%}, largest {worst:+.1%}, lowest {min(errors):+.1%}")


def main() -> None:
    """Simulate, measure or count, and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--simulate", action="store_true")
    if parser.parse_args().simulate:
        report("simulated", 1e9, matrix(), simulated)
        return
    device = choose_device(DeviceConfig(gpus=1, allow_cpu=True), Precision.BF16)
    if device.torch_device.type == "cuda":
        print(f"{device.name}, GB of the allocator")
        report("measured", 1e9, matrix(), lambda config, how: measured(config, how, device))
    else:
        print("a CPU, kB for a token and layer")
        # For a token, and what is kept at all.
        rows = [row for row in matrix() if not row[2].recompute and sum(row[2].rows) in {1304, 4096}]
        report("counted", 1e3, rows, lambda config, how: counted(config, how, device))


if __name__ == "__main__":
    main()
