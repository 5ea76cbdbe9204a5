"""Adapters of every kind: modules trained whole, DoRA, PiSSA, OLoRA, dropout, and the experts of a mixture."""

import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from benchmarks.acceptance.bench import Bench
from benchmarks.acceptance.findings import Check, Outcome, judged
from benchmarks.acceptance.models import Recipe, random_base
from benchmarks.acceptance.training_parts import trains

from lora_trainer.model.device import Device
from lora_trainer.model.loading import adapt, load_model
from lora_trainer.spec.config import Init, LoraConfig, Quantization, Scaling, Variant

_START = {torch.float32: 1e-4, torch.bfloat16: 0.1, torch.float16: 0.02}
"""Most that an adapter may change before its training, relative to the logits' spread: the rounding of weights out of
which directions were taken."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """An adapter on a model."""

    lora: LoraConfig
    kind: str = "llama"
    options: Mapping[str, Any] = field(default_factory=dict)


_MIXTURE: Mapping[str, Any] = {"num_local_experts": 4, "num_experts_per_tok": 2}


def cases() -> Mapping[str, Case]:
    """By name."""
    plain: Mapping[str, Any] = {"rank": 8, "alpha": 16}
    whole = ("lm_head", "embed_tokens")
    experts = ("experts.gate_up_proj", "experts.down_proj")
    return {
        "modulesToSave": Case(lora=LoraConfig(**plain, modules_to_save=whole)),
        "modulesToSave, tied": Case(
            lora=LoraConfig(**plain, modules_to_save=whole[1:]), options={"tie_word_embeddings": True}
        ),
        "DoRA": Case(lora=LoraConfig(**plain, variant=Variant.DORA)),
        "PiSSA": Case(lora=LoraConfig(**plain, init=Init.PISSA)),
        "OLoRA": Case(lora=LoraConfig(**plain, init=Init.OLORA)),
        "dropout, rank-stabilized": Case(lora=LoraConfig(**plain, dropout=0.05, scaling=Scaling.RANK_STABILIZED)),
        "mixture": Case(lora=LoraConfig(**plain), kind="mixtral", options=_MIXTURE),
        "mixture, experts": Case(lora=LoraConfig(**plain, target_parameters=experts), kind="mixtral", options=_MIXTURE),
    }


def checks(bench: Bench) -> Iterator[Check]:
    """Two of each adapter."""
    for name, case in cases().items():
        yield Check(name=f"{name}: starts as the base", run=partial(_starts, bench, case))
        yield Check(name=f"{name}: training", run=partial(_trains, bench, case))


def _trains(bench: Bench, case: Case) -> Outcome:
    return trains(bench, Recipe(lora=case.lora), kind=case.kind, options=case.options)


def _starts(bench: Bench, case: Case) -> Outcome:
    """Logits before and after the adapter is put on."""
    device = bench.device
    with tempfile.TemporaryDirectory() as folder, torch.no_grad():
        base = random_base(Path(folder), case.kind, {**bench.sizes, **case.options}, device)
        loaded = load_model(base, Quantization.NONE, device)
        before = _logits(loaded.model, device)
        # As a run puts it on: without autocast, which would take directions out of the weights in 16 bits.
        adapted = adapt(loaded, case.lora, base, device, 3)
        adapted.model.eval()
        after = _logits(adapted.model, device)
    change = float((after - before).abs().mean() / before.std())
    said = f"logits change by {change:.1e} of their spread; {adapted.trainable_parameters:,} trained parameters"
    return judged(change <= _START[device.dtype], said, change=change, trained=adapted.trainable_parameters)


def _logits(model: Any, device: Device) -> torch.Tensor:
    ids = torch.arange(3, 35, device=device.torch_device)[None]
    with device.autocast():
        found: torch.Tensor = model(input_ids=ids, use_cache=False).logits.float()
    return found
