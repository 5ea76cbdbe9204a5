"""Base weights in 4 and 8 bits, fp16 with scaled losses, and optimizers with 8-bit state."""

import contextlib
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from benchmarks.acceptance.bench import Bench
from benchmarks.acceptance.comparing import error
from benchmarks.acceptance.findings import Check, Outcome, judged, not_run
from benchmarks.acceptance.models import Recipe, adapter_for, random_base
from benchmarks.acceptance.training_parts import trains
from torch import nn

from lora_trainer.errors import ConfigError
from lora_trainer.model.loading import load_model
from lora_trainer.model.quantize import check_kernels, full_weight, is_8bit
from lora_trainer.spec.config import Optimizer, Quantization, Variant

KINDS = (Quantization.NF4, Quantization.FP4, Quantization.INT8)
_OF_WEIGHTS = {Quantization.NF4: 0.15, Quantization.FP4: 0.2, Quantization.INT8: 0.02}
"""Most relative error of random normal weights."""
_OF_PRODUCTS = {torch.float32: 1e-4, torch.bfloat16: 2.0**-6, torch.float16: 2.0**-9}
_OF_INT8_PRODUCTS = 0.03
"""Inputs are rounded to 8 bits, too."""


def checks(bench: Bench) -> Iterator[Check]:
    """All of the part."""
    for kind in KINDS:
        yield Check(name=f"{kind.value}: weights and products", run=partial(_product, bench, kind))
        yield Check(name=f"{kind.value}: training", run=partial(_trains, bench, kind))
    yield Check(name="fp16 with scaled losses", run=partial(_fp16, bench))
    for optimizer in (Optimizer.ADAMW_8BIT, Optimizer.PAGED_ADAMW_8BIT):
        yield Check(name=optimizer.value, run=partial(_optimizer, bench, optimizer))


def _refusal(bench: Bench, kind: Quantization) -> str | None:
    try:
        check_kernels(kind, Variant.LORA, bench.device)
    except ConfigError as known:
        return str(known)
    return None


def _product(bench: Bench, kind: Quantization) -> Outcome:
    """A module against the product with its weight, taken back in full; and that weight against the original."""
    refusal = _refusal(bench, kind)
    if refusal is not None:
        return not_run(refusal)
    device, name = bench.device, "model.layers.0.mlp.down_proj"
    with tempfile.TemporaryDirectory() as folder:
        base = random_base(Path(folder), "llama", bench.sizes, device)
        full: Any = load_model(base, Quantization.NONE, device).model.get_submodule(name)
        model = load_model(base, kind, device).model
    small: nn.Module = model.get_submodule(name)
    rows = torch.randn(64, full.in_features, generator=torch.Generator().manual_seed(1))
    rows = rows.to(device.torch_device, device.dtype)
    with torch.no_grad(), _each_token_alone(model):
        found = small(rows)
        back = full_weight(small)
    of_weights = error(back, full.weight)
    of_products = error(found, rows.double() @ back.double().T)
    most = _OF_INT8_PRODUCTS if kind is Quantization.INT8 else _OF_PRODUCTS[device.dtype]
    right = of_weights <= _OF_WEIGHTS[kind] and of_products <= most
    said = f"relative error of weights {of_weights:.3f}, of products {of_products:.1e}"
    return judged(right, said, weights_error=of_weights, products_error=of_products)


@contextlib.contextmanager
def _each_token_alone(model: nn.Module) -> Iterator[None]:
    """Within it, 8-bit modules have no outliers, whose columns are found over all tokens of a batch."""
    states: list[Any] = [module.state for module in model.modules() if is_8bit(module)]
    before = [state.threshold for state in states]
    try:
        for state in states:
            state.threshold = 0.0
        yield
    finally:
        for state, threshold in zip(states, before, strict=True):
            state.threshold = threshold


def _trains(bench: Bench, kind: Quantization) -> Outcome:
    refusal = _refusal(bench, kind)
    return trains(bench, Recipe(quantization=kind)) if refusal is None else not_run(refusal)


def _fp16(bench: Bench) -> Outcome:
    if not bench.on_gpu:
        return not_run("fp16 is for GPUs")
    return trains(bench, Recipe(), bench.computing_in(torch.float16))


def _optimizer(bench: Bench, optimizer: Optimizer) -> Outcome:
    if optimizer is Optimizer.PAGED_ADAMW_8BIT and not bench.on_gpu:
        return not_run("a CPU has nothing to page")
    recipe = Recipe(lora=adapter_for(optimizer))
    return trains(bench, replace(recipe, training=replace(recipe.training, optimizer=optimizer)))
